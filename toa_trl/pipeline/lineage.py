"""Lineage over rounds: rounds.json says from what each student was trained."""

from pathlib import Path
from typing import Any

from toa_trl.hub.lineage import read_lineage
from toa_trl.pipeline.plan import Plan
from toa_trl.pipeline.trainings import replayed_rounds
from toa_trl.utils.files import write_json
from toa_trl.utils.targets import marked

FILE = "rounds.json"  # a lineage.json would make the folder one of data


def write_lineage(plan: Plan, last: int) -> None:
    """Write rounds.json of all rounds up to the last one.

    Every model has a lineage.json of its own, with the whole chain before it; this one shows the
    rounds at a glance: the round that each started from, its data, and the gate's decision.
    """
    accepted = plan.accepted(last)
    student = {"round": accepted, "model": _relative(plan, plan.trained(accepted))}
    content = {
        "base_model": plan.student["model"],
        "student": student,
        "rounds": [_of_round(plan, number) for number in range(1, last + 1)],
    }
    write_json(plan.output / FILE, marked(content))


def _of_round(plan: Plan, number: int) -> dict[str, Any]:
    decision = plan.decision(number)
    start = 0 if plan.config.start_from == "base" else plan.accepted(number - 1)
    return {
        "round": number,
        "start": start,
        "model": _relative(plan, plan.trained(number)),
        "data": [
            {"round": earlier, **_data(plan, earlier)}
            for earlier in [number, *replayed_rounds(plan, number)]
        ],
        "accepted": decision["accepted"] if decision else True,
        "gate": decision,
    }


def _data(plan: Plan, number: int) -> dict[str, Any]:
    makers = [stage for stage in plan.stages if stage.run == "synthesize"]
    if not makers:
        return {}
    lineage = read_lineage(str(plan.folder(number, makers[-1].folder)))
    return {"fingerprint": lineage.get("fingerprint"), "seed": lineage.get("seed")}


def _relative(plan: Plan, model: str) -> str:
    path = Path(model)
    return str(path.relative_to(plan.output)) if path.is_relative_to(plan.output) else model
