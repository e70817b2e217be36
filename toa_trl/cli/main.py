"""The command `toa-trl`: everything from prompts to an evaluated student."""

import importlib
import sys
from collections.abc import Sequence
from functools import partial

import toa_trl
from toa_trl.cli.arguments import user_errors, with_bundled_config
from toa_trl.cli.launch import run_training
from toa_trl.errors import ConfigError
from toa_trl.utils.config_errors import nearest
from toa_trl.utils.escape import say

# name -> module:function and what the command does, in the order of the pipeline
COMMANDS = {
    "run": ("toa_trl.pipeline.command:main", "a pipeline: prompts to an evaluated student"),
    "pilot": ("toa_trl.cli.pilot:main", "what a run will take, from some of its prompts"),
    "synthesize": ("toa_trl.recipes.synthesize:main", "sample prompts: rollouts and datasets"),
    "sft": ("toa_trl.recipes.sft:main", "train on the best responses (TRL's SFTTrainer)"),
    "dpo": ("toa_trl.recipes.dpo:main", "train on preference pairs (TRL's DPOTrainer)"),
    "reward": ("toa_trl.recipes.reward:main", "train a reward model (TRL's RewardTrainer)"),
    "preference": ("toa_trl.recipes.preference:main", "train with KTO, ORPO or SimPO"),
    "grpo": ("toa_trl.recipes.grpo:main", "train with the reward model (GRPO or RLOO)"),
    "check": ("toa_trl.training.preflight.command:main", "check a training before it starts"),
    "evaluate": ("toa_trl.recipes.evaluate:main", "evaluate checkpoints on the same prompts"),
    "compare": ("toa_trl.recipes.compare:main", "compare searches at equal budgets"),
    "reproduce": ("toa_trl.cli.reproduce:main", "run an experiment of the paper"),
    "iterate": ("toa_trl.recipes.iterate:main", "rounds of sampling, training and evaluation"),
    "estimate": ("toa_trl.training.estimate.command:main", "memory and time that a training needs"),
    "merge-adapter": (
        "toa_trl.training.merge_adapter:main",
        "merge an adapter into its base model",
    ),
    "serve-agents": ("toa_trl.cli.serve_agents:main", "serve the models of a run with vLLM"),
    "serve": ("toa_trl.cli.serve:main", "a search behind an OpenAI-compatible endpoint"),
    "data": ("toa_trl.cli.run_commands:data", "derive the datasets of a run again"),
    "convert": ("toa_trl.cli.convert:main", "responses of a run for alpaca_eval and Arena-Hard"),
    "report": ("toa_trl.cli.run_commands:report", "write the report of a run or a training again"),
    "merge": ("toa_trl.cli.run_commands:merge", "join runs of one configuration"),
    "status": ("toa_trl.cli.run_commands:status", "show the progress of a run or pipeline"),
    "view": ("toa_trl.cli.view:view", "look at runs on a local web page"),
    "show": ("toa_trl.cli.view:show", "print the tree of a prompt"),
    "audit": ("toa_trl.cli.run_commands:audit", "look for reward hacking and contamination"),
    "calibrate": ("toa_trl.cli.run_commands:calibrate", "mean and standard deviation of a reward"),
    "recover": ("toa_trl.cli.run_commands:recover_journal", "recover a damaged journal"),
    "push": ("toa_trl.cli.run_commands:push", "push the dataset of a run to the Hub"),
    "schema": ("toa_trl.cli.schema:main", "JSON schema of a configuration file"),
}
TRAININGS = ("sft", "dpo", "reward", "preference", "grpo")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; report errors in one line, with the exit codes of `user_errors`."""
    with user_errors():
        run(sys.argv[1:] if arguments is None else arguments)


def run(arguments: Sequence[str]) -> None:
    """Run one command.

    Args:
        arguments: the name of the command and its options.

    Raises:
        ConfigError: there is no such command, or its options are invalid.
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        say(usage())
        return
    if name == "--version":
        say(f"toa-trl {toa_trl.__version__}")
        return
    if name not in COMMANDS:
        close = nearest(name, COMMANDS)
        raise ConfigError(f"unknown command {name!r}{close}; toa-trl --help lists all commands")
    command = partial(call_command, name)
    if name in TRAININGS:
        run_training(name, with_bundled_config(rest), command)
    else:
        command(with_bundled_config(rest))


def call_command(name: str, arguments: Sequence[str]) -> None:
    """Import and call a command, with its arguments in sys.argv, where TRL reads them."""
    module, _, function = COMMANDS[name][0].partition(":")
    previous, sys.argv = sys.argv, [f"toa-trl {name}", *arguments]
    try:
        getattr(importlib.import_module(module), function)()
    finally:
        sys.argv = previous


def usage() -> str:
    """Return the text of `toa-trl --help`."""
    width = max(map(len, COMMANDS)) + 2
    return "\n".join(
        [
            "usage: toa-trl COMMAND [options]",
            "",
            (__doc__ or "").partition(": ")[2].strip().capitalize(),
            "",
            *(f"  {name:{width}}{text}" for name, (_, text) in COMMANDS.items()),
            "",
            "toa-trl COMMAND --help shows the options of a command, toa-trl --version the version.",
            f"{', '.join(TRAININGS)} start accelerate when they are given options of it:",
            "  toa-trl sft --accelerate_config zero3 --num_processes 4 --config llama3-8b/sft_full",
        ]
    )
