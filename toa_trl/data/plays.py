"""The plays of a prompt that rows may be made of, and the columns that they become."""

from collections.abc import Sequence
from typing import Any

from toa_trl.types import Play, Rollout, as_dicts, finish_of

OVERLAP = "overlaps with an evaluation set"
Ranked = tuple[int, Play]
"""The rank among all scored plays of the prompt, where 1 is the best, and the play."""
Row = dict[str, Any]


def usable(rollout: Rollout, keep_truncated: bool) -> list[Ranked]:
    """Return (rank, play) of the usable scored plays, best first; rank 1 is the best of all."""
    whole = {"stop", "length"} if keep_truncated else {"stop"}
    ranked = enumerate(rollout.ranked, 1)
    return [(rank, play) for rank, play in ranked if text(play) and finish_reason(play) in whole]


def distinct(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Return the first of the plays with one text, in their order."""
    first: dict[str, Ranked] = {}
    for rank, play in ranked:
        first.setdefault(text(play), (rank, play))
    return list(first.values())


def spread(ranked: Sequence[Ranked], number: int | None) -> list[Ranked]:
    """Return so many plays at equal distances in rank, with the first and the last; None: all."""
    if number is None or len(ranked) <= number:
        return list(ranked)
    if number == 1:
        return [ranked[0]]
    return [ranked[round(n * (len(ranked) - 1) / (number - 1))] for n in range(number)]


def finish_reason(play: Play) -> str:
    """Return "stop", "length" (max_tokens cut it short), or what a server gave instead."""
    return finish_of(play.completion.finish_reason) if play.completion is not None else "stop"


def no_response_reason(rollout: Rollout) -> str:
    """Return why a prompt has no usable play."""
    if not rollout.scored:
        return "no play was scored"
    reasons = {finish_reason(play) for play in rollout.scored if text(play)} - {"stop"}
    if not reasons:
        return "every response was empty"
    if reasons == {"length"}:
        return "every response was truncated"
    return f"no response was completed (finish_reason {', '.join(sorted(reasons))})"


def text(play: Play) -> str:
    """Return the response, stripped."""
    return play.completion.text.strip() if play.completion else ""


def assistant(play: Play) -> list[dict[str, str]]:
    """Return the response as TRL's conversational completion."""
    return [{"role": "assistant", "content": play.completion.text if play.completion else ""}]


def reward_of(ranked: Ranked) -> float:
    """Return the reward of a scored play."""
    assert ranked[1].reward is not None
    return ranked[1].reward


def is_better(ranked: Ranked, other: Ranked, margin: float = 0.0) -> bool:
    """Return whether a play has another text and a higher reward, by at least the margin."""
    gap = reward_of(ranked) - reward_of(other)
    return gap > 0 and gap >= margin and text(ranked[1]) != text(other[1])


def response_row(rollout: Rollout, ranked: Ranked) -> Row:
    """Return a row {prompt, completion, prompt_id, reward, rank, agent, play}."""
    rank, play = ranked
    return {
        "prompt": as_dicts(rollout.prompt.messages),
        "completion": assistant(play),
        "prompt_id": rollout.prompt.id,
        "reward": play.reward,
        "rank": rank,
        "agent": play.action.agent,
        "play": play.index,
    }


def pair_row(rollout: Rollout, chosen: Ranked, rejected: Ranked) -> Row:
    """Return a row of `toa_trl.data.preference.preference_rows`."""
    row: Row = {"prompt": as_dicts(rollout.prompt.messages), "prompt_id": rollout.prompt.id}
    for side, (rank, play) in (("chosen", chosen), ("rejected", rejected)):
        row[side] = assistant(play)
        row[f"{side}_reward"] = play.reward
        row[f"{side}_rank"] = rank
        row[f"{side}_agent"] = play.action.agent
        row[f"{side}_play"] = play.index
    return row
