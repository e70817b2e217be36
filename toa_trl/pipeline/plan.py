"""The stages of every round, and what each of them is given."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from toa_trl.cli.arguments import find_config
from toa_trl.errors import ConfigError
from toa_trl.models.sources import is_adapter
from toa_trl.pipeline.config import MERGED, PipelineConfig, StageConfig
from toa_trl.pipeline.fleets import endpoints_of_stage, student_address
from toa_trl.serving.endpoints import with_endpoints
from toa_trl.utils.files import expand_paths, map_leaves, read_yaml

UNTRAINED = "base"  # name of the student before any training, in evaluations and as a start
GATE = "gate.json"
REFERENCE = re.compile(r"stage:([\w-]+)(?:/(.+))?")


class Plan:
    """Stages, once or round after round.

    Args:
        config: the stages, and what they have in common.
        places: of each stage, the path of its entry for errors, and that of its configuration; by
            default those of a pipeline.

    `toa_trl.pipeline.checks` checks one, `toa_trl.pipeline.run` runs it.
    """

    record = "pipeline.json"

    def __init__(
        self, config: PipelineConfig, places: Sequence[tuple[str, str]] | None = None
    ) -> None:
        self.config = config
        self.stages = config.stages
        self.output = Path(config.output_dir)
        entries = [f"stages[{number}]" for number in range(len(self.stages))]
        given = places or [(entry, f"{entry}.config") for entry in entries]
        self._places = {
            stage.folder: place for stage, place in zip(self.stages, given, strict=True)
        }

    @property
    def keys_set(self) -> dict[str, list[str]]:
        """Which keys of a stage's configuration are set by the plan, by its command."""
        own = {"synthesize": ["seed", "output_dir"], "evaluate": ["results", "output_dir"]}
        if self.rounds is not None:
            own["synthesize"].append("skip_prompts")
            own["evaluate"] = ["models", "baseline", *own["evaluate"]]
        if self.config.prompts_per_round is not None:
            own["synthesize"].append("num_prompts")
        return own

    @property
    def rounds(self) -> int | None:
        """Number of rounds; None: the stages run once."""
        return self.config.rounds

    @property
    def student(self) -> dict[str, Any]:
        """Entry of the student; empty if there is none."""
        return dict(self.config.student or {})

    @cached_property
    def trainings(self) -> list[StageConfig]:
        """The stages that train the student, in order."""
        return [stage for stage in self.stages if stage.trains_student]

    @property
    def schedule(self) -> list[tuple[StageConfig, int]]:
        """The stages of all rounds in their order, with the numbers of the rounds."""
        stages = []
        if self.rounds is not None:
            stages += [(stage, 0) for stage in self.stages if stage.run == "evaluate"]
        for number in range(1, (self.rounds or 1) + 1):
            stages += [(stage, number) for stage in self.stages]
        return stages

    def place(self, stage: StageConfig) -> str:
        """Return the path of a stage's entry, for errors."""
        return self._places[stage.folder][0]

    def arranged(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return an identity in the form in which it is recorded."""
        return dict(identity)

    def place_of_config(self, stage: StageConfig) -> str:
        """Return the path of the keys of a stage's command, for errors."""
        return self._places[stage.folder][1]

    def label(self, stage: StageConfig, number: int) -> str:
        """Return what a stage of a round is called."""
        return stage.folder if self.rounds is None else f"round {number}, {stage.folder}"

    def folder(self, number: int, name: str) -> Path:
        """Return the folder of a stage of a round."""
        parent = self.output if self.rounds is None else self.output / f"round-{number}"
        return parent / name

    def before(self, stage: StageConfig) -> list[StageConfig]:
        """Return the stages before a stage."""
        return self.stages[: self.stages.index(stage)]

    def trained(self, number: int) -> str:
        """Return the model that a round has trained; that of round 0 is the untrained student."""
        if number == 0 or not self.trainings:
            return str(self.student["model"])
        return str(whole_model(self.folder(number, self.trainings[-1].folder)))

    def accepted(self, number: int) -> int:
        """Return the last round, up to this one, whose student the gate has accepted."""
        while number > 0 and self.config.gate is not None:
            decision = self.decision(number)
            if decision is not None and decision["accepted"]:
                break
            number -= 1
        return number

    def decision(self, number: int) -> dict[str, Any] | None:
        """Return what the gate has decided on the student of a round; None if there is nothing."""
        file = self.folder(number, GATE)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def model(self, number: int) -> str:
        """Return the student's model after a round: the best one if a gate has refused later."""
        return self.trained(self.accepted(number))

    def start(self, stage: StageConfig, number: int) -> str | None:
        """Return the model that a training starts from; None: that of its own configuration."""
        earlier = [other for other in self.before(stage) if other.trains_student]
        if stage.model is not None and stage.model != UNTRAINED:
            names = [other.folder for other in self.before(stage) if other.is_training]
            if stage.model in names:
                return str(whole_model(self.folder(number, stage.model)))
            return stage.model
        if stage.run == "reward":
            return None
        if earlier and stage.model is None:
            return str(whole_model(self.folder(number, earlier[-1].folder)))
        if not self.student:
            return None
        fresh = stage.model == UNTRAINED or self.config.start_from == "base"
        return self.model(0 if fresh or self.rounds is None else number - 1)

    def maker(self, stage: StageConfig) -> StageConfig | None:
        """Return the stage before a stage whose data it takes; None if there is none."""
        makers = [other for other in self.before(stage) if other.makes_data]
        if stage.data is not None:
            name = stage.data.partition("/")[0]
            makers = [other for other in makers if other.folder == name]
        elif stage.run == "grpo":  # takes the prompts and the reward model of a run itself
            makers = [other for other in makers if other.run == "synthesize"]
        return makers[-1] if makers else None

    def synthesis(self, stage: StageConfig) -> StageConfig | None:
        """Return the synthesis from which the data of a stage comes; None if there is none."""
        maker = self.maker(stage)
        while maker is not None and maker.run != "synthesize":
            maker = self.maker(maker)
        return maker

    def data(self, stage: StageConfig, number: int) -> Path | None:
        """Return the folder of the data that a stage takes; None: of its own configuration."""
        maker = self.maker(stage)
        if maker is None:
            return None
        part = (stage.data or "").partition("/")[2]
        return self.folder(number, maker.folder) / part

    def keys(self, stage: StageConfig) -> dict[str, Any]:
        """Return the configuration of a stage as the user gave it, with its options."""
        content = stage.config
        if isinstance(content, str):
            place = self.place_of_config(stage)
            content = expand_paths(read_yaml(find_config(content, place), place=f"{place}: "))
        return {**content, **stage.options}

    def content(self, stage: StageConfig, number: int) -> dict[str, Any]:
        """Return the configuration of a stage of a round, as its command takes it."""
        resolve = partial(self._resolved, stage, number)
        content: dict[str, Any] = map_leaves(resolve, self.keys(stage))
        if stage.run == "synthesize":
            content |= self._synthesis(content, stage, number)
        elif stage.run == "evaluate":
            content |= self._evaluation(content, stage, number)
        if stage.servers:
            content = with_endpoints(content, endpoints_of_stage(self, stage, number), "servers")
        return content

    def _synthesis(
        self, content: Mapping[str, Any], stage: StageConfig, number: int
    ) -> dict[str, Any]:
        own: dict[str, Any] = {
            "seed": self.config.seed + number - 1,
            "output_dir": str(self.folder(number, stage.folder)),
        }
        num = self.config.prompts_per_round
        if num is not None:
            own |= {"num_prompts": num, "skip_prompts": (number - 1) * num}
        if self.rounds is not None and number >= self.config.student_from_round:
            model = self.model(number - 1)
            own["agents"] = [*content["agents"], self.student_entry(stage, number, model=model)]
        return own

    def _evaluation(
        self, content: Mapping[str, Any], stage: StageConfig, number: int
    ) -> dict[str, Any]:
        folder = self.folder(number, stage.folder)
        own: dict[str, Any] = {"results": str(folder / "results.json")}
        own["output_dir"] = str(self.output / "outputs")
        if "models" in content and self.rounds is None:
            return own
        students = self.students(stage, number)
        entries = [self.student_entry(stage, number, **student) for student in students]
        for entry in entries:
            entry.pop("price", None)
        own["models"] = entries
        return {**own, "baseline": content.get("baseline") or UNTRAINED}

    def students(self, stage: StageConfig, number: int) -> list[dict[str, str]]:
        """Return name and model of every student so far, for an evaluation."""
        if self.rounds is not None:
            names = [UNTRAINED, *(f"round-{index}" for index in range(1, number + 1))]
            return [
                {"name": name, "model": self.trained(index)} for index, name in enumerate(names)
            ]
        trained = [
            {"name": other.folder, "model": str(whole_model(self.folder(1, other.folder)))}
            for other in self.before(stage)
            if other.trains_student
        ]
        return [{"name": UNTRAINED, "model": self.trained(0)}, *trained]

    def student_entry(self, stage: StageConfig, number: int, **keys: str) -> dict[str, Any]:
        """Return the student as an agent, with its address if a server of the stage serves it."""
        entry = {**self.student, **keys}
        if entry.get("engine") == "openai":
            entry |= student_address(self, stage, number)
        return entry

    def _resolved(self, stage: StageConfig, number: int, value: Any) -> Any:
        """Return the folder, or the whole model, of the stage that the value stage:NAME names."""
        matched = REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if matched is None:
            return value
        name, rest = matched.groups()
        others = {other.folder: other for other in self.before(stage)}
        if name not in others:
            raise ConfigError(f"{self.place(stage)}: {value!r} names no stage before it")
        folder = self.folder(number, name)
        if others[name].is_training and not rest:
            return str(whole_model(folder))
        return str(folder / (rest or ""))


def whole_model(folder: Path) -> Path:
    """Return the folder of a training's whole model: beside the folder if that holds an adapter."""
    return folder.with_name(folder.name + MERGED) if is_adapter(folder) else folder
