"""Rounds of sampling, training and evaluation: a pipeline of three kinds of stages."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from toa_trl.agents import ENGINES, IN_PROCESS
from toa_trl.errors import ConfigError
from toa_trl.pipeline.checks import check_plan
from toa_trl.pipeline.config import (
    Command,
    PipelineConfig,
    RoundsConfig,
    StageConfig,
    check_folder,
)
from toa_trl.pipeline.plan import Plan
from toa_trl.utils.config import Config, PositiveInt, check_names, validate
from toa_trl.utils.registry import Arguments

SYNTHESIS, EVALUATION = "synthesis", "evaluation"  # folders of a round


def _check_engine(student: Any) -> Any:
    engine = student.get("engine") if isinstance(student, Mapping) else None
    if engine is not None and engine not in IN_PROCESS:
        # a server would keep the model that it has
        raise ConfigError(f"student.engine: must be transformers or vllm, not {engine!r}")
    return student


class Stage(Config):
    """One training of every round; it starts from the model of the stage before it."""

    name: Annotated[str, AfterValidator(partial(check_folder, (SYNTHESIS, EVALUATION)))]
    """Name of its folder."""
    command: Command
    """The training as typed in a shell; --model_name_or_path, --dataset_name, --output_dir and
    --seed are added."""
    data: Literal["sft", "dpo"]
    """Folder of the round's synthesis from which it learns."""


class IterationConfig(RoundsConfig):
    """A student that improves over rounds of sampling, training and evaluation."""

    rounds: PositiveInt = 2
    """Number of rounds."""
    student: Annotated[dict[str, Any], ENGINES, BeforeValidator(_check_engine)]
    """{name, engine: transformers | vllm, model, ...}: an agent, and the model that is trained."""
    synthesize: dict[str, Any]
    """Keys of `toa-trl synthesize`; the student joins the agents."""
    train: Annotated[
        list[Annotated[dict[str, Any], Arguments("toa_trl.pipeline.iteration:Stage")]],
        Field(min_length=1),
    ]
    """Stages of the training of a round: {name, data: sft | dpo, command}."""
    evaluate: dict[str, Any]
    """Keys of `toa-trl evaluate`, on held-out prompts."""


class IterationPlan(Plan):
    """The stages of `toa-trl iterate`: a synthesis, trainings and an evaluation in every round."""

    record = "iteration.json"

    def arranged(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return an identity in the form that iteration.json has had from the beginning."""
        stages = dict(identity["stages"])
        sampling = dict(stages.pop(SYNTHESIS)["config"])
        sampling["agents"] = {agent["name"]: agent for agent in sampling["agents"]}
        return {
            "student": identity["student"],
            "synthesize": sampling,
            "evaluate": stages.pop(EVALUATION)["config"],
            "train": stages,
            **{key: value for key, value in identity.items() if key not in ("student", "stages")},
        }


def iteration_plan(config: IterationConfig) -> Plan:
    """Return the checked plan of rounds.

    Raises:
        ConfigError: a part is invalid, or the parts do not fit together.
    """
    settings = config.model_dump()
    synthesize, train, evaluate = (settings.pop(key) for key in ("synthesize", "train", "evaluate"))
    trainings = [validate(Stage, entry, f"train[{number}]") for number, entry in enumerate(train)]
    check_names("train", [training.name for training in trainings])
    stages = [
        StageConfig(run="synthesize", name=SYNTHESIS, config=synthesize),
        *(
            StageConfig(name=made.name, command=made.command, data=f"{SYNTHESIS}/{made.data}")
            for made in trainings
        ),
        StageConfig(run="evaluate", name=EVALUATION, config=evaluate),
    ]
    places = ["synthesize", *(f"train[{number}]" for number in range(len(train))), "evaluate"]
    pipeline = PipelineConfig.model_construct(
        **{**PipelineConfig.model_construct(output_dir="").__dict__, **settings, "stages": stages}
    )
    plan = IterationPlan(pipeline, [(place, place) for place in places])
    check_plan(plan)
    return plan
