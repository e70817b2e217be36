"""The stages of every round: who samples, what is trained, what is evaluated."""

import re
from collections import Counter
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from toa_trl.agents import ENGINES
from toa_trl.cli.config import SynthesisConfig
from toa_trl.cli.evaluation_config import EvaluationConfig
from toa_trl.errors import ConfigError
from toa_trl.models.sources import is_adapter
from toa_trl.sampling.identity import OPERATIONAL_RUN_KEYS, decisive, digest_of_prompts
from toa_trl.utils.config import Config, NonNegativeInt, PositiveInt, Text, model_of, validate
from toa_trl.utils.files import read_yaml
from toa_trl.utils.subprocesses import check_command, configurations

UNTRAINED = "base"  # name of the student of round 0 in evaluation and report
MERGED = "-merged"  # suffix of a whole model's folder beside that of its adapter


def _check_name(name: str) -> str:
    reserved = name in ("synthesis", "evaluation") or name.endswith(MERGED)
    if reserved or not re.fullmatch(r"\w[\w-]*", name):
        text = f"{name!r} cannot be the name of a folder here; for example sft"
        raise PydanticCustomError("explained", "{text}", {"text": text})
    return name


def _check_command(command: str) -> str:
    try:
        check_command("", command)
    except ConfigError as error:
        text = str(error).removeprefix(": ")
        raise PydanticCustomError("explained", "{text}", {"text": text}) from error
    return command


class Stage(Config):
    """One training of every round; it starts from the model of the stage before it."""

    name: Annotated[str, AfterValidator(_check_name)]
    """Name of its folder."""
    command: Annotated[str, AfterValidator(_check_command)]
    """The training as typed in a shell; --model_name_or_path, --dataset_name, --output_dir and
    --seed are added."""
    data: Literal["sft", "dpo"]
    """Folder of the round's synthesis from which it learns."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result of the stage on given data."""
        files = {str(file): read_yaml(file) for file in configurations(self.command)}
        return {"command": self.command, "data": self.data, "configurations": files}


@dataclass(frozen=True)
class Plan:
    """Rounds of sampling, training and evaluation.

    Args:
        student: an agent's entry, engine transformers or vllm; round 1 trains its model.
        synthesize: keys of `toa-trl synthesize`; the student joins the agents.
        train: entries of `Stage`; an adapter that a stage leaves is merged into its base.
        evaluate: keys of `toa-trl evaluate`; its prompts are held out.
        output_dir: folder of all rounds.
        seed: of sampling and training in round 1; each further round adds 1.
        prompts_per_round: number of new prompts in each round; None: every round uses the same.
        student_from_round: first round with the student among the agents; in round 1 it is
            untrained.

    Raises:
        ConfigError: an argument is invalid.
    """

    student: Annotated[dict[str, Any], ENGINES]
    synthesize: dict[str, Any]
    train: Annotated[list[dict[str, Any]], Field(min_length=1)]
    evaluate: dict[str, Any]
    output_dir: Text
    seed: NonNegativeInt = 0
    prompts_per_round: PositiveInt | None = None
    student_from_round: PositiveInt = 1

    def __post_init__(self) -> None:
        """Check every argument, before anything is spent."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        engine = self.student.get("engine") if isinstance(self.student, dict) else None
        if engine is not None and engine not in ("transformers", "vllm"):
            # a server would keep the model that it has
            raise ConfigError(f"student.engine: must be transformers or vllm, not {engine!r}")
        validate(model_of(type(self)), given)
        own = {
            "synthesize": ["seed", "output_dir", "skip_prompts"],
            "evaluate": ["models", "baseline", "results", "output_dir"],
        }
        if self.prompts_per_round is not None:
            own["synthesize"].append("num_prompts")
        for part, keys in own.items():
            for key in keys:
                if key in given[part]:
                    raise ConfigError(f"{part}.{key}: is set by the round; omit the key")
        for key in ("name", "model"):
            if not self.student.get(key):
                raise ConfigError(f"student: the key {key!r} is missing")
        for name, count in Counter(stage.name for stage in self.stages).items():
            if count > 1:
                raise ConfigError(f"train: {count} stages have the name {name!r}")
        self._check_agents()
        validate(SynthesisConfig, self.synthesis(1), "synthesize")
        validate(EvaluationConfig, self.evaluation(0), "evaluate")

    def _check_agents(self) -> None:
        agents = self.synthesize.get("agents")
        validate(Annotated[list[dict[str, Any]], Field(min_length=1)], agents, "synthesize.agents")
        names = [agent.get("name") for agent in self._agents]
        if None in names or len({*names, self.student["name"]}) <= len(names):
            raise ConfigError(
                "synthesize.agents: names must be different from each other and from the "
                f"student's, not {names}"
            )

    @cached_property
    def stages(self) -> list[Stage]:
        """The trainings of a round."""
        return [
            validate(Stage, entry, f"train[{number}]") for number, entry in enumerate(self.train)
        ]

    def folder(self, number: int, name: str) -> Path:
        """Return the folder of a stage of a round."""
        return Path(self.output_dir) / f"round-{number}" / name

    def model(self, number: int) -> str:
        """Return the student's model after a round."""
        if number == 0:
            return str(self.student["model"])
        return str(whole_model(self.folder(number, self.stages[-1].name)))

    def synthesis(self, number: int) -> dict[str, Any]:
        """Return the configuration of `toa-trl synthesize` in a round."""
        agents, num = list(self._agents), self.prompts_per_round
        if number >= self.student_from_round:
            agents.append({**self.student, "model": self.model(number - 1)})
        share = {} if num is None else {"num_prompts": num, "skip_prompts": (number - 1) * num}
        own = {
            "agents": agents,
            "seed": self.seed + number - 1,
            "output_dir": str(self.folder(number, "synthesis")),
        }
        return {**self.synthesize, **share, **own}

    def evaluation(self, number: int) -> dict[str, Any]:
        """Return the configuration of `toa-trl evaluate` after a round: of all students so far."""
        entry = {key: value for key, value in self.student.items() if key != "price"}
        names = [UNTRAINED, *(f"round-{index}" for index in range(1, number + 1))]
        own = {
            "models": [
                {**entry, "name": name, "model": self.model(index)}
                for index, name in enumerate(names)
            ],
            "baseline": UNTRAINED,
            "results": str(self.folder(number, "evaluation") / "results.json"),
            "output_dir": str(Path(self.output_dir) / "outputs"),
        }
        return {**self.evaluate, **own}

    def identity(self, rounds: int) -> dict[str, Any]:
        """Return everything that decides the rounds except their number, as JSON values.

        Raises:
            ConfigError: too few prompts for so many rounds, or a held-out one is among them.
        """
        everything = {**self.synthesize, "output_dir": self.output_dir}
        prompts = validate(SynthesisConfig, everything, "synthesize").load_prompts()
        heldout = validate(EvaluationConfig, self.evaluation(0), "evaluate").load_prompts()
        needed = rounds * (self.prompts_per_round or 0)
        if len(prompts) < needed:
            raise ConfigError(
                f"prompts_per_round: {rounds} rounds need {needed} prompts; there are "
                f"{len(prompts)}"
            )
        trained_on = {prompt.messages for prompt in prompts}
        seen = [prompt.id for prompt in heldout if prompt.messages in trained_on]
        if seen:
            raise ConfigError(
                f"evaluate: {len(seen)} of its prompts are among those of synthesize, such as "
                f"{seen[0]!r}"
            )
        sampling = {
            k: value for k, value in self.synthesize.items() if k not in OPERATIONAL_RUN_KEYS
        }
        sampling["agents"] = {agent["name"]: agent for agent in self._agents}
        sampling["prompts"] = digest_of_prompts(prompts)
        return dict(
            decisive(
                {
                    "student": self.student,
                    "synthesize": sampling,
                    "train": {stage.name: stage.identity for stage in self.stages},
                    "evaluate": {**self.evaluate, "prompts": digest_of_prompts(heldout)},
                    "seed": self.seed,
                    "prompts_per_round": self.prompts_per_round,
                    "student_from_round": self.student_from_round,
                }
            )
        )

    @property
    def _agents(self) -> list[dict[str, Any]]:
        agents: list[dict[str, Any]] = self.synthesize["agents"]
        return agents


def whole_model(folder: Path) -> Path:
    """Return the folder of a training's whole model: beside the folder if that holds an adapter."""
    return folder.with_name(folder.name + MERGED) if is_adapter(folder) else folder
