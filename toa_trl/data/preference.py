"""Rollouts -> preference pairs. The chosen response is the best; the policy says which one it is preferred to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from toa_trl.data.sft import OVERLAP, assistant, ids, no_response, text, usable
from toa_trl.errors import ConfigError
from toa_trl.types import Play, Rollout, as_dicts
from toa_trl.utils.registry import check_number

POLICIES = ("rank", "worst", "margin", "same_parent", "cross_agent")
Ranked = tuple[int, Play]


def preference_rows(
    rollouts: Iterable[Rollout],
    *,
    policy: str = "rank",
    rejected_rank: int | float = 30,
    margin: float | None = None,
    keep_truncated: bool = False,
    without: Collection[str] = (),
) -> tuple[Iterator[dict[str, Any]], Counter[str]]:
    """Rows in TRL's conversational preference format, made as they are read, and why prompts gave none.

    At most one per prompt. A rejected response always has a lower reward and another text than the chosen one.

    Args:
        rollouts: of a run.
        policy: what the best response is paired with:
            "rank": the response at `rejected_rank`, or the next usable one below (the paper: 30 of 160);
            "worst": the one with the lowest reward;
            "margin": the best one whose reward is at least `margin` lower;
            "same_parent": the worst of those that hang under the same parent in the tree (for the best response that has
                such siblings: what differs is then the answer, not the draft it started from);
            "cross_agent": as "rank", among the responses of other agents.
        rejected_rank: among all scored responses of the prompt, where 1 is the best: a whole number >= 2, or a fraction
            of their number in (0, 1), e.g. 0.1875 for the paper's 30 of 160.
        margin: in units of the raw reward, > 0; for "margin" only.
        keep_truncated: take responses that max_tokens cut short, too.
        without: ids of prompts that give no row, because they overlap with an evaluation set.

    Returns:
        Rows {prompt, chosen, rejected, prompt_id, chosen_reward, rejected_reward, chosen_rank, rejected_rank,
        chosen_agent, rejected_agent, chosen_play, rejected_play}, and a count of prompts by reason, complete once the
        rows are exhausted.

    Raises:
        ConfigError: an unknown policy, or a value out of range.
    """
    _check(policy, rejected_rank, margin)
    dropped, left_out = Counter[str](), ids("preference", without)

    def rows() -> Iterator[dict[str, Any]]:
        for rollout in rollouts:
            ranked, num_scored = usable(rollout, keep_truncated), len(rollout.scored)
            rank = (
                rejected_rank
                if isinstance(rejected_rank, int)
                else max(2, round(rejected_rank * num_scored))
            )
            pair: tuple[Ranked, Ranked] | str
            if rollout.prompt.id in left_out:
                pair = OVERLAP
            elif not ranked:
                pair = no_response(rollout)
            elif policy == "same_parent":
                pair = _siblings(ranked)
            else:
                pair = _against(ranked, policy, rank, margin, num_scored)
            if isinstance(pair, str):
                dropped[pair] += 1
            else:
                yield _row(rollout, *pair)

    return rows(), dropped


def _against(
    ranked: list[Ranked], policy: str, rank: int, margin: float | None, num_scored: int
) -> tuple[Ranked, Ranked] | str:
    chosen = ranked[0]
    below = _worse(chosen, ranked)
    if not below:
        return "no other text has a lower reward than the best"
    if policy == "worst":
        return chosen, below[-1]
    if policy == "margin":
        wide = [r for r in below if _reward(chosen) - _reward(r) >= (margin or 0.0)]
        return (chosen, wide[0]) if wide else f"no response is {margin:g} below the best"
    if num_scored < rank:
        return f"fewer than {rank} scored responses"
    if policy == "cross_agent":
        below = [r for r in below if r[1].action.agent != chosen[1].action.agent]
    low = [r for r in below if r[0] >= rank]
    others = " of another agent" if policy == "cross_agent" else ""
    return (chosen, low[0]) if low else f"no usable response{others} at rank {rank} or below"


def _siblings(ranked: list[Ranked]) -> tuple[Ranked, Ranked] | str:
    for chosen in ranked:
        siblings = _worse(
            chosen, [r for r in ranked if r[1].action.parent == chosen[1].action.parent]
        )
        if siblings:
            return chosen, siblings[-1]
    return "no two responses of one parent differ in text and reward"


def _worse(chosen: Ranked, ranked: list[Ranked]) -> list[Ranked]:
    return [r for r in ranked if _reward(r) < _reward(chosen) and text(r[1]) != text(chosen[1])]


def _reward(ranked: Ranked) -> float:
    assert ranked[1].reward is not None
    return ranked[1].reward


def _row(rollout: Rollout, chosen: Ranked, rejected: Ranked) -> dict[str, Any]:
    sides = {"chosen": chosen, "rejected": rejected}
    return {
        "prompt": as_dicts(rollout.prompt.messages),
        **{side: assistant(play) for side, (_, play) in sides.items()},
        "prompt_id": rollout.prompt.id,
        **{f"{side}_reward": play.reward for side, (_, play) in sides.items()},
        **{f"{side}_rank": rank for side, (rank, _) in sides.items()},
        **{f"{side}_agent": play.action.agent for side, (_, play) in sides.items()},
        **{f"{side}_play": play.index for side, (_, play) in sides.items()},
    }


def _check(policy: str, rejected_rank: object, margin: object) -> None:
    if policy not in POLICIES:
        raise ConfigError(
            f"preference: policy {policy!r} is not known; choose one of {', '.join(POLICIES)}"
        )
    whole = (
        isinstance(rejected_rank, int)
        and not isinstance(rejected_rank, bool)
        and rejected_rank >= 2
    )
    if not whole and not (isinstance(rejected_rank, float) and 0 < rejected_rank < 1):
        raise ConfigError(
            "preference: rejected_rank must be a whole number >= 2, or a fraction of the responses in (0, 1), "
            f"not {rejected_rank!r}"
        )
    if (policy == "margin") != (margin is not None):
        raise ConfigError(
            "preference: margin goes with the policy 'margin', and that policy needs one"
        )
    if margin is not None:
        check_number("preference: margin", margin, at_least=0, above=True)
