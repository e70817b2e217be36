"""The configuration of rounds of sampling, training and evaluation."""

from typing import Annotated, Any

from pydantic import Field

from toa_trl.agents import ENGINES
from toa_trl.utils.config import Config, NonNegativeInt, PositiveInt, Text
from toa_trl.utils.registry import Arguments


class IterationConfig(Config):
    """A student that improves over rounds of sampling, training and evaluation."""

    rounds: PositiveInt = 2
    """Number of rounds."""
    student: Annotated[dict[str, Any], ENGINES]
    """{name, engine: transformers | vllm, model, ...}: an agent, and the model that is trained."""
    synthesize: dict[str, Any]
    """Keys of `toa-trl synthesize`; the student joins the agents."""
    train: Annotated[
        list[Annotated[dict[str, Any], Arguments("toa_trl.pipeline.plan:Stage")]],
        Field(min_length=1),
    ]
    """Stages of the training of a round: {name, data: sft | dpo, command}."""
    evaluate: dict[str, Any]
    """Keys of `toa-trl evaluate`, on held-out prompts."""
    seed: NonNegativeInt = 0
    """Random seed of round 1; each further round adds 1."""
    prompts_per_round: PositiveInt | None = None
    """Number of new prompts in each round; by default every round uses the same prompts."""
    student_from_round: PositiveInt = 1
    """First round with the student among the agents; in round 1 it is untrained."""
    output_dir: Text
    """Folder of all rounds."""
