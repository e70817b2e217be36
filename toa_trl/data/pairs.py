"""Rollouts -> several preference pairs per prompt.

A rejected response always has a lower reward and a different text than the chosen one.
"""

from collections.abc import Iterable
from itertools import product
from typing import Annotated, ClassVar

from pydantic import Field

from toa_trl.data.builders import Builder, Candidates, Format
from toa_trl.data.plays import Ranked, Row, distinct, is_better, pair_row, reward_of, text
from toa_trl.utils.config import NonNegativeFloat, PositiveInt

Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class TopBottom(Builder):
    """The best responses against the worst ones.

    Pairs are spread over the responses: the best is paired with the worst, the second best with the
    second worst, and so on, before any is used again.

    Args:
        top_k: responses that may be chosen, the best of the prompt, each text once.
        bottom_k: responses that may be rejected, the worst of the prompt.
        max_pairs: pairs per prompt.
        margin: least difference in raw reward, >= 0.
    """

    format: ClassVar[Format] = "dpo"

    def __init__(
        self,
        top_k: PositiveInt = 4,
        bottom_k: PositiveInt = 4,
        max_pairs: PositiveInt = 4,
        margin: NonNegativeFloat = 0.0,
    ) -> None:
        self.top_k, self.bottom_k = top_k, bottom_k
        self.max_pairs, self.margin = max_pairs, margin

    def rows(self, it: Candidates) -> list[Row] | str:
        """See `Builder.rows`."""
        ranked = distinct(it.ranked)
        top, bottom = ranked[: self.top_k], ranked[::-1][: self.bottom_k]
        pairs = (
            (chosen, bottom[(number + shift) % len(bottom)])
            for shift, (number, chosen) in product(range(len(bottom)), enumerate(top))
        )
        return _rows(it, pairs, self.max_pairs, self.margin)


class LengthMatched(Builder):
    """The best responses against worse ones of about their length, so that length teaches nothing.

    Args:
        top_k: responses that may be chosen, the best of the prompt, each text once.
        max_ratio: of the longer text's number of characters to the shorter one's, >= 1.
        max_pairs: pairs per prompt, those with the largest differences in reward first; a response
            is in at most one.
        margin: least difference in raw reward, >= 0.
    """

    format: ClassVar[Format] = "dpo"

    def __init__(
        self,
        top_k: PositiveInt = 4,
        max_ratio: Ratio = 1.1,
        max_pairs: PositiveInt = 4,
        margin: NonNegativeFloat = 0.0,
    ) -> None:
        self.top_k, self.max_ratio = top_k, max_ratio
        self.max_pairs, self.margin = max_pairs, margin

    def rows(self, it: Candidates) -> list[Row] | str:
        """See `Builder.rows`."""
        ranked = distinct(it.ranked)
        matched = [
            (chosen, rejected)
            for chosen, rejected in product(ranked[: self.top_k], ranked)
            if self._is_matched(chosen, rejected) and is_better(chosen, rejected, self.margin)
        ]
        matched.sort(key=lambda pair: reward_of(pair[1]) - reward_of(pair[0]))
        pairs, used = [], set[int]()
        for chosen, rejected in matched:
            if not used & {chosen[0], rejected[0]}:
                pairs.append((chosen, rejected))
                used |= {chosen[0], rejected[0]}
        return _rows(it, pairs, self.max_pairs, self.margin)

    def _is_matched(self, chosen: Ranked, rejected: Ranked) -> bool:
        shorter, longer = sorted((len(text(chosen[1])), len(text(rejected[1]))))
        return longer <= self.max_ratio * shorter


class RefinementPairs(Builder):
    """A response that improved a draft against that draft.

    A response made from several drafts is paired with each of them that it improved.

    Args:
        max_pairs: pairs per prompt, those with the best responses first.
        margin: least difference in raw reward, >= 0.
    """

    format: ClassVar[Format] = "dpo"

    def __init__(self, max_pairs: PositiveInt = 4, margin: NonNegativeFloat = 0.0) -> None:
        self.max_pairs, self.margin = max_pairs, margin

    def rows(self, it: Candidates) -> list[Row] | str:
        """See `Builder.rows`."""
        known = {play.index: (rank, play) for rank, play in it.ranked}
        pairs = (
            (child, known[ref])
            for child in it.ranked
            for ref in child[1].action.refs
            if ref in known
        )
        return _rows(it, pairs, self.max_pairs, self.margin)


def _rows(
    it: Candidates, pairs: Iterable[tuple[Ranked, Ranked]], max_pairs: int, margin: float
) -> list[Row] | str:
    """Return the rows of the first pairs that have the margin, each pair of texts once."""
    different: dict[tuple[str, str], tuple[Ranked, Ranked]] = {}
    for chosen, rejected in pairs:
        if is_better(chosen, rejected, margin):
            texts = (text(chosen[1]), text(rejected[1]))
            different.setdefault(texts, (chosen, rejected))
            if len(different) == max_pairs:
                break
    rows = [pair_row(it.rollout, *pair) for pair in different.values()]
    return rows or "no two responses differ enough"
