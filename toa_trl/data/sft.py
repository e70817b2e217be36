"""Rollouts -> SFT rows: the best responses (paper, section 4.3), and drafts that were improved."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal

from toa_trl.data.builders import Builder, Candidates, Format, Recipe, build_rows
from toa_trl.data.plays import Ranked, Row, distinct, is_better, response_row, spread
from toa_trl.types import Action, Rollout, as_dicts
from toa_trl.utils.config import NonNegativeFloat, PositiveInt


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
    recipe = Recipe("best", Best(top_k), keep_truncated)
    built = build_rows(rollouts, [recipe], without=without, named=False)
    return built.rows, built.dropped


class Best(Builder):
    """The responses with the highest rewards, as `sft` makes them.

    Args:
        top_k: responses per prompt, best first, each text once.
    """

    format: ClassVar[Format] = "sft"

    def __init__(self, top_k: PositiveInt = 1) -> None:
        self.top_k = top_k

    def rows(self, it: Candidates) -> list[Row] | str:
        """See `Builder.rows`."""
        return [response_row(it.rollout, ranked) for ranked in distinct(it.ranked)[: self.top_k]]


class RefinementSFT(Builder):
    """The prompt with a draft -> a better response, so that the student learns to refine.

    The prompt is rendered with the templates of the run's task.

    Args:
        target: "child": the response that an agent wrote from the draft or drafts, if it is better
            than all of them. "best": the best response of the prompt, for any worse draft.
        max_rows: rows per prompt; with "child" the best responses first, with "best" drafts at
            equal distances in rank.
        margin: least difference in raw reward, >= 0, to the best draft; the response is always
            better than that.
    """

    format: ClassVar[Format] = "sft"
    needs_task: ClassVar[bool] = True

    def __init__(
        self,
        target: Literal["child", "best"] = "child",
        max_rows: PositiveInt = 4,
        margin: NonNegativeFloat = 0.0,
    ) -> None:
        self.target, self.max_rows, self.margin = target, max_rows, margin

    def rows(self, it: Candidates) -> list[Row] | str:
        """See `Builder.rows`."""
        improved = self._children(it) if self.target == "child" else self._drafts_of_best(it)
        rows = []
        plays = {play.index: play for play in it.rollout.plays}
        for response, action, draft in improved:
            assert it.render is not None
            messages = it.render(it.rollout.prompt, action, plays)
            row = response_row(it.rollout, response)
            rows.append({**row, "prompt": as_dicts(messages), "draft_play": draft[1].index})
        return rows or "no response improves a draft"

    def _children(self, it: Candidates) -> list[tuple[Ranked, Action, Ranked]]:
        """Return (response, its action, its best draft) of the best improved responses."""
        known = {play.index: (rank, play) for rank, play in it.ranked}
        found = []
        for response in distinct(it.ranked):
            action = response[1].action
            if action.refs and all(ref in known for ref in action.refs):
                draft = min((known[ref] for ref in action.refs), key=lambda ranked: ranked[0])
                if is_better(response, draft, self.margin):
                    found.append((response, action, draft))
        return found[: self.max_rows]

    def _drafts_of_best(self, it: Candidates) -> list[tuple[Ranked, Action, Ranked]]:
        best, *others = distinct(it.ranked)
        worse = [draft for draft in others if is_better(best, draft, self.margin)]
        drafts = spread(worse, self.max_rows)
        agent = best[1].action.agent
        return [(best, Action(agent, "refine", (draft[1].index,)), draft) for draft in drafts]
