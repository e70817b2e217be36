"""Whether the trainings of a pipeline fit their GPUs, before the first stage."""

from dataclasses import dataclass
from pathlib import Path

from toa_trl.errors import ConfigError
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.plan import Plan

RECIPES = ("sft", "dpo", "reward")  # with an estimate


@dataclass(frozen=True)
class TrainingNeeds:
    """Memory and time of a training; None: not known, for the reason in the note."""

    memory: float | None = None  # GiB of each GPU
    hours: float | None = None
    note: str = ""


def check_memory(plan: Plan) -> None:
    """Check that every training fits, if machine.gpu_memory says how much there is.

    Raises:
        ConfigError: one does not.
    """
    if plan.config.machine.gpu_memory is None:
        return
    for stage in plan.stages:
        if stage.is_training and not stage.command:
            training_needs(plan, stage, None)


def training_needs(plan: Plan, stage: StageConfig, num_rows: int | None) -> TrainingNeeds:
    """Return what a training needs.

    Args:
        plan: of the pipeline.
        stage: the training.
        num_rows: of its data, which may not be there yet; None: no hours are estimated.

    Raises:
        ConfigError: it does not fit the memory of its GPUs.
    """
    if stage.run not in RECIPES:
        return TrainingNeeds(note=f"there is no estimate of {stage.run}")
    from toa_trl.training.estimate.command import read_estimate
    from toa_trl.training.estimate.memory import GIB
    from toa_trl.training.estimate.text import USABLE

    try:
        made = read_estimate(_arguments(plan, stage, num_rows))
        needed = made.memory.total / GIB
        hours = made.hours if num_rows else None
    except ConfigError as error:  # such as a model whose config.json is not here yet
        return TrainingNeeds(note=f"memory is not known: {str(error).splitlines()[0][:100]}")
    available = plan.config.machine.gpu_memory
    if available is not None and needed > USABLE * available:
        raise ConfigError(
            f"{plan.place(stage)}: {stage.folder} needs {needed:.1f} GiB on each GPU, and "
            f"{USABLE:.0%} of {available:g} GiB are usable; `toa-trl estimate` shows what would fit"
        )
    return TrainingNeeds(needed, hours, "" if num_rows else "hours are not known")


def _arguments(plan: Plan, stage: StageConfig, num_rows: int | None) -> list[str]:
    """Return the command line of `toa-trl estimate` for a training."""
    machine, keys = plan.config.machine, plan.keys(stage)
    keys |= {"model_name_or_path": _first_model(plan, stage) or keys.get("model_name_or_path")}
    options = {
        "recipe": stage.run,
        "accelerate_config": stage.launch.get("accelerate_config"),
        "num_gpus": len(stage.gpus or [0]),
        "gpu": machine.gpu if num_rows else None,
        "num_rows": num_rows,
        "mean_tokens": 2 * machine.mean_tokens,  # with the prompt
    }
    arguments = []
    for key, value in {**keys, **options}.items():
        if key not in ("dataset_name", "datasets", "env") and value is not None:
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{key}", *map(str, values)]
    return arguments


def _first_model(plan: Plan, stage: StageConfig) -> str | None:
    """Return the model of which the shape is taken: one that was trained here is not there yet."""
    model = plan.start(stage, 1)
    if model is None or not Path(model).is_relative_to(plan.output) or Path(model).exists():
        return model
    earlier = [other for other in plan.before(stage) if other.trains_student]
    first = earlier[0]
    return plan.start(first, 1) or plan.keys(first).get("model_name_or_path")
