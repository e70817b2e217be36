"""run.yaml is written when a run starts, whoever starts it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import EchoAgent, TextReward
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.sampling.identity import fingerprint
from toa_trl.sampling.run_file import finish_run_file, run_file_of_shards
from toa_trl.types import Completion, Message, Sampling

PROMPTS = ["One?", "Two?"]


class Killed(BaseException):
    """Ends a run as a kill would."""


class DyingAgent(EchoAgent):
    """Dies on its second call."""

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        if self.asked:
            raise Killed
        return await super().generate(messages, sampling=sampling, seed=seed)


def sampler(agent: Any, **changes: Any) -> TOASampler:
    settings = {"search": "parallel", "budget": 3, "seed": 5, "preference": {"policy": "worst"}}
    return TOASampler([agent], TextReward(), progress=False, **{**settings, **changes})


def read(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((run_dir / "run.yaml").read_text())
    return content


def test_an_interrupted_run_of_the_python_api_has_its_configuration(tmp_path: Path) -> None:
    with pytest.raises((Killed, BaseExceptionGroup)):
        sampler(DyingAgent("a")).sample(PROMPTS, output_dir=tmp_path)
    recorded = read(tmp_path)
    assert (recorded["search"], recorded["budget"], recorded["seed"]) == ("parallel", 3, 5)
    assert recorded["preference"] == {"policy": "worst"}
    assert recorded["agents"] == [{"name": "a"}]
    assert recorded["fingerprint"] == fingerprint(Rollouts.load(tmp_path).identity)
    assert {"python", "toa_trl"} <= recorded["versions"].keys()
    assert "started" in recorded
    assert "finished" not in recorded


def test_at_the_end_only_the_time_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_start: list[dict[str, Any]] = []

    class Looking(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            at_start.append(read(tmp_path))
            return await super().generate(messages, sampling=sampling, seed=seed)

    entry = {"name": "b", "engine": "scripted"}
    given = sampler(entry, budget=1)
    sampler(Looking("a")).sample(PROMPTS, output_dir=tmp_path)
    finished = read(tmp_path)
    assert {**at_start[0], "finished": finished["finished"]} == finished
    sampler(Looking("a")).sample(PROMPTS, output_dir=tmp_path)  # nothing is left to do
    assert read(tmp_path) == finished
    given.sample(PROMPTS, output_dir=tmp_path / "entries")
    assert read(tmp_path / "entries")["agents"] == [entry]


def test_the_configured_pairing_policy_is_used_when_the_data_are_saved(tmp_path: Path) -> None:
    rollouts = sampler(EchoAgent("a")).sample(PROMPTS, output_dir=tmp_path)
    rollouts.save(tmp_path)
    assert "policy: worst" in (tmp_path / "README.md").read_text()


def test_started_stays_the_first_start_and_resumes_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(1_700_000_000, 1_700_001_000, 10))
    monkeypatch.setattr("toa_trl.sampling.run_file.time.time", lambda: float(next(times)))
    for _ in range(3):
        with pytest.raises((Killed, BaseExceptionGroup)):
            sampler(DyingAgent("a"), budget=9).sample(PROMPTS, output_dir=tmp_path)
    recorded = read(tmp_path)
    first = "2023-11-14T22:13:20+00:00"
    assert recorded["started"] == first
    assert len(recorded["resumed"]) == 2
    assert sorted({first, *recorded["resumed"]}) == [first, *recorded["resumed"]]


def test_without_run_yaml_the_first_play_is_the_start(tmp_path: Path) -> None:
    with pytest.raises((Killed, BaseExceptionGroup)):
        sampler(DyingAgent("a"), budget=9, prompts_in_flight=1).sample(PROMPTS, output_dir=tmp_path)
    (tmp_path / "run.yaml").unlink()
    journal = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(journal)) as db:
        db.execute("UPDATE plays SET written_s = 1700000000.0")
        db.commit()
    with pytest.raises((Killed, BaseExceptionGroup)):
        sampler(DyingAgent("a"), budget=9, prompts_in_flight=1).sample(PROMPTS, output_dir=tmp_path)
    assert read(tmp_path)["started"] == "2023-11-14T22:13:20+00:00"
    assert len(read(tmp_path)["resumed"]) == 1


def test_shards_whose_configuration_is_refused_leave_run_yaml_as_it_was(tmp_path: Path) -> None:
    with run_file_of_shards(tmp_path, {"budget": 3}):
        assert read(tmp_path)["budget"] == 3
    extension = {"time_s": 0.0, "changes": ["budget: 2 -> 3"]}
    identity = {"search_params": {"width": 4}}
    finish_run_file(tmp_path, identity, [extension])
    before = read(tmp_path)
    assert before["search_params"] == {"width": 4}
    assert before["extended"][0]["changes"] == ["budget: 2 -> 3"]

    def refuse() -> None:
        with run_file_of_shards(tmp_path, {"budget": 9}):
            assert read(tmp_path)["budget"] == 9
            raise ConfigError("refused by a worker")

    with pytest.raises(ConfigError, match="refused"):
        refuse()
    assert read(tmp_path) == before
