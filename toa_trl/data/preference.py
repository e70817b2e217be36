"""Rollouts -> preference pairs: the best response is chosen, a policy picks the rejected one."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator

from toa_trl.data.builders import Builder, Candidates, Format, Recipe, build_rows
from toa_trl.data.plays import Ranked, Row, is_better, pair_row, reward_of
from toa_trl.errors import ConfigError
from toa_trl.types import Rollout
from toa_trl.utils.config import PositiveFloat

Policy = Literal["rank", "worst", "margin", "same_parent", "cross_agent"]
POLICIES: tuple[str, ...] = get_args(Policy)


def _check_rank(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 2
    if not whole and not (isinstance(value, float) and 0 < value < 1):
        raise ValueError("must be an integer >= 2, or a fraction of the responses in (0, 1)")
    return value


REJECTED_RANK = 30 / 160
"""The paper's rank, as a fraction of a prompt's scored responses, so that it suits every budget."""


def check_rank(preference: Mapping[str, Any], budget: int) -> None:
    """Check that prompts with a whole budget of scored plays have the rank to be rejected.

    Args:
        preference: valid parameters of `preference_rows`.
        budget: scored plays per prompt.

    Raises:
        ConfigError: the rank is beyond the budget.
    """
    rank = preference.get("rejected_rank", REJECTED_RANK)
    if rank > budget and preference.get("policy", "rank") in ("rank", "cross_agent"):
        raise ConfigError(
            f"preference.rejected_rank: no prompt has a response at rank {rank}, because the "
            f"budget is {budget}; write a rank up to {budget}, or a fraction such as "
            f"{REJECTED_RANK}"
        )


Rank = Annotated[int | float, BeforeValidator(_check_rank)]


def preference_rows(
    rollouts: Iterable[Rollout],
    *,
    policy: Policy = "rank",
    rejected_rank: Rank = REJECTED_RANK,
    margin: PositiveFloat | None = None,
    keep_truncated: bool = False,
    without: Sequence[str] = (),
) -> tuple[Iterator[dict[str, Any]], Counter[str]]:
    """Return rows in TRL's conversational preference format, and why prompts gave none.

    There is at most one row per prompt, made as it is read. A rejected response always has a lower
    reward and a different text than the chosen one.

    Args:
        rollouts: the plays of a run, prompt by prompt.
        policy: which response is rejected. "rank": the one at `rejected_rank`, or the next usable
            one below. "worst": the one with the lowest reward. "margin": the best one whose reward
            is at least `margin` lower. "same_parent": the worst one with the same parent in the
            tree, for the best response that has such siblings. "cross_agent": as "rank", among the
            responses of other agents.
        rejected_rank: rank among all scored responses of the prompt, where 1 is the best: a
            fraction of their number in (0, 1), by default the paper's 30 of 160; or an integer >= 2
            and at most the budget.
        margin: least difference in raw reward, > 0; required by the policy "margin", and only
            allowed there.
        keep_truncated: also use responses that max_tokens cut short.
        without: ids of prompts that give no row because they overlap with an evaluation set.

    Returns:
        Rows {prompt, chosen, rejected, prompt_id, chosen_reward, rejected_reward, chosen_rank,
        rejected_rank, chosen_agent, rejected_agent, chosen_play, rejected_play}, and the number of
        prompts without a row by reason, complete once the rows are exhausted.

    Raises:
        ConfigError: `margin` is missing for the policy "margin", or given for another.
    """
    recipe = Recipe("pair", Pair(policy, rejected_rank, margin), keep_truncated)
    built = build_rows(rollouts, [recipe], without=without, named=False)
    return built.rows, built.dropped


class Pair(Builder):
    """One pair per prompt, as `preference` makes them.

    Args:
        policy: which response is rejected: see `preference`.
        rejected_rank: see `preference`.
        margin: see `preference`.

    Raises:
        ConfigError: `margin` is missing for the policy "margin", or given for another.
    """

    format: ClassVar[Format] = "dpo"

    def __init__(
        self,
        policy: Policy = "rank",
        rejected_rank: Rank = REJECTED_RANK,
        margin: PositiveFloat | None = None,
    ) -> None:
        if (policy == "margin") != (margin is not None):
            raise ConfigError(
                "preference.margin: required by policy 'margin', and only allowed there"
            )
        self.policy, self.rejected_rank, self.margin = policy, rejected_rank, margin

    def rows(self, it: Candidates) -> list[Row] | str:
        """See `Builder.rows`."""
        num_scored, rank = len(it.rollout.scored), self.rejected_rank
        if isinstance(rank, float):
            rank = max(2, round(rank * num_scored))
        if self.policy == "same_parent":
            pair = _siblings(it.ranked)
        else:
            pair = _pair(it.ranked, self.policy, rank, self.margin, num_scored)
        return pair if isinstance(pair, str) else [pair_row(it.rollout, *pair)]


def _pair(
    ranked: Sequence[Ranked], policy: Policy, rank: int, margin: float | None, num_scored: int
) -> tuple[Ranked, Ranked] | str:
    """Return the best response with the one it is preferred to, or why there is none."""
    chosen = ranked[0]
    below = _worse(chosen, ranked)
    if not below:
        return "no other text has a lower reward than the best"
    if policy == "worst":
        return chosen, below[-1]
    if policy == "margin":
        wide = [r for r in below if reward_of(chosen) - reward_of(r) >= (margin or 0.0)]
        return (chosen, wide[0]) if wide else f"no response is {margin:g} below the best"
    if num_scored < rank:
        return f"fewer than {rank} scored responses"
    if policy == "cross_agent":
        below = [r for r in below if r[1].action.agent != chosen[1].action.agent]
    low = [r for r in below if r[0] >= rank]
    others = " of another agent" if policy == "cross_agent" else ""
    return (chosen, low[0]) if low else f"no usable response{others} at rank {rank} or below"


def _siblings(ranked: Sequence[Ranked]) -> tuple[Ranked, Ranked] | str:
    """Return the best response that has worse siblings and the worst of these, or why not."""
    for chosen in ranked:
        parent = chosen[1].action.parent
        siblings = _worse(chosen, [r for r in ranked if r[1].action.parent == parent])
        if siblings:
            return chosen, siblings[-1]
    return "no two responses of one parent differ in text and reward"


def _worse(chosen: Ranked, ranked: Sequence[Ranked]) -> list[Ranked]:
    return [other for other in ranked if is_better(chosen, other)]
