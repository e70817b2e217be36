"""docs/guides/trl_features.md: every option and value on the page exists in what is installed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from accelerate.commands.launch import launch_command_parser
from transformers.integrations import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import HubStrategy
from transformers.training_args import OptimizerNames

from tests.training.test_trl_compatibility import is_option, parsers
from toa_trl.cli.arguments import find_config
from toa_trl.cli.launch import split_launcher_options

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guides/trl_features.md").read_text(encoding="utf-8")
COMMANDS = [
    block.replace("\\\n", " ")
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
]  # fmt: skip
OF_JOBS = {"flavor", "secrets", "timeout"}
OF_TOA_TRL = {"accelerate_config", "help"}


def launcher_options() -> set[str]:
    options = launch_command_parser()._option_string_actions
    return {name.removeprefix("--").replace("-", "_") for name in options}


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_every_option_exists() -> None:
    named = set(re.findall(r"--([a-z]\w*)", PAGE))
    known = launcher_options() | OF_JOBS | OF_TOA_TRL
    of_recipes = named - known
    assert {"use_dora", "use_rslora", "report_to", "push_to_hub"} <= of_recipes
    taken = {
        option
        for option in of_recipes
        for recipe in ("sft", "dpo")
        if any(is_option(parser, option) for parser in parsers(recipe))
    }
    assert of_recipes - taken == set()
    assert {"use_parallelism_config", "parallelism_config_cp_size"} <= named & launcher_options()


def test_the_options_of_adapters_are_those_of_every_recipe() -> None:
    names = [
        name
        for name in re.findall(r"--(\w+)", section("Adapters").partition("```")[0])
        if not name.startswith("load_in")
    ]
    assert {"use_dora", "use_rslora", "lora_target_parameters"} <= set(names)
    for recipe in ("sft", "dpo", "reward", "preference"):
        for parser in parsers(recipe):
            assert [name for name in names if not is_option(parser, name)] == []


def test_every_value_exists() -> None:
    losses = section("Losses").partition("`--label_smoothing`")[0]
    named = set(re.findall(r"`([a-z_]+)`", losses)) - {"dpo"}
    help_of = {
        recipe: next(
            str(action.help)
            for action in parsers(recipe)[0]._actions
            if "--loss_type" in action.option_strings
        )
        for recipe in ("sft", "dpo")
    }
    assert {"sigmoid", "sigmoid_norm", "ipo"} <= named
    assert [name for name in named if f"'{name}'" not in help_of["dpo"]] == []
    assert "'dft'" in help_of["sft"]
    optimizers = set(re.findall(r"--optim (\w+)", PAGE))
    assert optimizers
    assert optimizers <= {name.value for name in OptimizerNames}
    trackers = set(re.findall(r"`(\w+)`", section("Trackers").partition("other trackers")[0]))
    assert {"trackio", "wandb"} <= trackers
    assert trackers <= INTEGRATION_TO_CALLBACK.keys()


def test_the_commands_of_toa_trl_are_understood() -> None:
    words = shlex.split(" ".join(COMMANDS), comments=True)
    configs = [words[at + 1] for at, word in enumerate(words) if word == "--config"]
    assert len(configs) >= 2
    for name in configs:
        assert find_config(name).is_file()
    command = next(block for block in COMMANDS if "parallelism" in block)
    launcher, rest = split_launcher_options(shlex.split(command)[2:])
    assert "--parallelism_config_cp_size" in launcher
    assert rest[rest.index("--pad_to_multiple_of") + 1] == "8"
    (parser,) = parsers("sft")
    for option in (word for word in rest if word.startswith("--") and word != "--config"):
        assert is_option(parser, option.removeprefix("--"))


def test_the_options_of_hugging_face_jobs_exist() -> None:
    help_text = subprocess.run(
        [str(Path(sys.executable).parent / "hf"), "jobs", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for option in OF_JOBS:
        assert f"--{option}" in help_text
    assert "a100x8" in help_text
    strategies = set(re.findall(r"--hub_strategy (\w+)", PAGE))
    assert strategies == {"every_save", "checkpoint"}
    assert strategies <= {strategy.value for strategy in HubStrategy}
