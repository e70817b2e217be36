"""What makes rows of the plays of a prompt, and how several such builders become one data set."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from toa_trl.data.plays import OVERLAP, Ranked, Row, no_response_reason, usable
from toa_trl.data.review import Review
from toa_trl.types import Action, Message, Play, Prompt, Rollout

Format = Literal["sft", "dpo", "kto", "groups"]
"""TRL's format of the rows; also the folder of the data set."""
Render = Callable[[Prompt, Action, Mapping[int, Play]], Sequence[Message]]
"""`toa_trl.tasks.Task.render`: the messages that an agent sees for an action."""


@dataclass(frozen=True)
class Candidates:
    """The plays of one prompt that a builder may use."""

    rollout: Rollout
    ranked: Sequence[Ranked]  # the usable plays, best first; at least one
    render: Render | None = None  # for builders with `needs_task`


class Builder(Protocol):
    """Makes rows of the plays of one prompt. Arguments of the constructor are its configuration."""

    format: ClassVar[Format]
    needs_task: ClassVar[bool] = False
    """Whether prompts are rendered with the templates of the run's task."""

    def rows(self, it: Candidates) -> list[Row] | str:
        """Return at least one row, or why there is none."""


@dataclass(frozen=True)
class Recipe:
    """A builder with its settings, under a name."""

    name: str
    builder: Builder
    keep_truncated: bool = False  # also use responses that max_tokens cut short
    params: Mapping[str, Any] = field(default_factory=dict)  # as they were given, for the card


@dataclass(frozen=True)
class Built:
    """The rows of one data set, made as they are read; the counts are complete after the last."""

    rows: Iterator[Row]
    dropped: Counter[str] = field(default_factory=Counter)  # prompts without a row, by reason
    made: Counter[str] = field(default_factory=Counter)  # rows by recipe
    filtered: Counter[str] = field(default_factory=Counter)  # rows that a filter dropped, by reason
    reviewed: Counter[str] = field(default_factory=Counter)  # rows that a review concerns


def build_rows(
    rollouts: Iterable[Rollout],
    recipes: Sequence[Recipe],
    *,
    without: Iterable[str] = (),
    render: Render | None = None,
    row_filter: Callable[[Row], str | None] | None = None,
    review: Review | None = None,
    named: bool = True,
) -> Built:
    """Return the rows of recipes of one format, prompt by prompt.

    Args:
        rollouts: the plays of a run, read once.
        recipes: applied to every prompt in this order.
        without: ids of prompts that give no row because they overlap with an evaluation set.
        render: of the run's task, if a builder needs it.
        row_filter: returns why a row is dropped, or None.
        review: leaves rows out, and replaces responses.
        named: whether rows have the column `recipe`.
    """
    dropped, made, filtered, reviewed = (Counter[str]() for _ in range(4))
    left_out = frozenset(without)

    def rows() -> Iterator[Row]:
        for rollout in rollouts:
            if rollout.prompt.id in left_out:
                dropped[OVERLAP] += 1
                continue
            for recipe in recipes:
                built = _rows_of(recipe, rollout, render)
                if isinstance(built, str):
                    dropped[f"{recipe.name}: {built}" if len(recipes) > 1 else built] += 1
                    continue
                for row in built:
                    reason = row_filter(row) if row_filter else None
                    if reason is not None:
                        filtered[reason] += 1
                        continue
                    for kept in review.rows([row], reviewed) if review else [row]:
                        made[recipe.name] += 1
                        yield {**kept, "recipe": recipe.name} if named else kept

    return Built(rows(), dropped, made, filtered, reviewed)


def _rows_of(recipe: Recipe, rollout: Rollout, render: Render | None) -> list[Row] | str:
    ranked = usable(rollout, recipe.keep_truncated)
    if not ranked:
        return no_response_reason(rollout)
    return recipe.builder.rows(Candidates(rollout, ranked, render))
