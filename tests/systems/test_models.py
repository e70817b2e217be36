"""Runs and searches as models of an evaluation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml

from tests.helpers import IDENTITY, EchoAgent, completion_of, number, play, wait
from tests.integration.conftest import call
from tests.judge_server import _answer as verdict_of
from toa_trl.agents import Agent
from toa_trl.cli.evaluation_config import EvaluationConfig
from toa_trl.demo.world import verify
from toa_trl.errors import ConfigError, Unavailable
from toa_trl.evaluation.accuracy import measure_model
from toa_trl.evaluation.outputs import Outputs
from toa_trl.rewards import RewardModel
from toa_trl.sampler import TOASampler
from toa_trl.sampling.journal import Journal
from toa_trl.systems.models import Questions, checked_models
from toa_trl.tasks import make_task
from toa_trl.types import Completion, Message, Prompt, Sampling
from toa_trl.utils.config import validate

TASK = make_task("alignment")
PROMPTS = [Prompt(str(n), f"What is {n}?", {"reference": "best"}) for n in range(2)]  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is still sampling: its second prompt has three of four plays."""
    folder = tmp_path / "run"
    folder.mkdir()
    journal = Journal(folder / "journal.sqlite", create=True)
    journal.begin({**IDENTITY, "budget": 4}, PROMPTS)
    for index, reward in enumerate([0.1, None, 0.3, 0.2, 0.9]):
        text = "best" if reward == 0.9 else f"first {index}"
        journal.append("0", play(index, reward, text))
    for index, reward in enumerate([0.5, 0.5, 0.4]):
        reason = "length" if index == 0 else "stop"
        journal.append("1", play(index, reward, f"second {index}", finish_reason=reason))
    journal.close()
    return folder


def responses(
    entry: Mapping[str, Any],
    prompts: list[Prompt] = PROMPTS,
    folder: Path = Path("nowhere"),
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Outputs]:
    """Return what a model answers, if something happens before it is asked."""
    questions = Questions(prompts, TASK, Sampling(), folder, num_samples=4)
    models = wait(checked_models([entry], questions))
    meanwhile()
    outputs = wait(models[entry["name"]].outputs(questions))
    assert not any(output.samples for output in outputs)
    return outputs


def texts(entry: Mapping[str, Any], *args: Any, **options: Any) -> list[str]:
    entry = {"name": "toa", "engine": "run", **entry}
    return [output.greedy.text for output in responses(entry, *args, **options)]


@pytest.mark.parametrize(
    ("budget", "first"),
    [(1, "first 0"), (2, "first 2"), (3, "first 2"), (4, "best"), (None, "best")],
)
def test_the_best_of_the_first_scored_plays_is_selected(
    budget: int | None, first: str, run: Path
) -> None:
    assert texts({"path": str(run), "budget": budget}) == [first, "second 0"]


def test_prompts_are_found_by_their_messages(run: Path) -> None:
    renamed = [Prompt(f"other {n}", PROMPTS[n].messages) for n in (1, 0)]
    assert texts({"path": str(run)}, renamed) == ["second 0", "best"]


def test_a_run_that_is_not_finished_is_reported(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        texts({"path": str(run), "budget": 3})
        assert not caplog.messages
        texts({"path": str(run)})
    assert "1 of 2 prompts have fewer than 4 scored plays" in caplog.text


def test_a_run_is_read_once(run: Path) -> None:
    """It grows while other models are asked: what was checked is what counts."""

    def grow() -> None:
        with closing(Journal(run / "journal.sqlite")) as journal:
            journal.append("1", play(3, 0.8, "late"))

    entry = {"path": str(run)}
    assert texts(entry, meanwhile=grow) == ["best", "second 0"]
    assert texts(entry) == ["best", "late"]


def test_the_metrics_see_the_selected_responses(run: Path) -> None:
    entry = {"name": "toa", "engine": "run", "path": str(run)}
    measurement, _ = wait(measure_model(PROMPTS, responses(entry), TASK))
    assert measurement.chrf is not None
    assert (measurement.num_problems, measurement.num_truncated) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "prompts", "error"),
    [
        ({"path": "nowhere"}, PROMPTS, r"model 'toa': nowhere has no journal.sqlite"),
        ({"budget": 5}, PROMPTS, r"model 'toa': budget: must be <= 4, that of the run, not 5"),
        ({}, [Prompt("7", "?")], r"model 'toa': the run in .* has no prompt like '7'"),  # type: ignore[arg-type]
        ({"budget": 0}, PROMPTS, r"model 'toa'.budget: must be"),
    ],
)
def test_mistakes_are_found_before_a_model_is_asked(
    changes: dict[str, Any], prompts: list[Prompt], error: str, run: Path, tmp_path: Path
) -> None:
    entry = {"name": "toa", "engine": "run", "path": str(run), **changes}
    questions = Questions(prompts, TASK, Sampling(), tmp_path)
    with pytest.raises(ConfigError, match=error):
        wait(checked_models([{"name": "base", "engine": "scripted"}, entry], questions))


def test_a_run_without_scored_plays_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", create=True)
    journal.begin(IDENTITY, PROMPTS)
    journal.append("0", play(0, None))
    journal.close()
    with pytest.raises(ConfigError, match=r"no scored play of 2 of 2 prompts, the first '0'"):
        texts({"path": str(tmp_path)})


def test_a_list_of_budgets_gives_a_model_for_each(run: Path) -> None:
    runs = {"name": "toa", "engine": "run", "path": str(run), "budget": [1, 4]}
    base = {"name": "base", "engine": "scripted"}
    config = validate(EvaluationConfig, {"models": [base, runs], "baseline": "toa@1"})
    assert [entry["name"] for entry in config.models] == ["base", "toa@1", "toa@4"]
    assert [texts(entry)[0] for entry in config.models[1:]] == ["first 0", "best"]
    wrong = {"models": [runs, {**base, "respones": []}]}
    with pytest.raises(ConfigError, match=r"^models\[1\]: unknown key 'respones'"):
        validate(EvaluationConfig, wrong)
    with pytest.raises(ConfigError, match=r"^models\[0\].budget\[1\]: must be >= 1, not 0"):
        validate(EvaluationConfig, {"models": [{**runs, "budget": [1, 0]}]})
    with pytest.raises(ConfigError, match="lm_eval: cannot ask a model of engine run"):
        validate(EvaluationConfig, {"models": [runs], "lm_eval": {"tasks": "gsm8k"}})


class Asked(EchoAgent):
    """Counts its calls; with `unlike` it says something else."""

    calls = 0

    def __init__(self, name: str, unlike: str = "") -> None:
        super().__init__(name + unlike)
        self.name = name

    async def generate(self, messages: Sequence[Message], **options: Any) -> Any:
        type(self).calls += 1
        return await super().generate(messages, **options)


class Verifiable(RewardModel):
    """Needs the reference of the prompt; is unavailable after as many scores as `lives`."""

    lives = 1000

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        type(self).lives -= len(responses)
        if self.lives < 0:
            raise Unavailable("the server is away")
        assert prompt.metadata["reference"] == "best"
        return [number(prompt.id, text) for text in responses]


LIVE: dict[str, Any] = {
    "name": "live",
    "engine": "search",
    "agents": [{"name": n, "engine": "tests.systems.test_models:Asked"} for n in "ab"],
    "reward": {"kind": "tests.systems.test_models:Verifiable"},
    "search": "toa",
    "search_params": {"width": 2},
    "budget": 6,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> type[Asked]:
    monkeypatch.setattr(Asked, "calls", 0)
    monkeypatch.setattr(Verifiable, "lives", 1000)
    return Asked


def sampled(**changes: Any) -> list[str]:
    """Return the best responses of the same search, made by a sampler."""
    keys = {key: LIVE[key] for key in ("agents", "search", "search_params", "budget")}
    sampler = TOASampler(reward_model=LIVE["reward"], progress=False, **{**keys, **changes})
    best = [rollout.ranked[0].completion for rollout in sampler.sample(PROMPTS)]
    return [completion.text for completion in best if completion]


def test_a_search_answers_with_its_best_plays(asked: type[Asked], tmp_path: Path) -> None:
    assert texts(LIVE, folder=tmp_path) == sampled()
    changes: dict[str, Any] = {"search": "best_of_n", "search_params": {}, "budget": 3}
    assert texts({**LIVE, **changes}, folder=tmp_path) == sampled(**changes)
    assert len(list(tmp_path.glob("live-*/journal.sqlite"))) == 2


def test_what_a_search_has_sampled_is_kept(asked: type[Asked], tmp_path: Path) -> None:
    expected = texts(LIVE, folder=tmp_path)
    assert asked.calls == 12
    assert texts({**LIVE, "prompts_in_flight": 1}, folder=tmp_path) == expected
    assert asked.calls == 12
    for changes in (
        {"budget": 5},
        {"search_params": {"width": 3}},
        {"sampling": {"max_tokens": 9}},
        {"agents": LIVE["agents"][::-1]},
        {"agents": [{**LIVE["agents"][0], "unlike": "s"}, LIVE["agents"][1]]},
    ):
        before = asked.calls
        texts({**LIVE, **changes}, folder=tmp_path)
        assert asked.calls > before, changes


def test_a_search_that_was_interrupted_resumes(
    asked: type[Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sampled()
    monkeypatch.setattr(Verifiable, "lives", 7)
    with pytest.raises(Unavailable):
        texts(LIVE, folder=tmp_path)
    monkeypatch.setattr(Verifiable, "lives", 5)  # of 12 plays
    assert texts(LIVE, folder=tmp_path) == expected


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"search": "tao"}, r"model 'live'.search: unknown search 'tao'.*did you mean 'toa'"),
        ({"search_params": {"widht": 2}}, r"model 'live'.search_params: unknown key 'widht'"),
        ({"budget": 0}, r"models\[0\].budget: must be >= 1, not 0"),
        ({"budget": []}, r"model 'live': budget: must be an integer, not \[\]"),
        ({"reward": None}, r"models\[0\]: the key 'reward' is missing"),
        ({"reward": {"kind": "lenght"}}, r"models\[0\].reward: .*did you mean 'length'"),
        ({"agents": []}, r"models\[0\].agents: must have at least 1"),
        ({"agents": LIVE["agents"][:1] * 2}, r"'a'"),
        ({"agents": [{"name": "a"}]}, r"models\[0\].agents\[0\]: the key 'engine' is missing"),
        ({"path": "runs/toa"}, r"models\[0\]: unknown key 'path'"),
    ],
)
def test_a_mistake_in_a_search_is_found_before_anything_is_loaded(
    changes: dict[str, Any], error: str
) -> None:
    entry = {key: value for key, value in {**LIVE, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=error):
        validate(EvaluationConfig, {"models": [entry]})


GONE = {"kind": "http", "url": "http://127.0.0.1:9/score", "wait_s": 0.1}
UNTRAINED = {"kind": "classifier", "model": "toa_trl/demo/weights/student"}
JUDGE = {"kind": "judge", "agent": {"name": "j", "engine": "transformers", "model": "runs/none"}}


@pytest.mark.parametrize(
    ("reward", "error"),
    [
        (GONE, r"127\.0\.0\.1:9"),
        ({"kind": "minimum", "rewards": [{"reward": GONE}]}, r"127\.0\.0\.1:9"),
        (JUDGE, "agent 'j'.*runs/none"),
        ({"kind": "classifier", "model": "runs/none"}, "model 'live'.reward 'classifier'.*runs/no"),
        ({**UNTRAINED, "devices": ["cpu", "cuda:99"]}, "device 'cuda:99' does not exist"),
    ],
)
def test_what_the_reward_of_a_search_needs_is_checked_first(
    reward: dict[str, Any], error: str, tmp_path: Path
) -> None:
    questions = Questions(PROMPTS, TASK, Sampling(), tmp_path)
    with pytest.raises(ConfigError, match=error):
        wait(checked_models([{**LIVE, "reward": reward}], questions))


def test_a_search_over_the_bundled_models_is_a_model_of_evaluate(tmp_path: Path) -> None:
    weights = "toa_trl/demo/weights"
    search = {
        "name": "toa",
        "engine": "search",
        "agents": [{"name": "add", "engine": "transformers", "model": f"{weights}/add"}],
        "reward": {"kind": "likelihood", "model": f"{weights}/base", "floor": -4.0},
        "budget": [3],
    }
    settings = {
        "prompts": "toa_trl/demo/data/heldout.jsonl",
        "num_prompts": 2,
        "task": "toa_trl/demo/templates",
        "models": [search],
        "verifier": "toa_trl.demo.world:accuracy_reward",
        "sampling": {"max_tokens": 64},
        "results": str(tmp_path / "results.json"),
    }
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(settings))
    done = call("evaluate", "--config", tmp_path / "evaluate.yaml")
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads((tmp_path / "results.json").read_text())["student"].values()
    (path,) = tmp_path.glob("outputs/toa_3-*/journal.sqlite")
    with closing(Journal(path, lock=False)) as journal:
        best = [(rollout.prompt, rollout.ranked[0]) for rollout in journal.rollouts()]
    right = [verify(completion_of(play).text, p.metadata["answer"]) for p, play in best]
    assert figures["accuracy"] == mean(map(float, right))
    assert figures["num_problems"] == 2


class WordJudge(Agent):
    """Prefers the response with more words, as tests.judge_server does."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def generate(self, messages: Sequence[Message], **options: Any) -> Completion:
        return Completion(verdict_of(messages[-1].content), "stop", 1, 1)


class Comet(RewardModel):
    """Stands for a scorer of translations: needs what COMET needs, and counts characters."""

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        assert prompt.metadata["source"]
        assert prompt.metadata["reference"]
        return [len(text) / 100 for text in responses]


def test_every_judge_of_an_evaluation_judges_a_run_at_each_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = ("eins", "zwei", "drei")
    rows = [{"source": text, "reference": f"a longer text about {text}"} for text in sources]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = ["a", "a text", "a longer text", "a longer text about eins", "about zwei", "of drei"]
    agent = {"name": "a", "engine": "scripted", "responses": texts}
    task = {"name": "translation", "source_language": "German", "target_language": "English"}
    run = TOASampler([agent], {"kind": "chrf"}, "best_of_n", 8, task=task, progress=False).sample(
        rows, tmp_path / "run"
    )
    best = {
        f"run@{n}": [completion_of(rollout.first(n).ranked[0]).text for rollout in run]
        for n in (1, 8)
    }
    assert best["run@1"] != best["run@8"]
    seen = {}

    def alpaca(name: str, asked: Any, outputs: Any, baseline: str, theirs: Any, *_: Any) -> Any:
        seen[name] = (len(asked), outputs, baseline, theirs)
        return {"win_rate": 0.5}

    monkeypatch.setattr("toa_trl.evaluation.benchmarks.run_alpaca_eval", alpaca)
    here = "tests.systems.test_models"
    settings = {
        "prompts": str(tmp_path / "prompts.jsonl"),
        "task": task,
        "models": [
            {**agent, "name": "base", "responses": ["two words"]},
            {"name": "run", "engine": "run", "path": str(tmp_path / "run"), "budget": [1, 8]},
        ],
        "baseline": "base",
        "judge": {"agent": {"name": "j", "engine": f"{here}:WordJudge"}, "mode": "arena"},
        "comet": {"kind": f"{here}:Comet"},
        "alpaca_eval": {"annotator": {"model": "m", "base_url": "http://127.0.0.1:9/v1"}},
        "num_samples": 0,
        "results": str(tmp_path / "results.json"),
    }
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(settings))
    done = call("evaluate", "--config", tmp_path / "evaluate.yaml")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    rates = {row["model"]: row for row in results["win_rates"]}
    for name, selected in best.items():
        student, rate = results["student"][name], rates[name]
        assert student["comet"] == pytest.approx(mean(len(text) / 100 for text in selected))
        num_words = [len(text.split()) for text in selected]
        assert rate["by"] == "judge"
        assert rate["num_wins"] == sum(words > 2 for words in num_words)
        assert rate["num_losses"] == sum(words < 2 for words in num_words)
        assert seen[name] == (3, selected, "base", ["two words"] * 3)
    assert results["student"]["run@8"]["chrf"] > results["student"]["run@1"]["chrf"]
    assert results["alpaca_eval"].keys() == best.keys()
