"""The plan that `toa-trl run --dry_run` prints."""

from collections.abc import Iterator

from toa_trl.pipeline.plan import Plan
from toa_trl.pipeline.steps import is_complete


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield a line for every stage: what it runs, on which GPUs, beside which servers."""
    times = "once" if plan.rounds is None else f"{plan.rounds} times"
    yield f"{plan.output}: {len(plan.stages)} stages, {times}"
    for stage in plan.stages:
        parts = [f"  {stage.folder}: {stage.run or stage.command}"]
        if stage.gpus is not None:
            parts.append(f"GPUs {', '.join(map(str, stage.gpus)) or 'none'}")
        if stage.servers:
            parts.append(f"servers {', '.join(stage.servers)}")
        if is_complete(plan.folder(1, stage.folder)):
            parts.append("complete")
        yield "; ".join(parts)
