"""How the budget is divided among the prompts of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from toa_trl.agents import Agent
from toa_trl.agents.base import Price
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.turns import Turns
from toa_trl.search import Search
from toa_trl.types import Prompt

SearchOf = Callable[[int], Search]
"""Returns the run's search for a budget."""


class Allocation:
    """Every prompt gets the same number of plays; the base of other allocations."""

    budget: int

    def search_params(self, search: Any, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of the search, with the defaults that it needs here."""
        return dict(params)

    def check(self, budget: int, search_of: SearchOf, preference: Mapping[str, Any]) -> None:
        """Take note of the run, and check that the settings fit it, before models are loaded.

        Raises:
            ConfigError: they do not; the message names the key.
        """
        self.budget = budget

    def check_costs(self, agents: Mapping[str, Agent], prices: Mapping[str, Price]) -> None:
        """Check that the costs of the agents are known, where they count.

        Raises:
            ConfigError: those of an agent are not.
        """

    def identified(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return the identity of the run with what this allocation decides of its results.

        Raises:
            ConfigError: an earlier run that it learns from does not fit.
        """
        return dict(identity)

    @property
    def most_plays(self) -> int:
        """The most plays that a prompt can get."""
        return self.budget

    def unfinished(self, prompts: Sequence[Prompt], journal: Journal) -> list[Prompt]:
        """Return the prompts that may get further plays, in the order in which they should."""
        scored = journal.num_scored()
        left = [prompt for prompt in prompts if scored.get(prompt.id, 0) < self.budget]
        return sorted(left, key=lambda prompt: scored.get(prompt.id) == 0)  # those that only failed

    def turns(
        self, prompts: Sequence[Prompt], journal: Journal, prices: Mapping[str, Price]
    ) -> Turns | None:
        """Return the turns of a run; None: every prompt once."""
        return None


class Uniform(Allocation):
    """Every prompt gets the same number of plays."""
