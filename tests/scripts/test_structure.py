"""How many files somebody must open who follows one play, and how dense the code is."""

from scripts.structure import ROOT, figures, files_of_one_play


def test_one_play_visits_few_files() -> None:
    files = files_of_one_play()
    assert {"sampling/runner.py", "agents/openai.py", "rewards/classifier.py"} <= {*files}
    assert len(files) <= 13, "move what a play needs to where it is used, or raise this number"


def test_few_comprehensions_are_nested() -> None:
    share = figures(ROOT)["nested comprehensions per 1,000 lines"]
    assert float(str(share)) <= 1.0, "name an intermediate value, or write a loop"
