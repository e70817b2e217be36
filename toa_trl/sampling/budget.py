"""How many plays the prompts of a run get: its budget, in numbers and in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class PlaysPerPrompt:
    """Scored plays that the prompts of a run have."""

    least: int
    mean: float
    most: int

    @classmethod
    def of(cls, num_scored: Collection[int], num_prompts: int | None = None) -> Self:
        """Return the numbers for prompts with these numbers of plays; further ones have none."""
        num_prompts = len(num_scored) if num_prompts is None else num_prompts
        most = max(num_scored, default=0)
        least = min(num_scored, default=0) if len(num_scored) >= num_prompts else 0
        return cls(least, sum(num_scored) / max(num_prompts, 1), most)

    @classmethod
    def read(cls, value: Any) -> Self | None:
        """Return the numbers of a lineage; None if it has none that are valid."""
        names = ("least", "mean", "most")
        numbers = [value.get(name) for name in names] if isinstance(value, Mapping) else [None]
        valid = all(isinstance(number, int | float) and number >= 0 for number in numbers)
        return cls(*numbers) if valid else None

    def __str__(self) -> str:
        """Return them as text."""
        return f"least {self.least:,}, mean {self.mean:,.1f}, most {self.most:,}"


def is_adaptive(run: Mapping[str, Any]) -> bool:
    """Return whether the budget of a run is a mean, by its identity or its run.yaml."""
    entry = run.get("allocation")
    return isinstance(entry, Mapping) and entry.get("kind") != "uniform"


def describe_budget(budget: Any, plays: PlaysPerPrompt | None = None) -> str:
    """Return the budget of a run in words.

    Args:
        budget: scored plays per prompt.
        plays: of an adaptive allocation, the plays that the prompts have.
    """
    text = f"{budget} scored plays per prompt"
    return text if plays is None else f"{text} on average (adaptive: {plays})"
