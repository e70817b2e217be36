"""Which play next? Searches behind `make_search`; one algorithm, one file, one registry line."""

from collections.abc import Callable, Sequence
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.search.base import Search, first_difference
from toa_trl.utils.config import call
from toa_trl.utils.registry import Registry

SEARCHES: Registry[Search] = Registry(
    key="search",
    built_in={
        "best_of_n": "toa_trl.search.best_of_n:best_of_n",
        "parallel": "toa_trl.search.parallel:parallel",
        "prs": "toa_trl.search.prs:prs",
        "sequential": "toa_trl.search.sequential:sequential",
        "moa": "toa_trl.search.moa:moa",
        "toa": "toa_trl.search.toa:TOA",
        "greedy": "toa_trl.search.greedy:Greedy",
        "ab_mcts": "toa_trl.search.ab_mcts:ABMCTS",
    },
    group="toa_trl.searches",
)

__all__ = ["SEARCHES", "Search", "first_difference", "make_search"]


def make_search(
    name: str | Callable[..., Search],
    agents: Sequence[str],
    budget: int,
    seed: int = 0,
    **params: Any,
) -> Search:
    """Return a search over one prompt.

    Args:
        name: best_of_n, parallel, prs, sequential, moa, toa, greedy, ab_mcts,
            "package.module:name", or a class or function that takes (agents, budget, seed,
            **params).
        agents: names of the agents, in the order in which ties are broken.
        budget: number of scored plays to spend, >= 1.
        seed: seed of the search's own random generator.
        **params: parameters of this search, such as `width`, `alpha`, `tau` and `top_k` of toa.

    Raises:
        ConfigError: a name is unknown, a value is invalid, or there are no agents.
    """
    factory = name if callable(name) else SEARCHES.load(name, "search")
    search = call("search_params", factory, agents, budget, seed, params=params)
    if not isinstance(search, Search):
        raise ConfigError(f"search: {name!r} must give a toa_trl.search.Search, not {search!r}")
    return search
