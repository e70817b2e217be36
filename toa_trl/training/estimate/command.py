"""Estimate what a training needs: memory of each GPU, tokens and steps, and a batch that fits.

    toa-trl estimate --config llama3-8b/sft_full --gpu_memory 80 --gpu H100

Takes every option of the recipe that the configuration is for, and those of `EstimateArguments`
below. The recipe and the accelerate configuration are those of the launch command in the first line
of --config. Parameters are counted on a model without memory, so that its config.json is enough.
The arithmetic is in toa_trl/training/estimate/memory.py; scripts/bench_estimate.py measures its
error.
"""

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar

from toa_trl.cli.arguments import option_of, parse, user_errors
from toa_trl.errors import ConfigError
from toa_trl.models.flops import flops_of
from toa_trl.training.estimate.data import Rows, Work, peak_flops, read_rows, work_of
from toa_trl.training.estimate.memory import estimate
from toa_trl.training.estimate.model import model_config_of
from toa_trl.training.estimate.plan import (
    PROMPT_TOKENS,
    SAMPLING,
    SEQUENCES,
    inputs_of,
    launch_of,
    sharding_of,
)
from toa_trl.training.estimate.reward import reward_bytes_of
from toa_trl.training.estimate.sizes import Memory, Shape, Sharding, Training
from toa_trl.training.estimate.text import batch_lines, devices, memory_lines, readable
from toa_trl.training.held_out.options import HeldOutArguments
from toa_trl.training.options import Options, is_true, option
from toa_trl.training.prompts import names_of
from toa_trl.types import Flops
from toa_trl.utils.config import PositiveFloat, PositiveInt
from toa_trl.utils.escape import say
from toa_trl.utils.methods import BY_RECIPE


@dataclass
class EstimateArguments(Options):
    """Options besides those of the recipe."""

    ranges: ClassVar = {
        "num_gpus": PositiveInt | None,
        "gpu_memory": PositiveFloat | None,
        "mfu": PositiveFloat,
        "num_rows": PositiveInt | None,
        "mean_tokens": PositiveInt | None,
        "prompt_tokens": PositiveInt | None,
        "num_samples": PositiveInt,
    }
    recipe: str | None = option(
        "sft, dpo, reward, kto, orpo, simpo, grpo or rloo. Default: of --config's first line."
    )
    accelerate_config: str | None = option("Default: of --config's first line.")
    num_gpus: int | None = option("Default: num_processes of accelerate_config.")
    gpu_memory: float | None = option("GiB of each GPU: shows what fits.")
    gpu: str | None = option("Name of the GPU, e.g. H100 or A100: shows the hours.")
    mfu: float = option("Model FLOPs utilization, a share of the GPU's peak.", 0.4)
    model_config: str | None = option("A config.json, if there is no model.")
    num_rows: int | None = option("Rows of the dataset, if there is none.")
    mean_tokens: int | None = option("Mean tokens of its sequences, if there is none.")
    prompt_tokens: int | None = option(
        f"Tokens of the longest prompt, for grpo and rloo. Default: {PROMPT_TOKENS}."
    )
    num_samples: int = option("Rows to tokenize; they stand for all others.", 2000)


@dataclass
class MethodArguments(Options):
    """Options of recipes/preference.py and recipes/grpo.py that TRL's configurations do not have.

    Their help is that of the recipes.
    """

    takes_entries: ClassVar = ("reward",)
    method: str | None = option("Of the recipe.")
    reward: str | None = option("Of toa-trl grpo: its models are counted.")
    reward_failures: str = option("Of toa-trl grpo.", "raise")
    trust: bool = option("Of toa-trl grpo.", False)


@dataclass(frozen=True)
class Parsed:
    """The options of a command line, parsed as the recipe parses them."""

    recipe: str
    accelerate_config: str | None
    launch_config: str | None  # for whose number of devices the batch size is written
    parsed: tuple[Any, ...]
    on_cpu: bool


@dataclass(frozen=True)
class Estimate:
    """What a training needs, and from what that follows."""

    given: Parsed
    shape: Shape
    training: Training
    sharding: Sharding
    forward: Flops
    global_batch: int
    note: str = ""  # what is not counted

    @property
    def memory(self) -> Memory:
        """The peak of each device."""
        return estimate(self.shape, self.training, self.sharding)

    @property
    def hours(self) -> float | None:
        """Hours of the training; None if the GPU is not named.

        Raises:
            ConfigError: the data cannot be read, or the GPU is unknown.
        """
        given = self.given
        if not given.parsed[0].gpu or given.recipe in SAMPLING:  # sampling decides its hours
            return None
        return self.hours_of(self.work_of(read_rows(given.recipe, given.parsed)))

    def work_of(self, rows: Rows) -> Work:
        """Return what a training on rows computes."""
        _, _, training, model, *_ = self.given.parsed
        batch, frozen = self.global_batch, model.use_peft
        return work_of(self.given.recipe, rows, training, self.forward, batch, frozen)

    def hours_of(self, work: Work) -> float:
        """Return the hours that work takes on the GPUs that are named.

        Raises:
            ConfigError: the GPU is unknown.
        """
        options = self.given.parsed[0]
        per_second = peak_flops(options.gpu) * float(options.mfu) * self.sharding.num_devices
        return work.flops / per_second / 3600


def main() -> None:
    """Print the estimate for the options in sys.argv.

    Raises:
        ConfigError: an option is invalid, or the recipe or model is of a kind without an estimate.
    """
    given = read_options(sys.argv[1:])
    made, options, model = estimate_of(given), given.parsed[0], given.parsed[3]
    shape, plan, sharding = made.shape, made.training, made.sharding
    which = (
        f"{readable(plan.num_trained)} of an adapter trained"
        if model.use_peft
        else "all of them trained"
    )
    name = model.model_name_or_path or options.model_config
    say(f"{given.recipe} of {name}: {readable(shape.num_parameters)} parameters, {which}")
    launched = given.accelerate_config or "no accelerate configuration"
    say(f"{devices(sharding, given.on_cpu)}, {launched}\n")
    lines = [*memory_lines(made.memory, options.gpu_memory)]
    if options.gpu_memory is not None:
        memory, per_row = options.gpu_memory, SEQUENCES[given.recipe]
        lines += batch_lines(shape, plan, sharding, memory, made.global_batch, per_row)
    if made.note:
        lines.append(made.note)
    if given.recipe not in SAMPLING:
        lines += _data_lines(made)
    say("\n".join(lines))


def read_options(arguments: list[str]) -> Parsed:
    """Return the options of a command line; no model and no data is read.

    Raises:
        ConfigError: an option is unknown or invalid.
    """
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    if {"-h", "--help"} & set(arguments) and option_of(arguments, "recipe") is None:
        arguments = [*arguments, "--recipe", "sft"]  # whose options are shown then
    recipe, accelerate_config, launch_config = launch_of(arguments)
    options_of = [
        EstimateArguments,
        ScriptArguments,
        config_class_of(recipe),
        ModelConfig,
        DatasetMixtureConfig,
        HeldOutArguments,  # a configuration of the recipe may have them; they cost no memory
    ]
    if any(recipe in methods for methods in BY_RECIPE.values()):
        options_of.append(MethodArguments)
    on_cpu = is_true(option_of(arguments, "use_cpu"))
    # TRL refuses bf16 on a machine without GPU, but the estimate may be for another machine
    parser = TrlParser(options_of, description=__doc__)
    parsed = parse(parser, [*arguments, "--use_cpu", "True"])
    return Parsed(recipe, accelerate_config, launch_config, parsed, on_cpu)


def estimate_of(given: Parsed) -> Estimate:
    """Return the estimate for parsed options.

    Raises:
        ConfigError: the recipe or model is of a kind without an estimate, or cannot be read.
    """
    options, script, training, model, mixture, *_ = given.parsed
    launched = sharding_of(given.launch_config or given.accelerate_config)
    global_batch = (
        training.per_device_train_batch_size
        * training.gradient_accumulation_steps
        * launched.num_devices
    )
    sharding = _with_gpus(sharding_of(given.accelerate_config), options.num_gpus)
    reward, unknown = 0.0, list[str]()
    if given.recipe in SAMPLING:
        reward, unknown = reward_bytes_of(given.parsed[-1].reward, names_of(script, mixture))
    config = model_config_of(options.model_config, model)
    inputs = (given.recipe, training, model, config, sharding, given.on_cpu)
    shape, plan = inputs_of(*inputs, options.gpu_memory, reward, options.prompt_tokens)
    return Estimate(
        given=given,
        shape=shape,
        training=plan,
        sharding=sharding,
        forward=flops_of(config),
        global_batch=global_batch,
        note=f"\nNot counted: {', '.join(unknown)}, whose size is not known." if unknown else "",
    )


def config_class_of(recipe: str) -> Any:
    """Return TRL's configuration of a recipe."""
    import trl

    experimental = {"orpo": ("orpo", "ORPOConfig"), "simpo": ("cpo", "CPOConfig")}
    if recipe in experimental:
        module, name = experimental[recipe]
        with warnings.catch_warnings():  # that they are experimental, as the recipe says
            warnings.simplefilter("ignore")
            return getattr(import_module(f"trl.experimental.{module}"), name)
    names = {**{name: f"{name.upper()}Config" for name in SEQUENCES}, "reward": "RewardConfig"}
    return getattr(trl, names[recipe])


def _with_gpus(sharding: Sharding, num_gpus: int | None) -> Sharding:
    if num_gpus is None:
        return sharding
    kind = "ddp" if sharding.kind == "none" and num_gpus > 1 else sharding.kind
    return replace(sharding, kind=kind, num_devices=num_gpus)


def _data_lines(made: Estimate) -> Iterator[str]:
    """Yield tokens, steps and hours."""
    options, _, training, *_ = made.given.parsed
    try:
        rows = read_rows(made.given.recipe, made.given.parsed)
    except ConfigError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        yield (
            f"\nTokens and steps are unknown: {reason}. Give --num_rows and --mean_tokens to "
            "estimate them."
        )
        return
    work = made.work_of(rows)
    limit = training.max_length
    yield (
        f"\nData: {rows.source}; {readable(work.num_tokens)} tokens an epoch, {work.cut:.1%} of "
        f"the rows cut at max_length {limit}"
    )
    if work.num_packed is not None:
        yield f"Packed: {work.num_packed:,} rows of {limit}, {work.filled:.1%} of them filled"
    else:
        batch = training.per_device_train_batch_size
        yield f"Padded: {work.filled:.1%} of a batch of {batch} are tokens, the rest is padding"
    steps = (
        f"Steps: {work.num_steps:,} with a global batch of {made.global_batch}; "
        f"{work.flops:.2e} FLOPs"
    )
    if options.gpu:
        number, hours = made.sharding.num_devices, made.hours_of(work)
        steps += (
            f", {hours:,.1f} hours on {number} x {options.gpu} at {options.mfu:.0%} of their peak"
        )
    yield steps


if __name__ == "__main__":
    with user_errors():
        main()
