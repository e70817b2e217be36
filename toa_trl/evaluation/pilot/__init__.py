"""What a pilot says about the full run: what it takes, and what to choose.

    figures.py     numbers with their intervals
    demand.py      hours, tokens, FLOPs and price of the full run
    budget.py      the best reward over the plays, and the recommended budget
    agents.py      what each agent gives and costs
    tau.py         the temperature of toa
    allocation.py  adaptive or uniform
    text.py        all of it as text

Pure functions of rollouts and timed calls. `measure_pilot` returns everything, pilot.json holds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.evaluation.costs import Costs
from toa_trl.evaluation.pilot.agents import Place, place_of
from toa_trl.evaluation.pilot.allocation import Adaptive, AllocationAdvice, advise_allocation
from toa_trl.evaluation.pilot.budget import BudgetAdvice, advise_budget, best_so_far
from toa_trl.evaluation.pilot.demand import Demand, Estimator, FullRun, cost_measure, unknown_flops
from toa_trl.evaluation.pilot.figures import Figure, Resamples
from toa_trl.evaluation.pilot.tau import TauAdvice, advise_tau
from toa_trl.sampling.timing import Call
from toa_trl.types import Rollout
from toa_trl.utils.targets import is_json

FILE = "pilot.json"


@dataclass(frozen=True)
class Pilot:
    """Everything that a pilot says."""

    num_prompts: int  # with at least one scored play
    num_without_plays: int  # prompts without any
    num_unfinished: int  # prompts whose budget is not spent
    full_run: FullRun
    demand: Demand
    unknown_flops: list[str]  # agents
    anytime: bool  # the first plays are those of a run with a smaller budget
    budget: BudgetAdvice
    tau: TauAdvice | None
    allocation: AllocationAdvice | None
    agents: list[Place]
    cost_measure: str  # of the agents' costs: price, FLOPs or tokens


def measure_pilot(
    rollouts: Sequence[Rollout],
    calls: Sequence[Call],
    run: FullRun,
    *,
    agents: Sequence[str],
    costs: Costs,
    tau: float | None,
    anytime: bool,
    gain_share: float,
    adaptive: Adaptive,
) -> Pilot:
    """Return what a pilot says.

    Args:
        rollouts: of the pilot.
        calls: its timed calls.
        run: the full run; the pilot has the same budget.
        agents: names of the agents.
        costs: how costs are counted.
        tau: of the search; None if it has none.
        anytime: whether the first plays are those of a run with a smaller budget.
        gain_share: see `advise_budget`.
        adaptive: settings of the adaptive allocation that is compared with uniform.

    Raises:
        ConfigError: fewer than two prompts have a scored play.
    """
    played = [rollout for rollout in rollouts if rollout.scored]
    if len(played) < 2:
        raise ConfigError(
            f"pilot: at least 2 prompts with scored plays are needed, not {len(played)} of "
            f"{len(rollouts)}"
        )
    resamples = Resamples(len(played))
    best = best_so_far(played, run.budget)
    name, cost_of = cost_measure(played, costs)
    return Pilot(
        num_prompts=len(played),
        num_without_plays=len(rollouts) - len(played),
        num_unfinished=sum(len(rollout.scored) < run.budget for rollout in rollouts),
        full_run=run,
        demand=Estimator(played, calls, run, costs, resamples).demand(agents),
        unknown_flops=unknown_flops(played),
        anytime=anytime,
        budget=advise_budget(best, resamples, gain_share),
        tau=None if tau is None else advise_tau(played, tau, resamples),
        allocation=advise_allocation(played, best, adaptive, resamples),
        agents=[place_of(agent, played, resamples, cost_of) for agent in agents],
        cost_measure=name,
    )


def as_json(value: Any) -> Any:
    """Return a part of a pilot as JSON values; a figure becomes {value, interval}."""
    if isinstance(value, Figure):
        return {"value": value.value, "interval": [value.low, value.high]}
    if is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    return value


def is_pilot(path: Path) -> bool:
    """Return whether a file is a pilot.json that this package wrote."""
    return is_json(path, old={"toa_trl"})  # there is none from before the marker
