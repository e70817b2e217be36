"""When an evaluation loads its models: only where an answer is missing, and one after the other."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from recipes.evaluate import evaluate
from tests.helpers import wait
from toa_trl.agents import Agent
from toa_trl.cli.evaluation_config import EvaluationConfig
from toa_trl.errors import ConfigError
from toa_trl.rewards import RewardModel
from toa_trl.rewards.deferred import LOADED, deferred
from toa_trl.types import Completion, Message, Prompt, Sampling
from toa_trl.utils.config import validate

STUDENT = "toa_trl/demo/weights/student"


class Watched:
    """Counts the models that are in memory, as a GPU would notice them."""

    alive: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()
    made: ClassVar[list[str]] = []

    def watch(self, name: str) -> None:
        assert not list(Watched.alive), f"{name} is loaded beside another model"
        Watched.alive.add(self)
        Watched.made.append(name)
        self.queue = self  # as a model and its batches refer to one another


class Model(Watched, Agent):
    def __init__(self, name: str) -> None:
        self.watch(name)
        self.name = name

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        verdict = "Verdict: [[A]]" if "Verdict" in messages[0].text else f"{self.name} {seed}"
        return Completion(verdict, "stop", 1, 1)


class Score(Watched, RewardModel):
    def __init__(self) -> None:
        self.watch("reward")

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        return [float(len(response)) for response in responses]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    Watched.alive.clear()
    Watched.made.clear()
    monkeypatch.setitem(LOADED, f"{__name__}:Score", "AutoModelForCausalLM")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{n}?"}) + "\n" for n in range(3)))
    engine = f"{__name__}:Model"
    return {
        "prompts": str(prompts),
        "models": [{"name": name, "engine": engine} for name in ("a", "b")],
        "baseline": "a",
        "reward": {"kind": f"{__name__}:Score"},
        "judge": {"agent": {"name": "judge", "engine": engine}},
        "num_samples": 1,
        "results": str(tmp_path / "results.json"),
    }


def test_one_model_is_in_memory_at_a_time_and_none_where_every_answer_is_kept(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[list[Any]] = []
    cuda = SimpleNamespace(empty_cache=lambda: emptied.append(list(Watched.alive)))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    gc.disable()  # whoever frees memory collects
    try:
        config = validate(EvaluationConfig, settings)
        wait(evaluate(config))
        results = Path(settings["results"]).read_text()
        assert Watched.made == ["a", "b", "reward", "judge"]
        assert emptied == [[]] * 4  # each was gone when the GPU's cache was emptied
        wait(evaluate(config))
        assert Watched.made == ["a", "b", "reward", "judge"]
        assert Path(settings["results"]).read_text() == results
        wait(evaluate(validate(EvaluationConfig, {**settings, "num_samples": 2})))
        assert Watched.made[4:] == ["a", "b"]
    finally:
        gc.enable()


def test_a_finished_evaluation_needs_no_torch(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Also with the engines and rewards that would load a model."""
    settings["models"] = [{"name": "m", "engine": "transformers", "model": STUDENT}]
    settings["reward"] = {"kind": "likelihood", "model": STUDENT}
    for key in ("baseline", "judge"):
        del settings[key]
    settings |= {"num_prompts": 1, "num_samples": 0, "sampling": {"max_tokens": 4}}
    wait(evaluate(validate(EvaluationConfig, settings)))
    (tmp_path / "evaluate.json").write_text(json.dumps(settings))
    program = (
        "import sys; from toa_trl.cli.main import main; "
        f"main(['evaluate', '--config', {str(tmp_path / 'evaluate.json')!r}]); "
        "heavy = {'torch', 'transformers', 'datasets', 'scipy'} & set(sys.modules); "
        "sys.exit(' '.join(heavy) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mean_reward" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": "no/such/adapter"},
            "model 'm': no model could be loaded from 'no/such",
        ),
        ({"model": STUDENT, "device": "cuda:7"}, "model 'm': device 'cuda:7' does not exist"),
        ({"model": STUDENT, "device": "gpu"}, "model 'm': device 'gpu' is not known"),
        ({"engine": "vllm", "model": STUDENT, "device": "cuda:7"}, "'cuda:7' does not exist"),
        ({"engine": "vllm", "model": STUDENT, "device": "cuda"}, "such as cuda:1, .* not 'cuda'"),
    ],
)
def test_mistakes_are_found_before_the_first_answer(
    change: dict[str, Any],
    message: str,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    settings["models"].append({"name": "m", "engine": "transformers", **change})
    with pytest.raises(ConfigError, match=message) as error:
        wait(evaluate(validate(EvaluationConfig, settings)))
    assert "\n" not in str(error.value)
    assert not Watched.made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cuda:7"}, "reward 'likelihood': device 'cuda:7' does not exist"),
        ({"model": "no/such/model"}, "reward 'likelihood': no model could be loaded"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_found_before_the_first_answer(
    change: dict[str, Any], message: str, settings: dict[str, Any]
) -> None:
    settings["reward"] = {"kind": "likelihood", "model": STUDENT, **change}
    with pytest.raises(ConfigError, match=message):
        wait(evaluate(validate(EvaluationConfig, settings)))
    assert not Watched.made


def test_parts_of_a_combination_are_deferred_too(settings: dict[str, Any]) -> None:
    kind = settings["reward"]
    combined = deferred({"kind": "minimum", "rewards": [{"reward": kind}, {"reward": kind}]})
    held_out = deferred({"kind": "held_out", "reward": kind, "second": {"kind": "length"}})
    assert not Watched.made
    assert [type(part["reward"]).__name__ for part in combined["rewards"]] == ["DeferredReward"] * 2
    assert held_out["second"] == {"kind": "length"}
