"""Runs of one configuration over different prompts are joined; anything else is refused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import EchoAgent, TextReward, killed_at
from toa_trl.cli.main import run as command
from toa_trl.data.review import Mark, review_of, set_mark
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.sampling.identity import fingerprint
from toa_trl.sampling.journal import Journal, locked
from toa_trl.sampling.journal.grants import read_grants
from toa_trl.sampling.merging import merge_runs
from toa_trl.types import Play

PROMPTS = [{"id": name, "prompt": f"What is {name}?"} for name in "abcdef"]


def sample(folder: Path, prompts: Sequence[Any], **changes: Any) -> Path:
    given = {
        "agents": [EchoAgent("x"), EchoAgent("y")],
        "reward_model": TextReward(),
        "search": "toa",
        "budget": 3,
        "progress": False,
        **changes,
    }
    TOASampler(**given).sample(prompts, folder)._journal.close()
    return folder


def plays(folder: Path) -> list[tuple[str, Play]]:
    rollouts = Rollouts.load(folder)
    found = [(r.prompt.id, play) for r in rollouts for play in r.plays]
    rollouts._journal.close()
    return found


def test_the_merged_run_is_that_of_all_prompts(tmp_path: Path) -> None:
    whole = sample(tmp_path / "whole", PROMPTS)
    one, two = sample(tmp_path / "one", PROMPTS[:2]), sample(tmp_path / "two", PROMPTS[2:])
    command(["merge", str(one), str(two), "--output", str(tmp_path / "merged")])
    assert plays(tmp_path / "merged") == plays(whole)
    identity = Rollouts.load(tmp_path / "merged").identity
    assert identity == Rollouts.load(whole).identity
    recorded = yaml.safe_load((tmp_path / "merged/run.yaml").read_text())
    assert recorded["fingerprint"] == fingerprint(identity)
    assert recorded["merged"] == [str(one), str(two)]
    command(["data", str(tmp_path / "merged"), "--policy", "worst"])
    assert len(Rollouts.load(tmp_path / "merged").to_sft()) == 6
    sample(tmp_path / "merged", PROMPTS)  # it is resumed as any run


@given(cuts=st.sets(st.integers(1, 5), min_size=1))
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_in_how_many_parts_a_run_was_sampled_does_not_matter(
    tmp_path: Path, cuts: set[int]
) -> None:
    shutil.rmtree(tmp_path)
    bounds = [0, *sorted(cuts), len(PROMPTS)]
    parts = [sample(tmp_path / f"{start}", PROMPTS[start:end]) for start, end in pairwise(bounds)]
    merge_runs(parts, tmp_path / "merged")
    assert plays(tmp_path / "merged") == [row for part in parts for row in plays(part)]


def test_adaptive_runs_are_merged_with_their_decisions(tmp_path: Path) -> None:
    adaptive: dict[str, Any] = {"budget": 6, "allocation": {"kind": "adaptive", "min_plays": 2}}
    one = sample(tmp_path / "one", PROMPTS[:2], **adaptive)
    two = sample(tmp_path / "two", PROMPTS[2:], **adaptive)
    merge_runs([one, two], tmp_path / "merged")
    assert Rollouts.load(tmp_path / "merged").unfinished == 0
    first, second, both = (
        read_grants(Rollouts.load(folder)._journal) for folder in (one, two, tmp_path / "merged")
    )
    num = len(first)
    assert both[:num] == first
    assert [(g.prompt - 2, g.plays, g.gain) for g in both[num:]] == [
        (g.prompt, g.plays, g.gain) for g in second
    ]
    assert [g.wave for g in both] == list(range(num + len(second)))
    assert both[num].round == first[-1].round + 1
    before = plays(tmp_path / "merged")
    sample(tmp_path / "merged", PROMPTS, **adaptive)  # nothing is left to do
    assert plays(tmp_path / "merged") == before
    TOASampler(
        [EchoAgent("x"), EchoAgent("y")], TextReward(), progress=False, **{**adaptive, "budget": 8}
    ).sample(PROMPTS, tmp_path / "merged", extend=True)
    extended = Rollouts.load(tmp_path / "merged")
    assert extended.unfinished == 0
    assert len(plays(tmp_path / "merged")) == 8 * len(PROMPTS)
    assert set(before) <= set(plays(tmp_path / "merged"))


def test_marks_of_human_reviews_are_joined(tmp_path: Path) -> None:
    one, two = sample(tmp_path / "one", PROMPTS[:2]), sample(tmp_path / "two", PROMPTS[2:])
    set_mark(one, ("a", 1, 0), Mark("reject"))
    set_mark(two, ("c", 2, 0), Mark("edit", chosen="better"))
    merge_runs([one, two], tmp_path / "merged")
    marks = review_of(tmp_path / "merged").marks
    assert [(*key, mark.mark, mark.chosen) for key, mark in marks.items()] == [
        ("a", 1, 0, "reject", None),
        ("c", 2, 0, "edit", "better"),
    ]

    set_mark(two, ("a", 1, 0), Mark("reject"))  # a copy of the other run's marks
    merge_runs([one, two], tmp_path / "again")
    assert review_of(tmp_path / "again").marks.keys() == marks.keys()
    set_mark(two, ("a", 1, 0), Mark("accept"))
    with pytest.raises(ConfigError, match=r"two/review\.jsonl: the pair 1/0 of 'a' has another"):
        merge_runs([one, two], tmp_path / "contradicting")
    set_mark(one, ("a", 1, 0), Mark("edit", chosen="this"))
    set_mark(two, ("a", 1, 0), None)
    set_mark(two, ("a", 2, 1), Mark("edit", rejected="that"))  # the same response in another pair
    with pytest.raises(ConfigError, match=r"the response 1 of 'a' has another mark in .*one/rev"):
        merge_runs([one, two], tmp_path / "contradicting")
    assert not (tmp_path / "contradicting").exists()


def test_a_merged_run_is_as_unfinished_as_its_parts(tmp_path: Path) -> None:
    adaptive: dict[str, Any] = {"budget": 6, "allocation": {"kind": "adaptive", "min_plays": 2}}
    one = sample(tmp_path / "one", PROMPTS[:2], **adaptive)
    two = sample(tmp_path / "two", PROMPTS[2:], limits={"max_tokens": 25}, **adaptive)
    assert Rollouts.load(two).unfinished == 4
    merge_runs([one, two], tmp_path / "merged")
    assert Rollouts.load(tmp_path / "merged").unfinished == 6
    sample(tmp_path / "merged", PROMPTS, **adaptive)
    assert Rollouts.load(tmp_path / "merged").unfinished == 0
    assert len(plays(tmp_path / "merged")) == 6 * len(PROMPTS)


@pytest.mark.parametrize(
    ("changes", "prompts", "named"),
    [
        ({"budget": 4}, PROMPTS[2:], "another configuration than .*budget: 3 -> 4"),
        ({"seed": 4}, PROMPTS[2:], "another configuration than .*seed: 0 -> 4"),
        (
            {"agents": [EchoAgent("y"), EchoAgent("x")]},
            PROMPTS[2:],
            "order of agents: x, y -> y, x",
        ),
        ({}, PROMPTS[1:], r"the prompt 'b' is also in .*one/journal.sqlite"),
        ({}, [{"id": "z", "prompt": "What is a?"}], r"the prompt 'z' is also in .* as 'a'"),
        ({}, [{"id": "a", "prompt": "Who?"}], r"the prompt 'a' is also in"),
    ],
)
def test_other_configurations_and_overlapping_prompts_are_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], prompts: Sequence[Any], named: str
) -> None:
    one = sample(tmp_path / "one", PROMPTS[:2])
    two = sample(tmp_path / "two", prompts, **changes)
    with pytest.raises(ConfigError, match=named) as error:
        merge_runs([one, two], tmp_path / "merged")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "merged").exists()


def test_the_folders_are_checked_first(tmp_path: Path) -> None:
    one, two = sample(tmp_path / "one", PROMPTS[:2]), sample(tmp_path / "two", PROMPTS[2:])
    for runs, output, named in [
        ([one], tmp_path / "merged", "at least two"),
        ([one, one], tmp_path / "merged", "two different runs"),
        ([one, tmp_path / "none"], tmp_path / "merged", "there is no journal"),
        ([one, two], two, "holds a run already"),
        ([one, two], one / "sft", "of a run"),
    ]:
        with pytest.raises(ConfigError, match=named):
            merge_runs(runs, output)
    (tmp_path / "empty").mkdir()
    Journal(tmp_path / "empty/journal.sqlite", create=True).close()
    with pytest.raises(ConfigError, match="has not begun yet"):
        merge_runs([one, tmp_path / "empty"], tmp_path / "merged")
    lock = locked(two / "journal.sqlite")
    with pytest.raises(ConfigError, match="a process is writing this run"):
        merge_runs([one, two], tmp_path / "merged")
    lock.release()
    for own in ("run.yaml", "prompts.jsonl", "review.jsonl"):
        (tmp_path / own).mkdir()
        (tmp_path / own / own).write_text("mine: true\n")
        with pytest.raises(ConfigError, match=f"{own}: was not written by toa_trl"):
            merge_runs([one, two], tmp_path / own)
        assert (tmp_path / own / own).read_text() == "mine: true\n"
        assert len(list((tmp_path / own).iterdir())) == 1


def test_killed_at_any_file_operation_a_merge_can_be_repeated(tmp_path: Path) -> None:
    one, two = sample(tmp_path / "one", PROMPTS[:2]), sample(tmp_path / "two", PROMPTS[2:])
    before = {path: path.read_bytes() for path in (one / "journal.sqlite", two / "journal.sqlite")}
    output = tmp_path / "merged"
    number = 0
    while True:
        number += 1
        ended = not killed_at(number, tmp_path, lambda: merge_runs([one, two], output))
        if not (output / "journal.sqlite").exists():
            merge_runs([one, two], output)
        assert plays(output) == plays(one) + plays(two)
        assert not list(output.glob(".*toa_trl-new*"))
        shutil.rmtree(output)
        if ended:
            break
    assert number > 10
    assert {path: path.read_bytes() for path in before} == before
