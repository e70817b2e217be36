"""Rollouts -> rows for supervised fine-tuning: per prompt the response with the highest reward (paper, section 4.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.types import Play, Rollout, as_dicts
from toa_trl.utils.registry import check_whole

OVERLAP = "overlaps with an evaluation set"


def sft_rows(
    rollouts: Iterable[Rollout],
    *,
    top_k: int = 1,
    keep_truncated: bool = False,
    without: Collection[str] = (),
) -> tuple[Iterator[dict[str, Any]], Counter[str]]:
    """Rows in TRL's conversational prompt-completion format, made as they are read, and why prompts gave none.

    Args:
        rollouts: of a run.
        top_k: responses per prompt, best first, no text twice.
        keep_truncated: take responses that max_tokens cut short, too.
        without: ids of prompts that give no row, because they overlap with an evaluation set.

    Returns:
        Rows {prompt, completion, prompt_id, reward, rank, agent, play}, and a count of prompts by reason,
        complete once the rows are exhausted.

    Raises:
        ConfigError: top_k < 1, or `without` is no collection of ids.
    """
    check_whole("sft: top_k", top_k, at_least=1)
    dropped, left_out = Counter[str](), ids("sft", without)

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
                dropped[no_response(rollout)] += 1
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


def ids(place: str, without: Collection[str]) -> frozenset[str]:
    """The ids of prompts to leave out.

    Raises:
        ConfigError: it is a text, whose characters are no ids, or no collection of texts.
    """
    if isinstance(without, str) or not all(isinstance(id, str) for id in without):
        raise ConfigError(
            f"{place}: without must be a list of ids, which are texts, not {without!r:.80}"
        )
    return frozenset(without)


def usable(rollout: Rollout, keep_truncated: bool) -> list[tuple[int, Play]]:
    """(rank, play) of the scored plays, best first, where rank 1 is the best of all; truncated ones are left out."""
    ranked = enumerate(rollout.ranked, 1)
    return [
        (rank, p)
        for rank, p in ranked
        if keep_truncated or p.completion is None or not truncated(p)
    ]


def truncated(play: Play) -> bool:
    """Whether max_tokens cut the response short."""
    return play.completion is not None and play.completion.finish_reason == "length"


def no_response(rollout: Rollout) -> str:
    """Why a prompt without usable plays has none."""
    return "every response was truncated" if rollout.scored else "no play was scored"


def text(play: Play) -> str:
    """The response, without space around it."""
    return play.completion.text.strip() if play.completion else ""


def assistant(play: Play) -> list[dict[str, str]]:
    """The response as TRL's conversational completion."""
    return [{"role": "assistant", "content": play.completion.text if play.completion else ""}]
