"""The plan that `toa-trl run --dry_run` prints: GPUs, memory, hours and cost of every stage.

What is estimated: of a training its memory and FLOPs (`toa_trl.training.estimate`), of a sampling
the tokens that machine.tokens_per_s and machine.mean_tokens give; `hours` of a stage, which
`toa-trl pilot` measures, takes precedence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from textwrap import fill
from typing import Any

from tabulate import tabulate

from toa_trl.pipeline.checks import prompts_of, read_content
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.fleets import fleet_of
from toa_trl.pipeline.gpus import SAMPLING
from toa_trl.pipeline.memory import Needs, sampling_memory, training_needs
from toa_trl.pipeline.plan import Plan
from toa_trl.pipeline.steps import is_complete
from toa_trl.pipeline.trial import trials_of
from toa_trl.types import Prompt
from toa_trl.utils.escape import for_terminal

WIDTH = 100  # columns of a terminal


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield the plan: a table of the stages, and the sums over all rounds.

    Raises:
        ConfigError: prompts cannot be read, or a training does not fit the memory of its GPUs.
    """
    times, prompts, price = plan.rounds or 1, prompts_of(plan), plan.config.machine.price
    what = "once" if plan.rounds is None else f"{times} rounds"
    yield f"{plan.output}: {len(plan.stages)} stages, {what}\n"
    rows, notes, hours, costs = [], [], list[float | None](), list[float | None]()
    for stage in plan.stages:
        needs = needs_of(plan, stage, prompts)
        hours.append(needs.hours)
        costs.append(needs.cost(price))
        rows.append(_row(plan, stage, needs, price))
        if needs.note:
            notes.append(f"{stage.folder}: {needs.note}")
    yield tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    yield ""
    yield f"Hours: {_sum(hours, times, 1)}; cost: {_sum(costs, times, 2)}"
    for trial in trials_of(plan):
        servers = ", ".join(replica.label for replica in trial.fleet.replicas)
        label = plan.label(trial.stage, trial.number)
        notes.append(f"{label}, {servers}: tried once before the first stage (servers.try_first)")
    needed = zip(plan.stages, hours, strict=True)
    notes += _without_hours(plan, [stage for stage, known in needed if known is None])
    for note in notes:
        yield fill(
            for_terminal(f"- {note}"),
            WIDTH,
            subsequent_indent="  ",
            break_long_words=False,  # paths
            break_on_hyphens=False,
        )


def _without_hours(plan: Plan, stages: list[StageConfig]) -> Iterator[str]:
    """Yield what to write into the pipeline to have the hours of stages that lack them."""
    # the estimate has no hours of grpo: sampling decides them
    on_gpu = [stage for stage in stages if stage.is_training and stage.run != "grpo" and stage.gpus]
    if plan.config.machine.gpu is None and on_gpu:
        names = ", ".join(stage.folder for stage in on_gpu)
        yield f"for the hours of {names} name the GPU, as machine.gpu: H100"
        stages = [stage for stage in stages if stage not in on_gpu]
    if stages:
        names = ", ".join(stage.folder for stage in stages)
        yield (
            f"hours of {names} are not known: set `hours` in the stage; `toa-trl pilot` measures "
            "those of a sampling"
        )


def needs_of(plan: Plan, stage: StageConfig, prompts: Mapping[str, list[Prompt]]) -> Needs:
    """Return what a stage of one round needs."""
    fleet = fleet_of(plan, stage, 1)
    served = [replica.gpus for replica in fleet.replicas] if fleet else []
    gpus = len({*(stage.gpus or ())}.union(*served))
    if stage.is_training and not stage.command:
        needs = training_needs(plan, stage, _rows(plan, stage, prompts))
        return replace(needs, gpus=gpus, hours=stage.hours or needs.hours)
    if stage.run in SAMPLING and stage.folder in prompts:
        return _needs_of_calls(plan, stage, _num_prompts(plan, stage, prompts), gpus)
    if stage.run in ("data", "push"):
        return Needs(hours=stage.hours or 0.0)
    return Needs(gpus=gpus, hours=stage.hours, note="memory is not known")


def _needs_of_calls(plan: Plan, stage: StageConfig, num_prompts: int, gpus: int) -> Needs:
    """Return what a synthesis or an evaluation needs: its tokens, on GPUs or by an API."""
    machine, config = plan.config.machine, read_content(plan, stage, 1)
    plays = round(num_prompts * sum(number for _, number in config.asked))
    longest = config.sampling.get("max_tokens", machine.mean_tokens)
    mean_tokens = min(machine.mean_tokens, int(longest))
    tokens = plays * mean_tokens
    calls = num_prompts * sum(_price(entry, mean_tokens) * number for entry, number in config.asked)
    hours = stage.hours
    if hours is None and gpus:
        hours = tokens / machine.tokens_per_s / gpus / 3600
    assumed = "" if stage.hours or not gpus else f" at {machine.tokens_per_s:g} a second and GPU"
    note = f"{plays:,} responses, {tokens:,} tokens{assumed}"
    taken = sampling_memory(plan, stage)
    note = f"{note}; {taken.note}" if taken.note else note
    return replace(taken, gpus=gpus, hours=hours, calls=calls, note=note)


def _price(entry: Mapping[str, Any], mean_tokens: int) -> float:
    """Return the price of a response, with a prompt of as many tokens."""
    price = entry.get("price") or {}
    return float(sum(float(value or 0.0) for value in price.values()) * mean_tokens / 1e6)


def _rows(plan: Plan, stage: StageConfig, prompts: Mapping[str, list[Prompt]]) -> int | None:
    """Return the rows of a training, one for each prompt of its synthesis."""
    run = plan.synthesis(stage)
    return None if run is None else _num_prompts(plan, run, prompts)


def _num_prompts(plan: Plan, stage: StageConfig, prompts: Mapping[str, list[Prompt]]) -> int:
    """Return the prompts of a synthesis or an evaluation in one round."""
    num = plan.config.prompts_per_round if stage.run == "synthesize" else None
    return num or len(prompts[stage.folder])


def _row(plan: Plan, stage: StageConfig, needs: Needs, price: float) -> dict[str, str]:
    cost = needs.cost(price)
    return {
        "stage": stage.folder,
        "GPUs": ", ".join(map(str, stage.gpus or ())) or "none",
        "servers": ", ".join(stage.servers) or "none",
        "GiB of each": "" if needs.memory is None else f"{needs.memory:.1f}",
        "hours": "" if needs.hours is None else f"{needs.hours:.2g}",
        "cost": "" if cost is None else f"{cost:.2f}",
        "state": "complete" if is_complete(plan.folder(1, stage.folder)) else "waiting",
    }


def _sum(values: list[float | None], times: int, digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not known"
    total, unknown = f"{sum(known) * times:,.{digits}f}", len(values) - len(known)
    return f"{total} (not known of {unknown} stages)" if unknown else total
