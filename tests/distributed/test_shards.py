"""A run in shards ends as one that is not.

What Ray adds to it is tested in tests/integration/test_ray.py.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.helpers import EchoAgent, TextReward, killed_at
from toa_trl import Rollouts, TOASampler
from toa_trl.distributed.shards import (
    ShardProgress,
    check_not_sharded,
    grow,
    merge,
    plan,
    read_progress,
    sample_shard,
)
from toa_trl.errors import AgentError, ConfigError
from toa_trl.rewards.spending import spend
from toa_trl.sampling.extension import Extend
from toa_trl.sampling.journal.grants import granted_plays
from toa_trl.types import Message, Prompt

PROMPTS = [Prompt(f"p{number}", f"Say {number}.") for number in range(7)]  # type: ignore[arg-type]


def sampler(budget: int = 6, fails: float = 0.2) -> TOASampler:
    return TOASampler(
        [EchoAgent("a", fails), EchoAgent("b")],
        TextReward(),
        "toa",
        budget,
        {"tau": 0.5},
        progress=False,
    )


def sample(
    run_dir: Path, num_shards: int, skip: tuple[int, ...] = (), by: TOASampler | None = None
) -> list[Path]:
    folders = begin(run_dir, num_shards)
    for number, folder in enumerate(folders):
        if number not in skip:
            sample_shard(by or sampler(), PROMPTS[number :: len(folders)], folder)
    return folders


def begin(
    run_dir: Path, num_shards: int | None, prompts: list[Prompt] = PROMPTS, default: int = 2
) -> list[Path]:
    (run_dir / "shards").mkdir(parents=True, exist_ok=True)
    return plan(run_dir, prompts, num_shards, default)


@pytest.mark.parametrize("num_shards", [1, 3, 7])
def test_a_run_in_shards_ends_as_one_that_is_not(tmp_path: Path, num_shards: int) -> None:
    whole = sampler().sample(PROMPTS, tmp_path / "whole")
    folders = sample(tmp_path / "run", num_shards)
    merged = merge(tmp_path / "run", PROMPTS, folders)
    assert [rollout.prompt.id for rollout in merged] == [prompt.id for prompt in PROMPTS]
    assert list(merged) == list(whole)
    assert merged.identity == whole.identity
    assert (merged.given_up, merged.limit, merged.unfinished) == ((), None, 0)
    progress = [read_progress(folder) for folder in folders]
    plays = [play for rollout in whole for play in rollout.plays]
    assert sum(shard.num_scored for shard in progress) == 7 * 6
    assert sum(shard.num_failed for shard in progress) == len(plays) - 7 * 6 > 0
    assert all(shard.done for shard in progress)


def test_what_rewards_spent_in_shards_counts_once_in_the_run(tmp_path: Path) -> None:
    class Spending(TextReward):
        async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
            spend(10)
            return await super().score(prompt, responses)

    by = TOASampler([EchoAgent("a")], Spending(), budget=2, progress=False)
    folders = sample(tmp_path, 3, by=by)
    for _ in range(2):
        journal = merge(tmp_path, PROMPTS, folders)._journal
        assert journal.reward_spending.tokens == 10 * 2 * len(PROMPTS)
        journal.close()


def test_merging_again_adds_what_is_new(tmp_path: Path) -> None:
    folders = sample(tmp_path, 2)
    before = list(merge(tmp_path, PROMPTS, folders))
    assert list(merge(tmp_path, PROMPTS, folders)) == before
    assert list(Rollouts.load(tmp_path)) == before


def test_the_number_of_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert [folder.name for folder in begin(tmp_path, None)] == ["0000", "0001"]
    assert len(begin(tmp_path, 5)) == 5, "before the first play, the plan can change"
    assert len(begin(tmp_path, 100)) == len(PROMPTS), "no shard is empty"
    sample(tmp_path, 3, skip=(1, 2))
    caplog.clear()
    assert len(begin(tmp_path, None)) == len(begin(tmp_path, 3)) == 3
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert len(begin(tmp_path, 2)) == 3
    assert "with 3 shards and keeps that number instead of 2" in caplog.text


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    begin(tmp_path, 3, PROMPTS[1:])  # nothing was played, so these are forgotten
    sample(tmp_path, 3, skip=(0, 1))
    with pytest.raises(ConfigError, match="started with other prompts"):
        begin(tmp_path, 3, PROMPTS[::-1])


def test_another_configuration_is_refused_by_every_shard(tmp_path: Path) -> None:
    folders = begin(tmp_path, 2)
    sample_shard(sampler(), PROMPTS[::2], folders[0])
    with pytest.raises(ConfigError, match="budget: 6 -> 7"):
        sample_shard(sampler(budget=7), PROMPTS[1::2], folders[1])
    assert not folders[1].exists()
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {
        "0000",
        "identity.json",
        "plan.json",
    }


def test_a_configuration_that_came_to_nothing_is_forgotten(tmp_path: Path) -> None:
    folders = begin(tmp_path, 1)
    (tmp_path / "shards" / "identity.json").write_text(json.dumps({"budget": 99}))
    sample(tmp_path, 1)
    assert read_progress(folders[0]).done


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_plan_that_is_lost(tmp_path: Path, content: str | None) -> None:
    sample(tmp_path, 2)
    path = tmp_path / "shards" / "plan.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ConfigError, match=r"plan\.json cannot be read"):
        begin(tmp_path, 2)


def test_a_run_keeps_its_runner(tmp_path: Path) -> None:
    sampler().sample(PROMPTS, tmp_path / "local")
    check_not_sharded(tmp_path / "local")
    with pytest.raises(ConfigError, match="--runner local"):
        begin(tmp_path / "local", 2)
    begin(tmp_path / "ray", 2)
    check_not_sharded(tmp_path / "ray")
    folders = sample(tmp_path / "ray", 2)
    merge(tmp_path / "ray", PROMPTS, folders)
    with pytest.raises(ConfigError, match="--runner ray"):
        check_not_sharded(tmp_path / "ray")
    begin(tmp_path / "ray", 2)


def grown(budget: int, **changes: Any) -> TOASampler:
    given = {"search_params": {"tau": 0.5}, "progress": False, **changes}
    return TOASampler([EchoAgent("a", 0.2), EchoAgent("b")], TextReward(), "toa", budget, **given)


def extend_run(
    run_dir: Path, prompts: list[Prompt], by: TOASampler, extend: Extend = True
) -> Rollouts:
    folders = plan(run_dir, prompts, None, 2, extend)
    grow(by, prompts, folders, extend)
    for shard, folder in enumerate(folders):
        if not read_progress(folder).done:
            sample_shard(by, prompts[shard :: len(folders)], folder, extend)
    return merge(run_dir, prompts, folders)


MORE = [*PROMPTS, *(Prompt(f"p{n}", (Message("user", f"Say {n}."),)) for n in range(7, 10))]


@pytest.mark.parametrize(
    ("prompts", "budget", "extend"),
    [
        (MORE, 6, True),
        (MORE, 8, "keep_width"),
        (PROMPTS, 12, "given"),
    ],
)
@pytest.mark.parametrize("skip", [(), (1,)])
def test_a_run_in_shards_grows_as_one_that_is_not(
    tmp_path: Path, prompts: list[Prompt], budget: int, extend: Extend, skip: tuple[int, ...]
) -> None:
    by = grown(budget)
    sampler().sample(PROMPTS, tmp_path / "whole")
    folders = sample(tmp_path / "run", 3, skip)
    if not skip:  # else a worker died before it began, and the shards are not merged yet
        merge(tmp_path / "run", PROMPTS, folders)
    expected = by.sample(prompts, tmp_path / "whole", extend)
    run = extend_run(tmp_path / "run", prompts, by, extend)
    if not skip or extend is True:
        assert list(run) == list(expected)
    assert run.identity == expected.identity
    assert run.unfinished == 0
    changes = [] if skip else [change["changes"] for change in expected.extensions]
    assert [change["changes"] for change in run.extensions] == changes
    assert list(extend_run(tmp_path / "run", prompts, by, extend)) == list(run)  # by nothing
    assert len(Rollouts.load(tmp_path / "run").extensions) == len(changes)


@pytest.mark.parametrize(
    ("by", "prompts", "named"),
    [
        (grown(5), PROMPTS, "budget: must be >= 6"),
        (grown(12), PROMPTS, "keep_width"),
        (grown(6, seed=1), PROMPTS, "seed: 0 -> 1"),
        (grown(6), PROMPTS[1:], "the first prompts are not those of the run"),
        (grown(6), [MORE[8], *PROMPTS], "the first prompts are not those of the run"),
    ],
)
def test_what_is_no_growth_leaves_the_shards_as_they_are(
    tmp_path: Path, by: TOASampler, prompts: list[Prompt], named: str
) -> None:
    before = list(merge(tmp_path, PROMPTS, sample(tmp_path, 2)))
    with pytest.raises(ConfigError, match=named) as error:
        extend_run(tmp_path, prompts, by)
    assert "\n" not in str(error.value)
    assert list(merge(tmp_path, PROMPTS, sample(tmp_path, 2))) == before
    with pytest.raises(ConfigError, match="there is no run"):
        extend_run(tmp_path / "none", PROMPTS, by)


def test_killed_at_any_file_operation_the_growth_of_shards_can_be_repeated(tmp_path: Path) -> None:
    before, prompts, more = tmp_path / "before", PROMPTS[:2], MORE[:3]
    small = {"search_params": {"tau": 0.5, "width": 2}}
    folders = begin(before, 2, prompts)
    for shard, folder in enumerate(folders):
        sample_shard(grown(2, **small), prompts[shard::2], folder)
    merge(before, prompts, folders)
    by, number, ended = grown(3, **small), 0, False
    expected = list(by.sample(more))
    while not ended:
        number += 3  # every third operation, which is enough here
        folder = tmp_path / str(number)
        shutil.copytree(before, folder)
        shards = [folder / "shards" / path.name for path in folders]
        ended = not killed_at(number, folder, partial(grow, by, more, shards, True))
        assert list(extend_run(folder, more, by)) == expected
    assert number > 8


def test_what_was_given_up_is_tried_again(tmp_path: Path) -> None:
    class Moody(EchoAgent):
        in_a_mood = True

        async def generate(self, messages, **further):  # type: ignore[no-untyped-def]
            if self.in_a_mood and messages[-1].content.startswith("Say 2"):
                raise AgentError("in a mood")
            return await super().generate(messages, **further)

    agent = Moody("a")
    moody = TOASampler([agent], TextReward(), "best_of_n", budget=3, progress=False)
    folders = sample(tmp_path, 2, by=moody)
    first = read_progress(folders[0])
    assert first == ShardProgress(9, first.num_failed, given_up=("p2",), limit=None, done=False)
    assert read_progress(folders[1]).done
    assert merge(tmp_path, PROMPTS, folders).given_up == ("p2",)
    agent.in_a_mood = False
    sample_shard(moody, PROMPTS[::2], folders[0])
    again = merge(tmp_path, PROMPTS, folders)
    assert (again.given_up, again.unfinished) == ((), 0)


def test_a_limit_leaves_a_shard_to_go_on_with(tmp_path: Path) -> None:
    agents = [EchoAgent("a")]
    rest: dict[str, Any] = {"search": "best_of_n", "budget": 3, "progress": False}
    limited = TOASampler(
        agents, TextReward(), limits={"max_tokens": 20}, prompts_in_flight=1, **rest
    )
    folders = sample(tmp_path, 1, by=limited)
    assert not read_progress(folders[0]).done
    merged = merge(tmp_path, PROMPTS, folders)
    assert "max_tokens" in str(merged.limit)
    assert merged.unfinished == 6
    sample(tmp_path, 1, by=TOASampler(agents, TextReward(), **rest))
    assert merge(tmp_path, PROMPTS, folders).unfinished == 0


def test_a_worker_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = sample(tmp_path, 1)
    before = FileLock(folder / "journal.sqlite.lock", thread_local=False)
    before.acquire()
    threading.Timer(0.3, before.release).start()
    sample(tmp_path, 1)
    before.acquire()
    monkeypatch.setattr("toa_trl.distributed.shards.TAKEOVER_S", 0.1)
    with pytest.raises(ConfigError, match="another process is writing"):
        sample(tmp_path, 1)
    before.release()


def test_a_shard_whose_prompts_are_all_given_up_holds_up_no_other(tmp_path: Path) -> None:
    class Broken(EchoAgent):
        async def generate(self, *given: Any, **further: Any) -> Any:
            raise AgentError("too long")

    broken = TOASampler(
        [Broken("a"), Broken("b")], TextReward(), "toa", 6, {"tau": 0.5}, progress=False
    )
    broken.identity = sampler().identity
    folders = sample(tmp_path, 2, skip=(1,))
    sample_shard(broken, PROMPTS[1::2], folders[1])
    assert not read_progress(folders[1]).done
    rollouts = merge(tmp_path, PROMPTS, folders)
    assert sorted(rollouts.given_up) == ["p1", "p3", "p5"]
    assert rollouts.unfinished == 3


def test_shards_of_an_adaptive_run_keep_their_decisions(tmp_path: Path) -> None:
    by = TOASampler(
        [EchoAgent("a"), EchoAgent("b")],
        TextReward(),
        budget=6,
        progress=False,
        allocation={"kind": "adaptive", "min_plays": 2},
    )
    folders = sample(tmp_path, 3, by=by)
    for _ in range(2):  # it can be repeated
        merged = merge(tmp_path, PROMPTS, folders)
        plays = {rollout.prompt.id: len(rollout.plays) for rollout in merged}
        assert merged.unfinished == 0
        assert granted_plays(merged._journal) == plays
        assert sum(plays.values()) == 6 * len(PROMPTS)
        merged._journal.close()
