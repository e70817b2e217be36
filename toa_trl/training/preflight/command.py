"""Check a command before it starts: template, tokens, mask, what is cut, agents, and memory.

    toa-trl check --config sft.yaml --gpu_memory 80
    toa-trl check --config synthesize.yaml

Takes every option of the recipe: that of --recipe, of the launch command in the first line of
--config, of its file name, or of a key that only a synthesis (agents) or an evaluation (models)
has. For a training it is the recipe with --check_only; of a synthesis or
an evaluation prompts and agents are checked. Only tokenizers and configurations of models are
loaded. The exit code is 1 if an error is found. Options besides those of the recipe:

    --recipe sft              the command that is checked
    --check_rows 200          rows of the data that are tokenized
    --gpu_memory 80           GiB of each GPU; by default that of this machine's
    --accelerate_config zero3 how the training is spread; by default that of the launch command
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.console import Console

from toa_trl.cli.arguments import config_of, option_of, with_bundled_config
from toa_trl.cli.config import SynthesisConfig
from toa_trl.cli.evaluation_config import EvaluationConfig
from toa_trl.cli.main import TRAININGS, call_command
from toa_trl.cli.options import read_config
from toa_trl.errors import ConfigError
from toa_trl.models.devices import num_accelerators
from toa_trl.training.data import TrainingData
from toa_trl.training.estimate.plan import accelerate_config_of, recipe_of, sharding_of
from toa_trl.training.findings import Finding
from toa_trl.training.options import Options, is_true, option
from toa_trl.training.preflight.agents import agent_findings
from toa_trl.training.preflight.checks import NUM_ROWS, preflight
from toa_trl.training.preflight.memory import gpu_memory_here, memory_finding, running_sharding
from toa_trl.training.preflight.report import print_findings, print_row
from toa_trl.utils.config import PositiveFloat, PositiveInt
from toa_trl.utils.escape import say

SAMPLE = {"synthesize": SynthesisConfig, "evaluate": EvaluationConfig}
KEY_OF = {"synthesize": "agents", "evaluate": "models"}  # a required key that no training has


@dataclass
class CheckArguments(Options):
    """Options of the check, which every training recipe takes."""

    ranges: ClassVar = {"check_rows": PositiveInt, "gpu_memory": PositiveFloat | None}
    check_only: bool = option("Check data, tokenizer and memory, and stop.", False)
    check_rows: int = option("Rows that are tokenized by the check.", NUM_ROWS)
    gpu_memory: float | None = option("GiB of each GPU, for --check_only. Default: of this GPU.")
    accelerate_config: str | None = option(
        "For the memory in --check_only. Default: of --config's first line."
    )


def main() -> None:
    """Check the command that the options in sys.argv are for.

    Raises:
        ConfigError: the recipe is unknown, or one of its options.
        SystemExit: with 1, if a check finds an error.
    """
    arguments = with_bundled_config(sys.argv[1:])
    if not arguments or {"-h", "--help"} & set(arguments):
        say(__doc__)
        return
    recipe = _find_recipe(arguments)
    arguments = _without_recipe(arguments)
    if recipe in TRAININGS:
        call_command(recipe, [*arguments, "--check_only", "True"])
    elif recipe in SAMPLE:
        _check_sampling(SAMPLE[recipe], arguments)
    else:
        raise ConfigError(
            f"recipe: must be one of {', '.join([*TRAININGS, *SAMPLE])}, not {recipe!r}; give "
            "--recipe, or write the launch command into the first line of --config"
        )


def _find_recipe(arguments: list[str]) -> str | None:
    """Return the command that a configuration is for, or what its file name says instead."""
    path, settings = config_of(arguments)
    name = path.stem.partition("_")[0] if path else None
    recipe = recipe_of(arguments) or name
    if recipe != name or recipe in (*TRAININGS, *SAMPLE):
        return recipe
    for sampling, key in KEY_OF.items():
        if key in settings or option_of(arguments, key) is not None:
            return sampling
    return recipe


def _check_sampling(config_class: Any, arguments: list[str]) -> None:
    """Check prompts and agents of a synthesis or an evaluation."""
    config = read_config(config_class, arguments)
    findings = list[Finding]()
    if config.has_prompts:
        try:
            num_prompts = len(config.load_prompts())
            findings.append(Finding("fine", "prompts", f"{num_prompts:,} prompts"))
        except ConfigError as error:
            findings.append(Finding("error", "prompts", str(error)))
    entries = config.agents if isinstance(config, SynthesisConfig) else config.models
    findings += agent_findings(entries, config.sampling)
    print_findings(findings, Console(highlight=False))
    _exit_if_error(findings)


def _without_recipe(arguments: Sequence[str]) -> list[str]:
    kept = [argument for argument in arguments if not argument.startswith("--recipe=")]
    if "--recipe" in kept:
        at = kept.index("--recipe")
        del kept[at : at + 2]
    return kept


def arguments_of_check(arguments: list[str]) -> tuple[list[str], bool]:
    """Return the arguments of a training, and whether it runs on CPUs.

    With --check_only on a machine without a GPU they get --use_cpu, without which TRL refuses bf16:
    the training may be for another machine.
    """
    on_cpu = is_true(option_of(arguments, "use_cpu"))
    if is_true(option_of(arguments, "check_only")) and not on_cpu and not num_accelerators():
        return [*arguments, "--use_cpu", "True"], on_cpu
    return arguments, on_cpu


def check_training(
    method: str,
    load: Callable[[], TrainingData],
    training: Any,
    model: Any,
    options: CheckArguments,
    on_cpu: bool,
    reward_bytes: float = 0.0,
) -> None:
    """Print what the checks of a training find, and one row of its data.

    Args:
        method: name of the method, such as "SFT".
        load: checks the model and loads the data.
        training: configuration of the trainer.
        model: TRL's ModelConfig.
        options: of the check.
        on_cpu: whether the training runs on CPUs.
        reward_bytes: of the reward models that the training loads on its device.

    Raises:
        SystemExit: with 1, if any finding is an error.
    """
    console = Console(highlight=False)
    findings, checked = list[Finding](), None
    try:
        checked = preflight(load(), training, model, method, options.check_rows)
        findings += checked.findings
    except ConfigError as error:
        findings.append(Finding("error", "configuration", str(error)))
    memory = _memory(method, training, model, options, on_cpu, reward_bytes)
    if checked is not None or memory.level != "fine":  # else the error may be why it is unknown
        findings.append(memory)
    if training.process_index == 0:
        print_findings(findings, console)
        if checked is not None:
            limit = getattr(training, "max_length", None)
            print_row(checked.rows, checked.tokenizer, limit, console)
    _exit_if_error(findings)


def _exit_if_error(findings: Sequence[Finding]) -> None:
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)


def _memory(
    method: str,
    training: Any,
    model: Any,
    options: CheckArguments,
    on_cpu: bool,
    reward_bytes: float,
) -> Finding:
    try:
        sharding = running_sharding()
        if sharding.num_devices == 1:  # not launched: as it will be
            path, _ = config_of(sys.argv[1:])
            sharding = sharding_of(options.accelerate_config or accelerate_config_of(path))
    except ConfigError as error:
        return Finding("fine", "memory", f"there is no estimate: {error}")
    memory = options.gpu_memory or (None if on_cpu else gpu_memory_here())
    return memory_finding(method, training, model, sharding, memory, on_cpu, reward_bytes)
