"""Train with one of TRL's trainers: the steps that all methods share."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import TemplateError

from toa_trl.cli.arguments import installed
from toa_trl.errors import ConfigError
from toa_trl.hub.card_edits import keep_edits
from toa_trl.hub.model_card import write_model_card, write_model_lineage
from toa_trl.hub.push import hub_errors
from toa_trl.training.checks import check_model, parse_training
from toa_trl.training.data import TrainingData, load_training_data
from toa_trl.training.estimate.reward import reward_bytes_of
from toa_trl.training.findings import act_on
from toa_trl.training.held_out.callback import add_evaluation, held_out_facts
from toa_trl.training.held_out.options import HeldOutArguments, check_options
from toa_trl.training.held_out.prompts import prepare_held_out
from toa_trl.training.preflight.checks import preflight
from toa_trl.training.preflight.command import CheckArguments, arguments_of_check, check_training
from toa_trl.training.preflight.memory import gpu_memory_here, memory_finding, running_sharding
from toa_trl.training.prompts import ONLINE, names_of
from toa_trl.training.references import tie_references
from toa_trl.training.reward_signal import RewardFunc
from toa_trl.training.truncation import cuts_of, ends_of
from toa_trl.utils.compat import (
    ignore_boolean_buffers,
    loading_whole_models,
    num_masked_sequences,
    prepare_cpu_training,
)
from toa_trl.utils.escape import say

logger = logging.getLogger(__name__)
NO_ROWS = (
    "no row is left: every prompt (for a reward model: every chosen or rejected) is longer than "
    "max_length; raise it"
)


def run_training(
    method: str,
    trainer_class: Any,
    config_class: Any,
    *,
    data: str,
    description: str | None,
    further_formats: Sequence[tuple[str, ...]] = (),
    further_options: Sequence[Any] = (),
    prepare: Callable[[Any, Any], None] | None = None,
    takes_quantization: bool = True,
    rewards: Callable[[TrainingData, Any], Sequence[RewardFunc]] | None = None,
) -> None:
    """Read the options, check them, load the data, train, save, and push if asked to.

    Args:
        method: name in the model card, such as "SFT".
        trainer_class: of TRL.
        config_class: configuration of the trainer.
        data: kind of dataset, "sft", "dpo" or "rollouts": also the folder that is read of a run.
        description: for --help.
        further_formats: sets of columns that the trainer accepts besides those of that kind.
        further_options: dataclasses of options besides TRL's.
        prepare: called with the configurations of trainer and model before these are checked.
        takes_quantization: whether the trainer has the argument `quantization_config`.
        rewards: returns the trainer's reward functions, given the data and the first of the
            further options; they are closed at the end.

    Raises:
        ConfigError: an option, the model or the data is invalid, or the Hub refuses the model.
        RewardError: a completion could not be scored.
        ToaError: the Hub does not answer; the model is saved.
    """
    from trl import (
        DatasetMixtureConfig,
        ModelConfig,
        ScriptArguments,
        TrlParser,
        get_peft_config,
        get_quantization_config,
    )

    options = (ScriptArguments, config_class, ModelConfig, DatasetMixtureConfig, HeldOutArguments)
    about = installed(description)
    parser = TrlParser((*options, *further_options, CheckArguments), description=about)
    given, on_cpu = arguments_of_check(sys.argv[1:])
    script, training, model, mixture, evaluation, *further, check = parse_training(parser, given)
    check_options(evaluation, training, method)
    prepare_cpu_training(training)
    if prepare is not None:
        prepare(training, model)

    def load() -> TrainingData:
        check_model(model, training)
        return load_training_data(data, script, training, mixture, further_formats)

    reward_bytes = 0.0
    if rewards is not None:
        reward_bytes, _ = reward_bytes_of(further[0].reward, names_of(script, mixture))
    if check.check_only:
        check_training(method, load, training, model, check, on_cpu, reward_bytes)
        return
    loaded = load()
    with training.main_process_first(desc="checking the chat template and the rows"):
        checked = preflight(loaded, training, model, method)
    # the trainer cuts all rows, and `count_rows` counts them, where the check has only a sample
    findings = [finding for finding in checked.findings if finding.check != "max_length"]
    if not on_cpu and (gpu_memory := gpu_memory_here()):
        sharding = running_sharding()
        findings.append(
            memory_finding(method, training, model, sharding, gpu_memory, reward_bytes=reward_bytes)
        )
    act_on(findings, logs=training.process_index == 0)
    loaded = checked.data
    held_out = prepare_held_out(evaluation, loaded, training)
    tie_references(loaded, training, model.model_name_or_path, model.model_revision)
    arguments = {"peft_config": get_peft_config(model)}
    if takes_quantization:
        arguments["quantization_config"] = get_quantization_config(model)
    with ExitStack() as open_until_saved:
        facts: dict[str, Any] = {}
        if rewards is not None:
            with loading_whole_models():
                functions = [
                    open_until_saved.enter_context(one) for one in rewards(loaded, *further)
                ]
            arguments["reward_funcs"] = functions
            facts["rewards"] = [function.description for function in functions]
        with construction_errors():
            trainer = with_lineage(trainer_class)(
                model=model.model_name_or_path,
                args=training,
                train_dataset=loaded.train,
                eval_dataset=loaded.test,
                **arguments,
            )
        if script.ignore_bias_buffers:
            ignore_boolean_buffers(trainer.model)
        add_evaluation(trainer, held_out, evaluation)
        train_and_save(trainer, loaded, method, model.model_name_or_path, facts)


@contextmanager
def construction_errors() -> Iterator[None]:
    """Report what TRL, transformers and peft refuse while a trainer is created.

    Raises:
        ConfigError: with their message.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        message = " ".join(str(error).split())
        if "non-empty list" in message:  # TRL computes reference log-probs of no rows
            raise ConfigError(NO_ROWS) from error
        if "FlashAttention" in message:
            remedy = "pip install flash-attn (or kernels), or set sdpa and leave packing out"
            raise ConfigError(f"attn_implementation: {message} {remedy}") from error
        if "Callback requires" in message:  # a tracker
            raise ConfigError(f"report_to: {message}") from error
        if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
            raise  # such as out of memory: the traceback tells more
        raise ConfigError(message) from error
    except TemplateError as error:
        raise ConfigError(f"the chat template refuses a conversation: {error}") from error


def with_lineage(trainer_class: Any) -> Any:
    """Return a subclass of a TRL trainer whose model cards name the data and where it comes from.

    TRL writes a card with every checkpoint, at the end and before a push.
    """

    class LineageTrainer(trainer_class):  # type: ignore[misc]
        lineage: Sequence[Mapping[str, Any]] = ()
        facts: Mapping[str, Any] = {}

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """Write TRL's card, extended, and keep what was added to the one before by hand."""
            folder = self.args.output_dir
            with TemporaryDirectory(prefix="toa_trl-") as temporary:
                self.args.output_dir = temporary  # TRL overwrites the whole card
                try:
                    super().create_model_card(*args, **kwargs)
                finally:
                    self.args.output_dir = folder
                if self.is_world_process_zero():
                    card = (Path(temporary) / "README.md").read_text(encoding="utf-8")
                    write_model_card(Path(folder), self.lineage, self.facts, card)
                    if self.args.push_to_hub:
                        card_file = Path(folder) / "README.md"
                        keep_edits(card_file, self.hub_model_id, self.args.hub_token)

    return LineageTrainer


def train_and_save(
    trainer: Any,
    data: TrainingData,
    method: str,
    base_model: str,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Train, save the model with its card, and push it if asked to.

    Args:
        trainer: of a class from `with_lineage`.
        data: what the trainer was given.
        method: name in the model card.
        base_model: folder or Hub name of the model that is trained.
        facts: further keys of the model's lineage.json.

    Raises:
        ConfigError: no row is left to train on, or the Hub refuses the model.
        ToaError: the Hub does not answer; the model is saved.
    """
    args = trainer.args
    name = args.hub_model_id or Path(args.output_dir).name
    num_rows = count_rows(trainer, data, method)
    rows = {"rows": num_rows} if len(data.sources) == 1 else {}
    trainer.lineage = [{**source, **rows} for source in data.sources]
    known = {"base_model": base_model, "method": method, "toa_trl": version("toa_trl")}
    trainer.facts = {**known, **(facts or {})}
    _add_to_tracked_config(trainer, {**trainer.facts, "data": trainer.lineage})
    if trainer.is_world_process_zero():  # marks the folder, so that an interrupted training resumes
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        write_model_lineage(Path(args.output_dir), trainer.lineage, trainer.facts)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.facts = {**trainer.facts, **held_out_facts(trainer)}
    trainer.create_model_card(model_name=Path(args.output_dir).name)
    upload = f"`hf upload {name} {args.output_dir} --exclude 'checkpoint-*'`"
    with hub_errors(name, f"{upload} pushes what is saved"):
        trainer.save_model(args.output_dir)  # with --push_to_hub it pushes as well
    if trainer.is_world_process_zero():
        say(f"Done. The model is in {args.output_dir}")
    # keep the process group alive until every rank has saved
    trainer.accelerator.wait_for_everyone()
    trainer.end()


def count_rows(trainer: Any, data: TrainingData, method: str) -> int | None:
    """Count the rows that are left of the data, and drop and report those that teach nothing.

    Args:
        trainer: has made its own datasets of the data.
        data: what the trainer was given.
        method: name of the method.

    Returns:
        The number of training rows before packing; None for a stream.

    Raises:
        ConfigError: no row is left.
    """
    from datasets import Dataset

    num_left = None
    for split, given in (("eval_dataset", data.test), ("train_dataset", data.train)):
        left = getattr(trainer, split)
        if not isinstance(given, Dataset) or not isinstance(left, Dataset):
            continue
        if method in ONLINE:  # it reads the prompts as they are
            num_left = len(left)
            continue
        num_given, num_left = len(given), len(left)
        if {"seq_lengths", "labels"} <= set(left.column_names):  # packed
            num_left = num_given - num_masked_sequences(left)
        elif method == "KTO" and "rejected" in given.column_names:
            num_given *= 2  # it makes two rows of a pair
        if not num_left:
            raise ConfigError(NO_ROWS)
        long = "chosen or rejected is" if method == "reward modeling" else "the prompt alone is"
        reason = f"{long} longer than max_length {trainer.args.max_length}"
        _warn_of_useless_rows(trainer, num_given - num_left, num_given, reason)
        num_left -= _drop_useless_rows(trainer, split, num_given)
    return num_left if isinstance(data.train, Dataset) else None


def _drop_useless_rows(trainer: Any, split: str, num_given: int) -> int:
    """Drop pairs that max_length made equal or empty, and warn of responses without their end.

    Returns:
        The number of dropped rows.
    """
    rows, max_length = getattr(trainer, split), trainer.args.max_length
    cuts = cuts_of(rows, trainer.args, ends_of(getattr(trainer, "processing_class", None)))
    useless = {*cuts.equal, *cuts.empty}
    equal = f"chosen and rejected are the same tokens within max_length {max_length}"
    if useless and len(useless) == len(rows):
        raise ConfigError(f"no row is left: {equal}; raise it" if cuts.equal else NO_ROWS)
    _warn_of_useless_rows(trainer, len(cuts.equal), num_given, equal)
    empty = f"no response is left by max_length {max_length}"
    _warn_of_useless_rows(trainer, len(cuts.empty), num_given, empty)
    if useless:
        kept = [number for number in range(len(rows)) if number not in useless]
        setattr(trainer, split, rows.select(kept))
    if cuts.num_cut and trainer.is_world_process_zero():
        logger.warning(
            "%d of %d responses are cut by max_length %s: they have no end, and teach the student "
            "not to stop; raise max_length, or sample with fewer max_tokens",
            *(cuts.num_cut, cuts.num_responses, max_length),
        )
    return len(useless)


def _warn_of_useless_rows(trainer: Any, num: int, num_given: int, reason: str) -> None:
    if num and trainer.is_world_process_zero():
        logger.warning("%d of %d rows teach nothing: %s", num, num_given, reason)


def _add_to_tracked_config(trainer: Any, lineage: Mapping[str, Any]) -> None:
    """Put the lineage into the model's configuration until every tracker has recorded that."""
    from transformers import TrainerCallback

    config = trainer.model.config

    class RemoveLineage(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            """Run after the trackers' callbacks, which were added before."""
            vars(config).pop("toa_trl", None)

    config.toa_trl = dict(lineage)
    trainer.add_callback(RemoveLineage)
