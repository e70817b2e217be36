"""Checks of a plan before anything is spent: each mistake is one line."""

from typing import Annotated, Any

from pydantic import Field

from toa_trl.agents import IN_PROCESS
from toa_trl.cli.config import SynthesisConfig
from toa_trl.cli.evaluation_config import EvaluationConfig
from toa_trl.errors import ConfigError
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.plan import Plan
from toa_trl.tasks import make_task
from toa_trl.training.packages import package_findings
from toa_trl.types import Prompt
from toa_trl.utils.config import Text, check_names, validate

MODELS = {"synthesize": SynthesisConfig, "evaluate": EvaluationConfig}


def check_plan(plan: Plan) -> None:
    """Check that the stages fit together, and the configurations of syntheses and evaluations.

    Raises:
        ConfigError: they do not, or one is invalid.
    """
    check_names("stages", [stage.folder for stage in plan.stages])
    _check_student(plan)
    for stage in plan.stages:
        _check_inputs(plan, stage)
    for stage in plan.stages:
        if stage.run in MODELS:
            _check_content(plan, stage)
        else:
            plan.content(stage, 1)
    _check_gate(plan)


def _check_student(plan: Plan) -> None:
    config, student = plan.config, plan.student
    if plan.rounds is not None and not student:
        raise ConfigError("student: the key is missing; rounds train it")
    of_rounds = (config.prompts_per_round, config.replay, config.gate)
    if plan.rounds is None and any(value is not None for value in of_rounds):
        raise ConfigError(
            "rounds: the key is missing; prompts_per_round, replay and gate are of rounds"
        )
    for key in ("name", "model"):
        if student and not student.get(key):
            raise ConfigError(f"student: the key {key!r} is missing")
    engine = student.get("engine")
    served = [entry["name"] for entry in config.servers.servers] if config.servers else []
    is_served = engine == "openai" and student["name"] in served
    if engine and engine not in IN_PROCESS and not is_served:
        # another server would keep the model that it has
        raise ConfigError(
            f"student.engine: must be transformers or vllm, not {engine!r}; for openai add a "
            f"server named {student['name']!r}"
        )


def _check_inputs(plan: Plan, stage: StageConfig) -> None:
    """Check that what a stage takes exists, or is made before it."""
    place, keys, name = plan.place(stage), plan.keys(stage), stage.folder
    before = plan.before(stage)
    if stage.data is not None and plan.maker(stage) is None:
        source = stage.data.partition("/")[0]
        raise ConfigError(
            f"{place}.data: must be a synthesize or data stage before it, not {source!r}"
        )
    later = [other.folder for other in plan.stages if other not in before]
    if stage.model in later:
        raise ConfigError(f"{place}.model: {stage.model!r} is no training before it")
    has_data = plan.data(stage, 1) is not None or bool({"dataset_name", "datasets"} & keys.keys())
    if stage.is_training and not has_data:
        raise ConfigError(
            f"{place}: {name} has no data; put synthesize or data before it, or give dataset_name"
        )
    has_model = plan.start(stage, 1) is not None or "model_name_or_path" in keys
    if stage.is_training and not has_model and not stage.command:
        raise ConfigError(f"{place}: {name} has no model; give model, or name a student")
    if stage.is_training:
        for missing in package_findings(keys):
            raise ConfigError(f"{plan.place_of_config(stage)}.{missing}")
    if stage.run in ("data", "push") and plan.data(stage, 1) is None:
        raise ConfigError(f"{place}: {name} has no run; put synthesize before it")
    if stage.run == "push" and not keys.get("repo_id"):
        raise ConfigError(f"{place}.config: the key 'repo_id' is missing")
    if stage.run == "evaluate" and "models" not in keys:
        if not plan.student:
            raise ConfigError(f"{place}: {name} has no models; give models, or name a student")
        if plan.rounds is None and plan.student.get("engine") == "openai":
            raise ConfigError(
                f"{place}: {name} needs models; one server cannot serve every student of a "
                "pipeline without rounds"
            )


def _check_content(plan: Plan, stage: StageConfig) -> None:
    place, keys = plan.place_of_config(stage), plan.keys(stage)
    if not isinstance(stage.config, str):  # a file may be that of a run without a pipeline
        for key in plan.keys_set[stage.run]:
            if key in keys:
                what = "pipeline" if plan.rounds is None else "round"
                raise ConfigError(f"{place}.{key}: is set by the {what}; omit the key")
    if stage.run == "synthesize":
        _check_agents(plan, f"{place}.agents", keys.get("agents"))
    read_content(plan, stage, 0 if stage.run == "evaluate" else 1)


def read_content(plan: Plan, stage: StageConfig, number: int) -> Any:
    """Return the validated configuration of a synthesis or an evaluation of a round.

    Raises:
        ConfigError: it is invalid.
    """
    content = plan.content(stage, number)
    content.pop("env", None)
    return validate(MODELS[stage.run], content, plan.place_of_config(stage))


def _check_agents(plan: Plan, place: str, agents: Any) -> None:
    validate(Annotated[list[dict[str, Any]], Field(min_length=1)], agents, place)
    names = [agent.get("name") for agent in agents]
    for index, name in enumerate(names):
        validate(Text | None, name, f"{place}[{index}].name")
    students = [] if plan.rounds is None else [plan.student["name"]]
    if None in names or len({*names, *students}) < len(names) + len(students):
        others = " and from the student's" if students else ""
        raise ConfigError(f"{place}: names must be different from each other{others}, not {names}")


def _check_gate(plan: Plan) -> None:
    """Check that what a gate compares is measured, on prompts that are held out."""
    gate = plan.config.gate
    if gate is None:
        return
    evaluations = [stage for stage in plan.stages if stage.run == "evaluate"]
    if not evaluations or not plan.keys(evaluations[-1]).get("prompts"):
        raise ConfigError("gate: needs held-out prompts; add an evaluate stage with prompts")
    stage = evaluations[-1]
    config, place = read_content(plan, stage, 0), plan.place_of_config(stage)
    verifier = config.verifier or make_task(config.task).verifier
    needed, has_any = {
        "mean_reward": ("reward", config.reward),
        "win_rate": ("reward", config.reward or config.judge or verifier),
        "accuracy": ("verifier", verifier),
    }[gate.metric]
    if not has_any:
        raise ConfigError(
            f"gate.metric: {place} measures no {gate.metric}; give it a {needed}, or choose "
            "another metric"
        )


def prompts_of(plan: Plan) -> dict[str, list[Prompt]]:
    """Return the prompts of every synthesis and evaluation, by the names of the stages.

    Raises:
        ConfigError: prompts cannot be read or are too few for the rounds, or a held-out one is
            among those that are trained on.
    """
    prompts, trained_on = dict[str, list[Prompt]](), set[Any]()
    for stage in plan.stages:
        if stage.run == "synthesize":
            prompts[stage.folder] = _prompts_of_rounds(plan, stage)
            trained_on |= {prompt.messages for prompt in prompts[stage.folder]}
    for stage in plan.stages:
        if stage.run != "evaluate":
            continue
        config = read_content(plan, stage, 0)
        if not config.has_prompts:
            continue
        heldout = prompts[stage.folder] = config.load_prompts()
        seen = [prompt.id for prompt in heldout if prompt.messages in trained_on]
        if seen:
            place = plan.place_of_config(stage)
            raise ConfigError(
                f"{place}: {len(seen)} of its prompts are among those of synthesize, such as "
                f"{seen[0]!r}"
            )
    return prompts


def _prompts_of_rounds(plan: Plan, stage: StageConfig) -> list[Prompt]:
    """Return the prompts of a synthesis; with new ones in each round, those of all rounds."""
    config = read_content(plan, stage, 1)
    num = plan.config.prompts_per_round
    if num is not None:
        config = config.model_copy(update={"num_prompts": None, "skip_prompts": 0})
    loaded: list[Prompt] = config.load_prompts()
    needed = (plan.rounds or 0) * (num or 0)
    if len(loaded) < needed:
        raise ConfigError(
            f"prompts_per_round: {plan.rounds} rounds need {needed} prompts; there are "
            f"{len(loaded)}"
        )
    return loaded
