"""How many files somebody must open who follows one play."""

from scripts.structure import files_of_one_play


def test_one_play_visits_few_files() -> None:
    files = files_of_one_play()
    assert {"sampling/runner.py", "agents/openai.py", "rewards/classifier.py"} <= {*files}
    assert len(files) <= 19, "move what a play needs to where it is used, or raise this number"
