"""Rollouts -> SFT rows: the responses with the highest rewards (paper, section 4.3)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from toa_trl.types import Play, Rollout, as_dicts, finish_of
from toa_trl.utils.config import PositiveInt

OVERLAP = "overlaps with an evaluation set"


def sft_rows(
    rollouts: Iterable[Rollout],
    *,
    top_k: PositiveInt = 1,
    keep_truncated: bool = False,
    without: Sequence[str] = (),
) -> tuple[Iterator[dict[str, Any]], Counter[str]]:
    """Return rows in TRL's conversational prompt-completion format, and why prompts gave none.

    Args:
        rollouts: the plays of a run, prompt by prompt.
        top_k: responses per prompt, best first, each text once.
        keep_truncated: also use responses that max_tokens cut short.
        without: ids of prompts that give no row because they overlap with an evaluation set.

    Returns:
        Rows {prompt, completion, prompt_id, reward, rank, agent, play}, made as they are read, and
        the number of prompts without a row by reason, complete once the rows are exhausted.
    """
    dropped, left_out = Counter[str](), frozenset(without)

    def rows() -> Iterator[dict[str, Any]]:
        for rollout in rollouts:
            if rollout.prompt.id in left_out:
                dropped[OVERLAP] += 1
                continue
            best: dict[str, tuple[int, Play]] = {}
            for rank, play in usable(rollout, keep_truncated):
                if len(best) < top_k:
                    best.setdefault(text(play), (rank, play))
            if not best:
                dropped[no_response_reason(rollout)] += 1
            for rank, play in best.values():
                yield {
                    "prompt": as_dicts(rollout.prompt.messages),
                    "completion": assistant(play),
                    "prompt_id": rollout.prompt.id,
                    "reward": play.reward,
                    "rank": rank,
                    "agent": play.action.agent,
                    "play": play.index,
                }

    return rows(), dropped


def usable(rollout: Rollout, keep_truncated: bool) -> list[tuple[int, Play]]:
    """Return (rank, play) of the usable scored plays, best first; rank 1 is the best of all."""
    whole = {"stop", "length"} if keep_truncated else {"stop"}
    ranked = enumerate(rollout.ranked, 1)
    return [(rank, play) for rank, play in ranked if text(play) and finish_reason(play) in whole]


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
