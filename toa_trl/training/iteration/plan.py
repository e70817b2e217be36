"""What happens in every round: who samples, what is trained, what is judged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from toa_trl.cli.config import EvaluationArguments, SynthesisArguments
from toa_trl.errors import ConfigError
from toa_trl.models.loading import is_adapter
from toa_trl.sampler import decisive, digest
from toa_trl.utils.files import read_yaml
from toa_trl.utils.registry import check_whole, choose, construct
from toa_trl.utils.subprocesses import check_command, configurations

UNTRAINED = "base"  # the student of round 0, as the report knows it
MERGED = "-merged"  # ends the name of a whole model's folder, beside that of its adapter
# keys of recipes/synthesize.py that say where and how fast, not what: the rounds may go on with others
WHERE = {
    "endpoints",
    "prompts_in_flight",
    "patience_s",
    "runner",
    "num_shards",
    "num_cpus",
    "num_gpus",
    "ray_address",
}


@dataclass(frozen=True)
class Stage:
    """One training of every round; it begins with the model that the one before it left.

    Raises:
        ConfigError: a name that no folder can have here, other data, or a command that cannot be started.
    """

    name: str  # of its folder
    command: str  # as a person types it; --model_name_or_path, --dataset_name, --output_dir and --seed are added
    data: str  # the folder of the round's synthesis that it learns from: sft or dpo

    def __post_init__(self) -> None:
        taken = self.name in ("synthesis", "evaluation") or str(self.name).endswith(MERGED)
        if taken or not re.fullmatch(r"\w[\w-]*", str(self.name)):
            raise ConfigError(
                f"train: name {self.name!r} is no name for a folder here; for example sft"
            )
        choose(f"train: {self.name}", "data", dict.fromkeys(("sft", "dpo")), self.data)
        check_command(f"train: {self.name}: command", self.command)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides what it makes of its data."""
        files = {str(file): read_yaml(file) for file in configurations(self.command)}
        return {"command": self.command, "data": self.data, "configurations": files}


@dataclass(frozen=True)
class Plan:
    """Rounds of sampling, training and evaluation.

    Raises:
        ConfigError: anything of this is not as it should be; the message names it.
    """

    student: Mapping[
        str, Any
    ]  # an agent's entry, engine transformers or vllm; its model is what round 1 trains
    synthesize: Mapping[str, Any]  # keys of recipes/synthesize.py; the student joins the agents
    train: Sequence[
        Mapping[str, Any]
    ]  # entries of `Stage`; an adapter that one leaves is merged into its base
    evaluate: Mapping[str, Any]  # keys of recipes/evaluate.py; its prompts are held out
    output_dir: str
    seed: int = 0  # of round 1's sampling and training; that of each next round is 1 higher
    prompts_per_round: int | None = (
        None  # every round takes the next so many; None: every round takes the same ones
    )
    student_from_round: int = (
        1  # the first round with the student among the agents; in round 1 it is untrained
    )

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ConfigError("output_dir: the key is missing; name the folder of all rounds")
        check_whole("seed", self.seed, at_least=0)
        check_whole("student_from_round", self.student_from_round, at_least=1)
        own = {"synthesize": ["seed", "output_dir", "skip_prompts"]}
        own["evaluate"] = ["models", "baseline", "results", "output_dir"]
        if self.prompts_per_round is not None:
            check_whole("prompts_per_round", self.prompts_per_round, at_least=1)
            own["synthesize"].append("num_prompts")
        for part, keys in own.items():
            given = getattr(self, part)
            if not isinstance(given, Mapping):
                raise ConfigError(
                    f"{part}: the keys of recipes/{part}.py are needed, not {given!r}"
                )
            if taken := [key for key in keys if key in given]:
                raise ConfigError(f"{part}: {taken[0]} is given by the round; leave it out")
        if (
            not isinstance(self.student, Mapping)
            or not {"name", "engine", "model"} <= self.student.keys()
        ):
            raise ConfigError(
                f"student: an agent's entry {{name, engine, model, ...}} is needed, not {self.student!r}"
            )
        # a server would go on with the model that it has
        choose("student", "engine", dict.fromkeys(("transformers", "vllm")), self.student["engine"])
        if not isinstance(self.train, list | tuple) or not self.train:
            raise ConfigError("train: a list of stages {name, command, data} is needed")
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise ConfigError("train: two stages have one name")
        names = [
            agent.get("name") if isinstance(agent, Mapping) else None for agent in self._agents
        ]
        if None in names or len({*names, self.student["name"]}) <= len(names):
            raise ConfigError(
                f"synthesize: agents: different names are needed, and none that the student has: {names}"
            )
        construct("synthesize", SynthesisArguments, params=self.synthesis(1))
        construct("evaluate", EvaluationArguments, params=self.evaluation(0))

    @cached_property
    def stages(self) -> list[Stage]:
        """The trainings of a round."""
        return [construct("train", Stage, params=each) for each in self.train]

    def folder(self, number: int, name: str) -> Path:
        """Of a stage of a round."""
        return Path(self.output_dir) / f"round-{number}" / name

    def model(self, number: int) -> str:
        """The student after a round."""
        return (
            str(whole(self.folder(number, self.stages[-1].name)))
            if number
            else str(self.student["model"])
        )

    def synthesis(self, number: int) -> dict[str, Any]:
        """The configuration of recipes/synthesize.py in a round."""
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
        """The configuration of recipes/evaluate.py after a round: the students of all rounds so far."""
        entry = {key: value for key, value in self.student.items() if key != "price"}
        names = [UNTRAINED, *(f"round-{at}" for at in range(1, number + 1))]
        models = [{**entry, "name": name, "model": self.model(at)} for at, name in enumerate(names)]
        results, outputs = (
            self.folder(number, "evaluation") / "results.json",
            Path(self.output_dir) / "outputs",
        )
        own = {
            "models": models,
            "baseline": UNTRAINED,
            "results": str(results),
            "output_dir": str(outputs),
        }
        return {**self.evaluate, **own}

    def identity(self, rounds: int) -> dict[str, Any]:
        """Everything that decides the rounds but how many they are, as JSON values.

        Raises:
            ConfigError: too few prompts for so many rounds, or a held-out one is among them.
        """
        everything = {**self.synthesize, "output_dir": self.output_dir}
        prompts = construct("synthesize", SynthesisArguments, params=everything).load_prompts()
        heldout = construct(
            "evaluate", EvaluationArguments, params=self.evaluation(0)
        ).load_prompts()
        if len(prompts) < (needed := rounds * (self.prompts_per_round or 0)):
            raise ConfigError(
                f"prompts_per_round: {rounds} rounds need {needed} prompts; there are {len(prompts)}"
            )
        known = {prompt.messages for prompt in prompts}
        if seen := [prompt.id for prompt in heldout if prompt.messages in known]:
            raise ConfigError(
                f"evaluate: {len(seen)} of its prompts are among those of synthesize, as {seen[0]!r}"
            )
        sampling = {key: value for key, value in self.synthesize.items() if key not in WHERE}
        return dict(
            decisive(
                {
                    "student": self.student,
                    "synthesize": {
                        **sampling,
                        "agents": {agent["name"]: agent for agent in self._agents},
                        "prompts": digest(prompts),
                    },
                    "train": {stage.name: stage.identity for stage in self.stages},
                    "evaluate": {**self.evaluate, "prompts": digest(heldout)},
                    "seed": self.seed,
                    "prompts_per_round": self.prompts_per_round,
                    "student_from_round": self.student_from_round,
                }
            )
        )

    @property
    def _agents(self) -> Sequence[Any]:
        agents = self.synthesize.get("agents") or []
        if not isinstance(agents, list | tuple):
            raise ConfigError(f"synthesize: agents: a list is needed, not {agents!r}")
        return agents


def whole(folder: Path) -> Path:
    """Where the model of a training is whole: beside the folder, where that holds an adapter alone."""
    return folder.with_name(folder.name + MERGED) if is_adapter(folder) else folder
