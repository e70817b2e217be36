"""What decides the results of a pipeline, so that a folder is resumed only with the same."""

import json
from collections.abc import Mapping
from typing import Any

from toa_trl.pipeline.checks import prompts_of
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.plan import Plan
from toa_trl.pipeline.trainings import training_identity
from toa_trl.sampling.identity import (
    OPERATIONAL_RUN_KEYS,
    check_same_identity,
    decisive,
    digest_of_prompts,
)
from toa_trl.types import Prompt
from toa_trl.utils.files import write_json


def identity_of(plan: Plan) -> dict[str, Any]:
    """Return everything that decides the results except the number of rounds, as JSON values.

    Raises:
        ConfigError: see `toa_trl.pipeline.checks.prompts_of`.
    """
    prompts = prompts_of(plan)
    stages = {stage.folder: _of_stage(plan, stage, prompts) for stage in plan.stages}
    config = plan.config
    common = {"student": config.student, "stages": stages, "seed": config.seed}
    if plan.rounds is not None:
        common["prompts_per_round"] = config.prompts_per_round
        common["student_from_round"] = config.student_from_round
    return plan.arranged(decisive({**common, **options_of_rounds(plan)}))


def options_of_rounds(plan: Plan) -> dict[str, Any]:
    """Return the options of rounds that differ from their defaults, as JSON values."""
    config = plan.config
    options: dict[str, Any] = {}
    if config.start_from != "previous":
        options["start_from"] = config.start_from
    for key, value in (("replay", config.replay), ("gate", config.gate)):
        if value is not None:
            options[key] = value.model_dump()
    return options


def _of_stage(
    plan: Plan, stage: StageConfig, prompts: Mapping[str, list[Prompt]]
) -> dict[str, Any]:
    if stage.command:
        return training_identity(stage)
    keys = {
        key: value for key, value in plan.keys(stage).items() if key not in OPERATIONAL_RUN_KEYS
    }
    if stage.folder in prompts:
        keys["prompts"] = digest_of_prompts(prompts[stage.folder])
    given = {"model": stage.model, "data": stage.data, "launch": stage.launch}
    return {"run": stage.run, **{k: v for k, v in given.items() if v}, "config": keys}


def record_identity(plan: Plan, identity: Mapping[str, Any]) -> None:
    """Write the identity into the folder, or check that it is the one of what was begun there.

    A stage that has not begun may still change.

    Raises:
        ConfigError: the configuration of what was begun is another one.
    """
    path = plan.output / plan.record
    if path.is_file():
        recorded = json.loads(path.read_text(encoding="utf-8"))
        check_same_identity(plan.output, _begun(plan, recorded), _begun(plan, identity))
    write_json(path, identity)


def _begun(plan: Plan, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity without the stages of a pipeline that have not begun."""
    if "stages" not in identity:
        return dict(identity)
    pattern = "{}.log" if plan.rounds is None else "round-*/{}.log"
    stages = {
        name: stage
        for name, stage in identity["stages"].items()
        if any(plan.output.glob(pattern.format(name)))
    }
    return {**identity, "stages": stages}
