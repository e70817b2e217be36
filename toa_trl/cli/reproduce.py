"""Run an experiment of the TOA paper, step by step.

    toa-trl reproduce                        lists the experiments
    toa-trl reproduce scaling --show         prints the commands of one
    toa-trl reproduce scaling                runs them in order, and skips those that are done
    toa-trl reproduce scaling --scale tiny   the same steps with scripted models: seconds, no GPU

Experiments are the folders of recipes/configs/paper, which docs/paper describes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import Field

from toa_trl.cli.arguments import Parser, find_config, help_formatter
from toa_trl.cli.tiny_scale import tiny_command
from toa_trl.errors import ConfigError, ToaError
from toa_trl.sampling.identity import digest_of_values
from toa_trl.utils.config import Config, Text, validate
from toa_trl.utils.config_errors import nearest
from toa_trl.utils.escape import say
from toa_trl.utils.files import read_yaml, write_json

CONFIGS = "recipes/configs/paper"
STATE = "reproduce.json"  # the steps that are done, beside the results


class Experiment(Config):
    """The contents of experiment.yaml."""

    title: Text
    """What it is."""
    source: Text
    """Table, figure or section of the paper, or where else it comes from."""
    measured: Text
    """What the paper measures."""
    needs: list[Text] = Field(default_factory=list)
    """Experiments whose results it uses."""
    servers: list[Text] = Field(default_factory=list)
    """Commands of the servers that must run."""
    commands: list[Text]
    """The steps."""


@dataclass(frozen=True)
class Step:
    """One command of an experiment."""

    argv: list[str]  # without toa-trl

    @property
    def identity(self) -> str:
        """What decides it: the command, and the contents of its configuration."""
        texts = [
            find_config(value).read_text(encoding="utf-8")
            for option, value in zip(self.argv, self.argv[1:], strict=False)
            if option == "--config"
        ]
        return str(digest_of_values(self.argv, *texts))


def main() -> None:
    """List the experiments, or run one.

    Raises:
        ConfigError: there is no such experiment.
        ToaError: a step failed.
    """
    formatter = help_formatter(argparse.RawDescriptionHelpFormatter)
    parser = Parser(description=__doc__, formatter_class=formatter)
    parser.add_argument("experiment", nargs="?", help="name of the experiment (default: list all)")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--show", action="store_true", help="print the commands and run nothing")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of a tiny experiment (default: runs/tiny); a full one is in runs/paper",
    )
    options = parser.parse_args()
    known = experiments()
    if options.experiment is None:
        for name, experiment in known.items():
            say(f"{name:15}{experiment.title}\n{'':15}in the paper: {experiment.source}")
        return
    if options.experiment not in known:
        close = nearest(options.experiment, known)
        raise ConfigError(f"unknown experiment {options.experiment!r}{close}; known: {list(known)}")
    if options.output is not None and options.scale == "full":
        raise ConfigError("--output: needs --scale tiny")
    if options.show:
        show(known[options.experiment])
    elif options.scale == "tiny":
        folder = options.output or Path("runs/tiny")
        for name in (*known[options.experiment].needs, options.experiment):
            run_steps(known[name], folder / name, lambda step: run_tiny(step, folder))
    else:
        for name in known[options.experiment].needs:
            say(f"{options.experiment} uses the results of: toa-trl reproduce {name}")
        if known[options.experiment].servers:
            say("\n".join(["These servers must run:", *known[options.experiment].servers]))
        run_steps(known[options.experiment], Path("runs/paper") / options.experiment, run_full)


def experiments() -> dict[str, Experiment]:
    """Return the experiments by name.

    Raises:
        ConfigError: an experiment.yaml is invalid.
    """
    folder = Path(str(files("toa_trl").joinpath(CONFIGS)))
    found = {}
    for path in sorted(folder.glob("*/experiment.yaml")):
        found[path.parent.name] = validate(Experiment, read_yaml(path), path.parent.name)
    return found


def show(experiment: Experiment) -> None:
    """Print what an experiment consists of."""
    say(f"# {experiment.title} ({experiment.source})\n# measured: {experiment.measured}")
    for name in experiment.needs:
        say(f"toa-trl reproduce {name}  # first")
    for command in experiment.servers:
        say(f"{command}  # in a terminal of its own")
    for command in experiment.commands:
        say(command)


def steps_of(experiment: Experiment) -> list[Step]:
    """Return the steps of an experiment.

    Raises:
        ConfigError: a command is none of toa-trl.
    """
    steps = []
    for command in experiment.commands:
        program, *argv = shlex.split(command)
        if program != "toa-trl":
            raise ConfigError(f"commands: must begin with toa-trl: {command!r}")
        steps.append(Step(argv))
    return steps


def run_steps(experiment: Experiment, folder: Path, run: Callable[[Step], None]) -> None:
    """Run the steps that are not done, and record in the folder each one that is.

    Raises:
        ToaError: a step failed; those before it are recorded.
    """
    record = folder / STATE
    done = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    steps = steps_of(experiment)
    for number, step in enumerate(steps, 1):
        line = f"[{number}/{len(steps)}] toa-trl {shlex.join(step.argv)}"
        if done.get(shlex.join(step.argv)) == step.identity:
            say(f"{line}  # done before")
            continue
        say(line)
        run(step)
        done[shlex.join(step.argv)] = step.identity
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, done)


def run_full(step: Step) -> None:
    """Run a step in a process of its own: its models' memory ends with it.

    Raises:
        ToaError: it failed; its own message is on the screen.
    """
    code = subprocess.run([sys.executable, "-m", "toa_trl", *step.argv], check=False).returncode
    if code:
        raise ToaError(f"toa-trl {step.argv[0]} ended with code {code}; see above")


def run_tiny(step: Step, folder: Path) -> None:
    """Run a step in this process, with scripted models in place of its own."""
    from toa_trl.cli.main import run

    argv: Sequence[str] = tiny_command(step.argv, folder)
    run(argv)
