"""Training commands that start accelerate themselves, as `trl sft` does."""

import subprocess
import sys
from collections.abc import Callable, Sequence

from toa_trl.cli.arguments import find_bundled
from toa_trl.errors import ConfigError

# options of accelerate launch that TRL's trainers have too; they go to the trainer
OF_TRAINERS = {"--debug", "--gradient_accumulation_steps", "--help"}


def run_training(
    name: str, arguments: Sequence[str], command: Callable[[Sequence[str]], None]
) -> None:
    """Run a training command: in this process, or with options of accelerate through its launcher.

    Args:
        name: of the command.
        arguments: of the command line, the launcher's among them.
        command: runs the training in this process.

    Raises:
        ConfigError: an accelerate configuration does not exist, or an option lacks its value.
        SystemExit: with the exit code of the launched processes, unless it is 0.
    """
    launcher, rest = split_launcher_options(arguments)
    if not launcher:
        command(rest)
        return
    done = subprocess.run(launch_command(name, launcher, rest), check=False)
    if done.returncode:
        sys.exit(done.returncode)


def launch_command(name: str, launcher: Sequence[str], rest: Sequence[str]) -> list[str]:
    """Return the argv that launches a training command with accelerate."""
    module = "accelerate.commands.launch"
    quiet = [] if "--quiet" in launcher else ["--quiet"]  # the training's error, not the launcher's
    return [sys.executable, "-m", module, *quiet, *launcher, "-m", "toa_trl", name, *rest]


def split_launcher_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options of accelerate launch, --accelerate_config resolved, and all others."""
    if not any(argument.startswith("--") for argument in arguments):
        return [], list(arguments)
    with_value = _accelerate_options()
    launcher, rest = list[str](), list[str]()
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, equals, value = argument.partition("=")
        option = _with_underscores(name)
        if option not in with_value:
            rest.append(argument)
            continue
        if with_value[option] and not equals:
            if not remaining:
                raise ConfigError(f"{name}: a value is missing")
            value = remaining.pop(0)
        if option == "--accelerate_config":
            path = find_bundled(value, "accelerate_configs", option)
            option, value = "--config_file", str(path)
        launcher += [option, value] if with_value[option] else [option]
    return launcher, rest


def _accelerate_options() -> dict[str, bool]:
    """Return the launcher's own options, and whether each takes a value."""
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    options = {"--accelerate_config": True}
    for option, action in parser._option_string_actions.items():
        name = _with_underscores(option)
        if name.startswith("--") and name not in OF_TRAINERS:
            options[name] = action.nargs != 0
    return options


def _with_underscores(option: str) -> str:
    """Return an option --like-this as --like_this."""
    return option.replace("-", "_").replace("__", "--", 1)
