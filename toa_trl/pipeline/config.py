"""The configuration of a pipeline: stages, GPUs, servers and rounds."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from toa_trl.agents import ENGINES
from toa_trl.cli.main import TRAININGS
from toa_trl.errors import ConfigError
from toa_trl.serving.fleet import FleetOptions, ServerConfig
from toa_trl.utils.config import (
    CHECKED_VARIABLES,
    Config,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Raw,
    Text,
    check_names,
)
from toa_trl.utils.config_errors import explained, nearest
from toa_trl.utils.subprocesses import check_command

MERGED = "-merged"  # suffix of a whole model's folder beside that of its adapter
RUNS = ("synthesize", "data", *TRAININGS, "evaluate", "push")


def check_folder(reserved: Sequence[str], name: str) -> str:
    """Return the name of a stage's folder.

    Raises:
        PydanticCustomError: it is reserved, or would not be one folder.
    """
    if name in reserved or name.endswith(MERGED) or not re.fullmatch(r"\w[\w-]*", name):
        raise explained(f"{name!r} cannot be the name of a folder here; for example sft")
    return name


def _check_command(command: str) -> str:
    try:
        check_command("", command)
    except ConfigError as error:
        raise explained(str(error).removeprefix(": ")) from error
    return command


def _check_run(run: str) -> str:
    if run in ("serve", "serve-agents"):
        raise explained("servers are no stage; name them in servers of the stages that need them")
    if run not in RUNS:
        raise explained(f"must be one of {', '.join(RUNS)}, not {run!r}{nearest(run, RUNS)}")
    return run


def _check_gpus(gpus: list[int]) -> list[int]:
    for gpu, count in Counter(gpus).items():
        if count > 1:
            raise explained(f"GPU {gpu} is named {count} times")
    return gpus


def _check_launch(launch: dict[str, Any]) -> dict[str, Any]:
    number = launch.get("num_processes")
    if number is not None and not re.fullmatch("0*[1-9][0-9]*", str(number)):
        raise explained(f"num_processes must be an integer >= 1, not {number!r}")
    return launch


Name = Annotated[str, AfterValidator(partial(check_folder, ("outputs", "logs")))]
Command = Annotated[str, AfterValidator(_check_command)]
Gpus = Annotated[list[NonNegativeInt], AfterValidator(_check_gpus)]
Launch = Annotated[dict[str, str | int | bool], AfterValidator(_check_launch)]


class StageConfig(Config):
    """One stage: a command of toa-trl in a process of its own."""

    run: Annotated[str, AfterValidator(_check_run)] = ""
    """The command: synthesize, data, sft, dpo, reward, preference, grpo, evaluate or push."""
    name: Name = ""
    """Name of its folder; by default that of the command."""
    command: Command | None = None
    """A training as typed in a shell, instead of run; --model_name_or_path, --dataset_name,
    --output_dir and --seed are added."""
    config: str | dict[str, Any] = Field(default_factory=dict)
    """Configuration of the command: a file, the name of a bundled one, or its keys. A value
    stage:NAME stands for what an earlier stage has left, as stage:synthesize/rollouts."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keys that override those of config."""
    model: Text | None = None
    """Where a training starts: base, the name of an earlier training, or a model; by default the
    training before it, or else the student."""
    data: Text | None = None
    """Stage whose data a training or push takes, as synthesize or synthesize/sft; by default the
    last synthesize or data stage before it."""
    gpus: Gpus | None = None
    """GPUs of the stage: its CUDA_VISIBLE_DEVICES. A stage without them sees no GPU if others
    name some."""
    servers: list[Text] = Field(default_factory=list)
    """Names of the servers that run during the stage."""
    launch: Launch = Field(default_factory=dict)
    """Options of accelerate: {accelerate_config: zero3}; num_processes is the number of gpus."""
    launcher: Text | None = None
    """Command that starts the stage's command, such as scripts/slurm/every_node."""
    env: Annotated[dict[str, str | int | float], CHECKED_VARIABLES] = Field(default_factory=dict)
    """Environment variables of the stage."""
    hours: PositiveFloat | None = None
    """Time that the stage takes, for the plan, if it is known: toa-trl pilot measures it."""

    @model_validator(mode="after")
    def _check_one_command(self) -> Self:
        if bool(self.run) == bool(self.command):
            raise explained("needs either run or command")
        if self.command and not self.name:
            raise explained("the key 'name' is missing")
        if self.command and (self.config or self.options or self.launch):
            raise explained("command: has its options in the text; omit config, options, launch")
        return self

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return self.name or self.run

    @property
    def is_training(self) -> bool:
        """Whether it trains a model."""
        return bool(self.command) or self.run in TRAININGS

    @property
    def trains_student(self) -> bool:
        """Whether it trains the student, and not a reward model."""
        return self.is_training and self.run != "reward"

    @property
    def makes_data(self) -> bool:
        """Whether trainings can learn from what it leaves."""
        return self.run in ("synthesize", "data")


class ServersConfig(FleetOptions):
    """Servers of the fleet; they run only during the stages that name them."""

    servers: Annotated[list[Annotated[dict[str, Any], Raw(ServerConfig)]], Field(min_length=1)]
    """The servers, as in fleet.yaml; the one with the student's name serves the student."""
    try_first: bool = True
    """Start the servers of later stages once before the first stage, wait until they are healthy,
    and stop them again; but for those that serve a model of this pipeline, and those tried
    before."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        check_names("servers", [entry.get("name") for entry in self.servers])
        return self


class MachineConfig(Config):
    """What the pipeline runs on: for checks, and for the plan that --dry-run prints."""

    gpus: PositiveInt | None = None
    """Number of GPUs; by default all of this machine."""
    gpu_memory: PositiveFloat | None = None
    """GiB of each GPU; a training that does not fit is refused."""
    gpu: str | None = None
    """Name of the GPU, such as H100: gives the hours of trainings."""
    price: NonNegativeFloat = 0.0
    """Price of one GPU for one hour."""
    tokens_per_s: PositiveFloat = 2000.0
    """Tokens that one GPU generates per second: gives the hours of sampling."""
    mean_tokens: PositiveInt = 512
    """Tokens of a response on average."""


class ReplayConfig(Config):
    """Data of earlier rounds in the trainings of later ones."""

    rounds: PositiveInt = 1
    """Number of earlier rounds."""
    share: Annotated[Fraction, Field(gt=0, lt=1)] = 0.3
    """Share of their rows, together, in the mixture."""


class GateConfig(Config):
    """What becomes of a student that is worse on the held-out prompts."""

    metric: Literal["accuracy", "mean_reward", "win_rate"] = "accuracy"
    """Figure of the evaluation: accuracy needs a verifier, mean_reward a reward, and win_rate is
    that against the untrained student, which stands at 0.5."""
    tolerance: NonNegativeFloat = 0.0
    """How much worse than the best student before it a student may be."""
    if_worse: Literal["stop", "fall_back"] = "fall_back"
    """stop: end after the round; fall_back: the next round starts from the best student."""


class RoundsConfig(Config):
    """Keys that repeat the stages, with the student of the round before among the agents."""

    student: Annotated[dict[str, Any], ENGINES] | None = None
    """{name, engine: transformers | vllm, model, ...}: an agent, and the model that is trained. In
    a pipeline with engine: openai, too, if one of the servers has its name."""
    prompts_per_round: PositiveInt | None = None
    """Number of new prompts in each round; by default every round uses the same prompts."""
    student_from_round: PositiveInt = 1
    """First round with the student among the agents; in round 1 it is untrained."""
    start_from: Literal["previous", "base"] = "previous"
    """Model that a round trains: the student of the round before, or the untrained one."""
    replay: ReplayConfig | None = None
    """Data of earlier rounds that a training learns from again."""
    gate: GateConfig | None = None
    """What becomes of a student that is worse than one before it."""
    seed: NonNegativeInt = 0
    """Random seed of round 1; each further round adds 1."""
    output_dir: Text
    """Folder of everything."""


class PipelineConfig(RoundsConfig):
    """From prompts to an evaluated student, stage after stage."""

    stages: Annotated[list[StageConfig], Field(min_length=1)]
    """What is done, in this order."""
    rounds: PositiveInt | None = None
    """Repeat the stages so many times, in folders round-1, round-2, ...; by default they run once,
    in output_dir itself."""
    serve_as: Literal["whole", "lora"] = "whole"
    """How the student's server has it: as a whole model, or as a LoRA adapter of its base."""
    servers: ServersConfig | None = None
    """Servers that stages can name."""
    machine: MachineConfig = Field(default_factory=MachineConfig)
    """GPUs, their memory and price."""
    dry_run: bool = False
    """Print the plan, with hours, memory and cost, and start nothing."""
