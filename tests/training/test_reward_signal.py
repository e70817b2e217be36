"""A reward model as TRL's trainers call it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from datasets import Dataset

from tests.helpers import IDENTITY, play
from toa_trl.errors import AgentError, ConfigError, RewardError, Unavailable
from toa_trl.report.audit import Contamination, read_audit
from toa_trl.report.audit.contamination import Overlap
from toa_trl.rewards import RewardModel
from toa_trl.rewards.base import DetailedReward
from toa_trl.rewards.recorded import recorded_reward
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.journal import Journal
from toa_trl.tasks import Task
from toa_trl.training import RewardFunc, reward_func
from toa_trl.training.data import TrainingData, load_training_data
from toa_trl.training.reward_signal import rewards_of
from toa_trl.types import Prompt, Score

TRLS: dict[str, Any] = {
    "completion_ids": [[1], [2]],
    "trainer_state": SimpleNamespace(global_step=3),
}
"""Arguments of TRL's that are no columns."""


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(content: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content}]


class Recorder(RewardModel):
    """Scores the number in a text, in one event loop alone; "?" fails, "nan" is NaN."""

    def __init__(self) -> None:
        self.asked: list[tuple[Prompt, str]] = []
        self.loops = set[int]()
        self.closed = False

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        await asyncio.sleep(0)
        self.loops.add(id(asyncio.get_running_loop()))
        self.asked += [(prompt, text) for text in responses]
        if "gone" in responses:
            raise Unavailable("no server answers")
        if "?" in responses:
            raise RewardError("no number")
        return [float(text) for text in responses]

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.mark.parametrize(
    ("prompts", "completions"),
    [
        (["What?", "And?"], ["1", "2.5"]),
        ([user("What?"), user("And?")], [assistant("1"), assistant("2.5")]),
        ([user("What?"), user("And?")], [[*assistant(""), *assistant("1")], assistant("2.5")]),
        ([user("What?"), user("And?")], [assistant([{"type": "text", "text": "1"}]), "2.5"]),
    ],
    ids=["plain", "conversational", "several turns", "parts"],
)
def test_a_reward_per_completion(
    recorder: Recorder, prompts: list[Any], completions: list[Any]
) -> None:
    with reward_func(recorder, name="mine") as reward:
        columns: dict[str, Any] = {
            "answer": ["1", None],
            "prompt_id": ["a", "b"],
            "metadata": ['{"kind": "x"}', None],
        }
        found = reward(prompts=prompts, completions=completions, **TRLS, **columns)
        reward(prompts=prompts, completions=completions, **TRLS)
    assert found == [1.0, 2.5]
    (first, text), (second, _) = recorder.asked[:2]
    assert (first.id, first.messages[-1].content, text) == ("a", "What?", "1")
    assert dict(first.metadata) == {"kind": "x", "answer": "1"}
    assert (second.id, dict(second.metadata)) == ("b", {"answer": None, "metadata": None})
    assert recorder.asked[2][0].id != recorder.asked[3][0].id  # without a column of ids
    assert reward.__name__ == "mine"
    assert len(recorder.loops) == 1
    assert recorder.closed


def test_rewards_are_computed_where_an_event_loop_runs_already(recorder: Recorder) -> None:
    async def notebook() -> list[float | None]:
        with reward_func(recorder) as reward:
            return reward(prompts=["What?"], completions=["4"])

    assert asyncio.run(notebook()) == [4.0]


@pytest.mark.parametrize(
    ("texts", "failures", "expected"),
    [
        (["1", "?"], "raise", "reward 'Recorder' on '\\?' \\('Q'\\): no number"),
        (["1", "nan"], "raise", "must be a finite number, not nan"),
        (["?", "nan"], "skip", "no number"),  # none could be scored
        (["1", "?"], "skip", [1.0, None]),
        (["1", "nan"], "skip", [1.0, None]),
        (["1", ""], "raise", [1.0, None]),
        (["1", "<think>2"], "raise", [1.0, None]),
        (["1", "<think>2</think>\n3"], "raise", [1.0, 3.0]),
        (["", " "], "raise", [None, None]),
    ],
)
def test_no_number_stands_for_a_failure(
    recorder: Recorder, texts: list[str], failures: Any, expected: Any
) -> None:
    logged: dict[str, float] = {}
    with reward_func(recorder, failures=failures) as reward:
        given: dict[str, Any] = {
            "prompts": ["Q"] * 2,
            "completions": texts,
            "log_metric": logged.__setitem__,
        }
        if isinstance(expected, str):
            with pytest.raises(RewardError, match=expected):
                reward(**given)
            return
        assert reward(**given) == expected
    assert logged == {"rewards/Recorder/missing": expected.count(None) / 2}


def test_a_skipped_failure_is_reported_once(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    with reward_func(recorder, failures="skip") as reward:
        for _ in range(2):
            reward(prompts=["Q", "Q"], completions=["1", "?"])
    assert caplog.text.count("no number; such completions are left out") == 1


def test_an_unavailable_reward_is_never_skipped(recorder: Recorder) -> None:
    with reward_func(recorder, failures="skip") as reward, pytest.raises(Unavailable):
        reward(prompts=["Q", "Q"], completions=["1", "gone"])


def test_a_held_out_reward_is_logged(recorder: Recorder) -> None:
    class TwoRewards(DetailedReward):
        async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
            return [Score(1.0, second=float(text)) for text in responses]

    logged: dict[str, float] = {}
    with reward_func(TwoRewards()) as reward:
        reward(prompts=["Q", "Q"], completions=["1", "3"], log_metric=logged.__setitem__)
    assert logged["rewards/TwoRewards/held_out"] == 2.0


def test_a_reward_that_cannot_be_reached_is_known_before_the_training() -> None:
    class Down(Recorder):
        async def check(self) -> None:
            raise ConfigError("http://x cannot be reached")

    down = Down()
    with pytest.raises(ConfigError, match="cannot be reached"):
        reward_func(down)
    assert down.closed


def test_the_task_decides_what_is_judged(recorder: Recorder) -> None:
    class Doubled(Task):
        name = "alignment"

        def parse(self, prompt: Prompt, text: str) -> str:
            if text == "none":
                raise AgentError("no response")
            return f"{text}0"

        def judged(self, prompt: Prompt) -> Prompt:
            return Prompt(prompt.id, "judged")  # type: ignore[arg-type]

    with reward_func(recorder, task=Doubled()) as reward:
        assert reward(prompts=["Q", "Q"], completions=["1", "none"]) == [10.0, None]
    assert recorder.asked[0][0].messages[-1].content == "judged"


@pytest.mark.parametrize("completion", [None, [], [3], {"text": "a"}])
def test_what_is_no_completion_is_an_error(recorder: Recorder, completion: Any) -> None:
    with reward_func(recorder) as reward, pytest.raises(ConfigError, match="a completion must be"):
        reward(prompts=["Q"], completions=[completion])


def run_of(folder: Path, reward: Any, rows: bool = False, num_prompts: int = 2) -> Path:
    """A run of the task math, with its data sets if their rows are wanted."""
    folder.mkdir()
    with (folder / "run.yaml").open("w") as file:
        yaml.safe_dump({"reward": reward, "task": "math"}, file)
    prompts = [
        Prompt(str(n), f"Add {n}. Box it.", {"problem": f"Add {n}.", "answer": n})  # type: ignore[arg-type]
        for n in range(num_prompts)
    ]
    journal = Journal(folder / "journal.sqlite", create=True)
    journal.begin({**IDENTITY, "task": "math"}, prompts)
    journal.append_all([(p.id, play(n, 1.0 - n, f"{p.id} {n}")) for p in prompts for n in range(3)])
    if rows:
        Rollouts(journal).save(folder, preference={"rejected_rank": 2})
    journal.close()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("reward") / "run", {"kind": "length"}, rows=True)


def test_a_run_names_its_reward_and_its_task(run: Path) -> None:
    with reward_func(run) as reward:
        assert reward.__name__ == "length"
        longer, shorter = reward(prompts=[user("Q")] * 2, completions=["one two three", "one"])
        assert longer is not None
        assert shorter is not None
        assert reward._task is not None
        assert reward._task.name == "math"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "function", "function": "os:getcwd"}, r"reward.kind: 'function' is code"),
        ({"kind": "my_module:MyReward"}, r"reward.kind: 'my_module:MyReward' is code"),
        ({"kind": ["math"]}, r"reward.kind: \['math'\] is code"),
        (
            {"kind": "minimum", "rewards": [{"reward": {"kind": "function"}}]},
            r"reward.rewards\[0\].reward.kind: 'function' is code",
        ),
        (
            {"kind": "judge", "agent": {"name": "j", "engine": "mine:Agent"}},
            r"reward.agent.engine: 'mine:Agent' is code",
        ),
        ({"kind": "classifier", "model": "m", "trust_remote_code": True}, "trust_remote_code"),
        ("TextReward", "recorded only the name of its reward model, 'TextReward'"),
    ],
)
def test_code_that_a_run_names_is_not_run(tmp_path: Path, entry: Any, message: str) -> None:
    run = run_of(tmp_path / "run", entry)
    with pytest.raises(ConfigError, match=message):
        reward_func(run)


def test_a_process_reward_model_is_no_code_unless_it_brings_its_own() -> None:
    entry: dict[str, Any] = {"kind": "process", "model": "m"}
    assert recorded_reward({"reward": entry}, trust=False, place="run.yaml") == entry
    entry["trust_remote_code"] = True
    with pytest.raises(ConfigError, match=r"reward\.trust_remote_code: True is code"):
        recorded_reward({"reward": entry}, trust=False, place="run.yaml")


def test_trusted_code_is_run(tmp_path: Path) -> None:
    entry = {"kind": "function", "function": "toa_trl.rewards.function:length_reward"}
    with reward_func(run_of(tmp_path / "run", entry), trust=True) as reward:
        assert reward(prompts=["Q"], completions=["one two"]) == [0.02]


def names_of(functions: Sequence[RewardFunc]) -> list[str]:
    names = []
    for function in functions:
        names.append(function.__name__)
        function.close()
    return names


def test_the_rewards_of_a_training(run: Path) -> None:
    assert names_of(rewards_of(None, [str(run)])) == ["length"]
    assert names_of(rewards_of(None, [str(run / "rollouts")])) == ["length"]
    assert names_of(rewards_of("{kind: math}", [str(run)])) == ["math"]
    assert names_of(rewards_of(str(run), ["me/prompts"])) == ["length"]
    two = [{"kind": "length"}, {"kind": "math"}, {"kind": "length"}]
    assert names_of(rewards_of(two, [])) == ["length_1", "math", "length_3"]
    (explicit,) = rewards_of({"kind": "length"}, [str(run)])
    explicit.close()
    assert explicit._task is not None  # what the prompts of a run need


@pytest.mark.parametrize(
    ("given", "datasets", "message"),
    [
        (None, ["me/prompts"], "the prompts come from no run; give the entry"),
        (None, ["RUN", "OTHER"], "the prompts come from 2 runs"),
        ("{kind: [", ["RUN"], "reward: neither YAML nor JSON"),
        ("{kind: lenght}", ["RUN"], "unknown kind 'lenght'"),
        ("runs/none", ["RUN"], "runs/none"),
    ],
)
def test_rewards_that_a_training_cannot_have(
    tmp_path: Path, given: Any, datasets: list[str], message: str
) -> None:
    for name in ("RUN", "OTHER"):
        run_of(tmp_path / name, {"kind": "length"})
    with pytest.raises(ConfigError, match=message):
        rewards_of(given, [str(tmp_path / name) for name in datasets])
    with pytest.raises(ConfigError, match="reward_failures: "):
        rewards_of({"kind": "length"}, [], failures="ignore")


def load(name: Path, test_split_size: float | None = None, **script: Any) -> TrainingData:
    options = {"dataset_config": None, "dataset_streaming": False, "dataset_train_split": "train"}
    training = SimpleNamespace(
        seed=0, eval_strategy="no", main_process_first=lambda desc: nullcontext()
    )
    given = SimpleNamespace(dataset_name=str(name), **{**options, **script})
    mixture = SimpleNamespace(datasets=[], test_split_size=test_split_size)
    return load_training_data("rollouts", given, training, mixture)


@pytest.mark.parametrize("part", [".", "rollouts"])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_prompts_of_a_run_are_read_once_each(run: Path, part: str, streaming: bool) -> None:
    data = load(run / part, dataset_streaming=streaming)
    rows = list(data.train)
    assert [row["prompt_id"] for row in rows] == ["0", "1"]
    assert [json.loads(row["metadata"])["answer"] for row in rows] == [0, 1]
    assert rows[0].keys() == {"prompt", "prompt_id", "metadata"}
    assert data.sources[0]["fingerprint"]


def test_prompts_that_overlap_with_an_evaluation_set_are_left_out(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overlap = Overlap("1", "prompt", "test.jsonl", "p", 20, "the same words")
    audit = replace(read_audit(run), contamination=Contamination((), 2, 2, (overlap,), 0))
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    audit.write(copy / "audit.json")
    assert [row["prompt_id"] for row in load(copy).train] == ["0"]
    assert "1 prompts are left out: they overlap" in caplog.text


def test_other_rows_keep_their_columns(tmp_path: Path) -> None:
    rows = [{"prompt": "What?", "answer": "1", "metadata": None}]
    Dataset.from_list(rows).to_json(tmp_path / "train.jsonl")
    assert list(load(tmp_path).train) == rows


def test_prompts_of_a_run_can_be_held_out(run: Path) -> None:
    data = load(run, test_split_size=1)
    held_out, trained = (list(rows) for rows in (data.test, data.train))
    assert [len(held_out), len(trained)] == [1, 1]
    assert held_out[0].keys() == trained[0].keys() == {"prompt", "prompt_id", "metadata"}
