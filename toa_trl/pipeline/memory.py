"""Whether the trainings of a pipeline fit their GPUs, before the first stage."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toa_trl.cli.arguments import find_bundled
from toa_trl.errors import ConfigError
from toa_trl.models.devices import num_accelerators
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.fleets import fleet_of
from toa_trl.pipeline.gpus import SAMPLING, Labelled, models_of, replicas_of
from toa_trl.pipeline.plan import Plan
from toa_trl.pipeline.steps import is_complete
from toa_trl.training.estimate.reward import weights_of
from toa_trl.training.estimate.sizes import GIB

USABLE = 0.9  # of a GPU: vLLM's default, and what the weights of models in a process may take
# keys of a training without influence on its memory
NOT_COUNTED = ("dataset_name", "datasets", "env", "check_only", "check_rows")


@dataclass(frozen=True)
class Needs:
    """What a stage of one round needs; None: not known, for the reason in the note."""

    memory: float | None = None  # GiB of each GPU
    hours: float | None = None
    note: str = ""
    gpus: int = 0
    calls: float = 0.0  # price of the API's tokens

    def cost(self, price: float) -> float | None:
        """Return the price of the stage, with that of a GPU for an hour."""
        if self.hours is None and self.gpus and price:
            return None
        return self.calls + (self.hours or 0.0) * self.gpus * price


@dataclass(frozen=True)
class _Loaded:
    """A replica of a model."""

    label: str
    model: str
    gpus: Sequence[int]
    share: float | None = None  # of the memory of each GPU, which vLLM reserves


def check_memory(plan: Plan) -> None:
    """Check that every stage fits, if machine.gpu_memory says how much there is.

    Raises:
        ConfigError: one does not.
    """
    if plan.config.machine.gpu_memory is None:
        return
    for stage in plan.stages:
        if stage.is_training and not stage.command:
            training_needs(plan, stage, None)
        elif stage.run in SAMPLING:
            sampling_memory(plan, stage)


def check_trainings(plan: Plan, dry_run: bool = False) -> None:
    """Check the options of the trainings that are not complete, as their commands parse them.

    With `dry_run` the plan may be for another machine.

    Raises:
        ConfigError: an option is unknown or invalid, or a training needs a GPU and there is none.
    """
    for stage in plan.stages:
        waits = not is_complete(plan.folder(plan.rounds or 1, stage.folder))
        if stage.is_training and not stage.command and waits:
            _check_launch(plan, stage)
            options = _options(plan, stage, None)
            needs_gpu = not options.on_cpu and options.parsed[2].bf16
            if needs_gpu and not dry_run and not stage.launcher and not num_accelerators():
                raise ConfigError(
                    f"{plan.place(stage)}: {stage.folder} needs a GPU, and there is none; to train "
                    "on the CPU set use_cpu: true and bf16: false"
                )


def _check_launch(plan: Plan, stage: StageConfig) -> None:
    named = stage.launch.get("accelerate_config")
    if named is not None:
        place = f"{plan.place(stage)}.launch.accelerate_config"
        find_bundled(str(named), "accelerate_configs", place)


def _options(plan: Plan, stage: StageConfig, num_rows: int | None) -> Any:
    """Return the parsed options of a training.

    Raises:
        ConfigError: one is unknown or invalid.
    """
    from toa_trl.training.estimate.command import read_options

    try:
        return read_options(_arguments(plan, stage, num_rows))
    except ConfigError as error:
        raise ConfigError(f"{plan.place_of_config(stage)}: {error}") from None


def training_needs(plan: Plan, stage: StageConfig, num_rows: int | None) -> Needs:
    """Return what a training needs.

    Args:
        plan: of the pipeline.
        stage: the training.
        num_rows: of its data, which may not be there yet; None: no hours are estimated.

    Raises:
        ConfigError: it does not fit the memory of its GPUs.
    """
    from toa_trl.training.estimate.command import estimate_of

    options = _options(plan, stage, num_rows)
    try:
        made = estimate_of(options)
        needed = made.memory.total / GIB
    except ConfigError as error:  # such as a model whose config.json is not here yet
        reason = " ".join(str(error).split())
        return Needs(note=f"memory is not known: {reason}")
    available = plan.config.machine.gpu_memory
    if available is not None and needed > USABLE * available:
        raise ConfigError(
            f"{plan.place(stage)}: {stage.folder} needs {needed:.1f} GiB on each GPU, and "
            f"{USABLE:.0%} of {available:g} GiB are usable; `toa-trl estimate` shows what would fit"
        )
    hours, notes = None, [made.note.strip()]
    try:
        hours = made.hours if num_rows else None
    except ConfigError as error:  # such as a GPU whose speed is not known
        notes.append(f"machine.{error}")
    return Needs(needed, hours, "; ".join(filter(None, notes)))


def sampling_memory(plan: Plan, stage: StageConfig) -> Needs:
    """Return what the servers of a stage, and the models in its process, take of a GPU.

    vLLM takes its share of the memory, other models their weights and batches, of which only the
    weights are counted, in bfloat16.

    Raises:
        ConfigError: weights do not fit.
    """
    served, unknown = list(_served(plan, stage)), list[str]()
    needed = list[float]()
    for together in models_of(plan, stage) or [[]]:
        loaded = [*served, *_loaded(stage, together)]
        needed += _memory_of(plan, stage, loaded, unknown).values()
    note = f"the size of {', '.join(dict.fromkeys(unknown))} is not known" if unknown else ""
    return Needs(max(needed, default=None), note=note)


def _memory_of(
    plan: Plan, stage: StageConfig, loaded: Iterable[_Loaded], unknown: list[str]
) -> dict[int, float]:
    """Return GiB by GPU of models that are in memory together; collect those of unknown size.

    Raises:
        ConfigError: they do not fit.
    """
    totals = defaultdict[int, float](float)
    available = plan.config.machine.gpu_memory
    for model in loaded:
        weights = weights_of(model.model, "bfloat16")
        if weights is None:
            unknown.append(model.model)
            continue
        room = None if available is None else (model.share or USABLE) * available
        each = weights / GIB / len(model.gpus)
        if room is not None and each > room:
            raise ConfigError(
                f"{plan.place(stage)}: the weights of {model.label} take {each:.1f} GiB of each "
                f"GPU, and {room:.1f} GiB are usable"
            )
        for gpu in model.gpus:
            totals[gpu] += room if model.share and room else each
    for gpu, total in totals.items():
        if available is not None and total > available:
            raise ConfigError(
                f"{plan.place(stage)}: the models on GPU {gpu} take {total:.1f} GiB, and it has "
                f"{available:g}"
            )
    return totals


def _served(plan: Plan, stage: StageConfig) -> Iterator[_Loaded]:
    """Yield what the servers of a stage load."""
    fleet = fleet_of(plan, stage, 1)
    for replica in fleet.replicas if fleet else ():
        if replica.gpus:
            server = replica.server
            share = server.memory_share or USABLE
            yield _Loaded(replica.label, server.model, replica.gpus, share)


def _loaded(stage: StageConfig, models: Iterable[Labelled]) -> Iterator[_Loaded]:
    """Yield what the process of a stage loads."""
    gpus = stage.gpus or []
    for label, entry in models:
        share = None
        if entry.get("engine") == "vllm":
            share = (entry.get("engine_args") or {}).get("gpu_memory_utilization") or USABLE
        for numbers in replicas_of(entry, len(gpus)).values():
            taken = [gpus[number] for number in numbers if number < len(gpus)]
            if entry.get("model") and taken:
                yield _Loaded(label, str(entry["model"]), taken, share)


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
        "gpu_memory": machine.gpu_memory,
    }
    if stage.run == "grpo" and not keys.get("reward"):  # that of its run, which is not there yet
        run = plan.synthesis(stage)
        options["reward"] = plan.keys(run).get("reward") if run else None
    arguments = []
    for key, value in {**keys, **options}.items():
        if key not in NOT_COUNTED and value is not None:
            values = value if isinstance(value, list) and key != "reward" else [value]
            texts = [json.dumps(v) if isinstance(v, dict | list) else str(v) for v in values]
            arguments += [f"--{key}", *texts]
    return arguments


def _first_model(plan: Plan, stage: StageConfig) -> str | None:
    """Return the model of which the shape is taken: one that was trained here is not there yet."""
    model = plan.start(stage, 1)
    if model is None or not Path(model).is_relative_to(plan.output) or Path(model).exists():
        return model
    earlier = [other for other in plan.before(stage) if other.trains_student]
    first = earlier[0]
    return plan.start(first, 1) or plan.keys(first).get("model_name_or_path")
