"""Which play next? Six searches behind `make_search`; one algorithm, one file, one line in the registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.search.base import Search
from toa_trl.search.best_of_n import best_of_n
from toa_trl.search.moa import moa
from toa_trl.search.parallel import parallel
from toa_trl.search.prs import prs
from toa_trl.search.sequential import sequential
from toa_trl.search.toa import TOA

SEARCHES: dict[str, Callable[..., Search]] = {
    "best_of_n": best_of_n,
    "parallel": parallel,
    "prs": prs,
    "sequential": sequential,
    "moa": moa,
    "toa": TOA,
}

__all__ = ["SEARCHES", "Search", "make_search"]


def make_search(
    name: str, agents: Sequence[str], budget: int, seed: int = 0, **params: Any
) -> Search:
    """The search `name` over one prompt, ready to be asked.

    Args:
        name: best_of_n, parallel, prs, sequential, moa or toa.
        agents: names of the agents, in the order in which ties are broken.
        budget: number of scored plays to spend, >= 1.
        seed: of the search's own random generator.
        params: of this search: `agent` of best_of_n and prs, `num_layers` of moa, `width`, `alpha`, `tau` and `top_k` of toa.

    Raises:
        ConfigError: an unknown search or parameter, no agents, budget < 1, or a parameter out of range.
    """
    if name not in SEARCHES:
        raise ConfigError(f"search: {name!r} is not known; choose one of {', '.join(SEARCHES)}")
    known = [
        p.name
        for p in inspect.signature(SEARCHES[name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    if unknown := sorted(params.keys() - set(known)):
        raise ConfigError(
            f"search_params: {name} has no {', '.join(unknown)}; it knows {', '.join(known) or 'none'}"
        )
    return SEARCHES[name](agents, budget, seed, **params)
