"""Rollouts -> all scored responses of a prompt: labelled one by one for KTO, or as one group."""

from itertools import chain, zip_longest
from statistics import fmean
from typing import Annotated, ClassVar

from pydantic import Field

from toa_trl.data.builders import Builder, Candidates, Format
from toa_trl.data.plays import Row, assistant, distinct, response_row, reward_of, spread
from toa_trl.types import as_dicts
from toa_trl.utils.config import FiniteFloat, NonNegativeFloat, PositiveInt

AtLeastTwo = Annotated[int, Field(ge=2)]


class KTO(Builder):
    """Responses with a label, for TRL's KTOTrainer: {prompt, completion, label}.

    Args:
        threshold: raw reward above which a response is desirable; by default the mean reward of the
            prompt's usable responses, each text once.
        gap: responses closer than this to the threshold give no row, >= 0.
        max_rows: rows per prompt, the best desirable and the worst undesirable responses in turn;
            by default all.
    """

    format: ClassVar[Format] = "kto"

    def __init__(
        self,
        threshold: FiniteFloat | None = None,
        gap: NonNegativeFloat = 0.0,
        max_rows: PositiveInt | None = None,
    ) -> None:
        self.threshold, self.gap, self.max_rows = threshold, gap, max_rows

    def rows(self, it: Candidates) -> list[Row] | str:
        """See `Builder.rows`."""
        ranked = distinct(it.ranked)
        rewards = [reward_of(play) for play in ranked]
        if self.threshold is None and rewards[0] == rewards[-1]:
            return "all rewards are equal"
        threshold = fmean(rewards) if self.threshold is None else self.threshold
        far = [play for play in ranked if abs(reward_of(play) - threshold) >= self.gap]
        good = [play for play in far if reward_of(play) > threshold]
        bad = far[len(good) :][::-1]  # the worst first
        in_turn = [play for play in chain(*zip_longest(good, bad)) if play is not None]
        rows = [
            {**response_row(it.rollout, play), "label": reward_of(play) > threshold}
            for play in in_turn[: self.max_rows]
        ]
        return rows or f"no reward differs by {self.gap:g} from the threshold"


class Groups(Builder):
    """One row per prompt with its responses and rewards, for listwise and group-relative losses.

    Args:
        max_responses: responses of a row, at equal distances in rank, with the best and the worst;
            at least 2, by default all. Each text is in it once.
    """

    format: ClassVar[Format] = "groups"

    def __init__(self, max_responses: AtLeastTwo | None = None) -> None:
        self.max_responses = max_responses

    def rows(self, it: Candidates) -> list[Row] | str:
        """See `Builder.rows`."""
        ranked = spread(distinct(it.ranked), self.max_responses)
        if reward_of(ranked[0]) == reward_of(ranked[-1]):
            return "fewer than two rewards"
        return [
            {
                "prompt": as_dicts(it.rollout.prompt.messages),
                "completions": [assistant(play) for _, play in ranked],
                "rewards": [play.reward for _, play in ranked],
                "ranks": [rank for rank, _ in ranked],
                "agents": [play.action.agent for _, play in ranked],
                "plays": [play.index for _, play in ranked],
                "prompt_id": it.rollout.prompt.id,
            }
        ]
