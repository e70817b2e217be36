"""A trainer's life: built with its errors in one line, run from its checkpoint, and saved with where it came from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from toa_trl.errors import ConfigError
from toa_trl.hub.model_card import extend_model_card
from toa_trl.hub.push import hub_errors
from toa_trl.training.data import Data

logger = logging.getLogger(__name__)


@contextmanager
def building() -> Iterator[None]:
    """What TRL, transformers and peft refuse while a trainer is built is the user's to mend.

    Raises:
        ConfigError: in their words.
    """
    try:
        yield
    except (ValueError, ImportError, OSError, NotImplementedError, RuntimeError) as error:
        said = " ".join(str(error).split())
        if "non-empty list" in said:  # reference log-probs of no rows
            raise ConfigError(NOTHING_LEFT) from error
        if "to be installed" in said:  # a tracker, RuntimeError
            raise ConfigError(f"report_to: {said}") from error
        if isinstance(error, (ConfigError, RuntimeError)) and not isinstance(
            error, NotImplementedError
        ):
            raise  # out of memory, say: the traceback tells more
        raise ConfigError(said) from error


NOTHING_LEFT = "no row is left: every prompt (for a reward model: every chosen or rejected) is longer than max_length; raise it"


def train(trainer: Any, data: Data, method: str, base_model: str) -> None:
    """Train, save, and where it is asked for, push what is saved.

    Args:
        trainer: of TRL.
        data: what it was given.
        method: for the model's card, e.g. "SFT".
        base_model: what it began with.

    Raises:
        ConfigError: no row is left to train on, or the Hub refuses the model.
        ToaError: the Hub does not answer; the model is saved.
    """
    args = trainer.args
    rows = _count(trainer, data, method)
    lineage = [
        {**source, "rows": rows} if len(data.sources) == 1 else dict(source)
        for source in data.sources
    ]
    facts = {"base_model": base_model, "method": method, "toa_trl": version("toa_trl")}
    _write_into_card(trainer, lineage, facts)
    _tell_trackers(trainer, {**facts, "data": lineage})
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(
        args.output_dir, _internal_call=True
    )  # otherwise it pushes already, without the whole card
    trainer.create_model_card(model_name=Path(args.output_dir).name)
    trainer.accelerator.print(f"Done. The model is in {args.output_dir}")
    if args.push_to_hub:
        name = args.hub_model_id or Path(args.output_dir).name
        with hub_errors(
            name,
            f"`hf upload {name} {args.output_dir} --exclude 'checkpoint-*'` pushes what is saved",
        ):
            trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()  # nobody ends what holds them together while another still saves
    trainer.end()


def _count(trainer: Any, data: Data, method: str) -> int | None:
    """Say what TRL has dropped, or cut to nothing, which it does silently.

    Returns:
        The rows that are left, before packing; None of a stream.
    """
    num_left = None
    for given, left in ((data.test, trainer.eval_dataset), (data.train, trainer.train_dataset)):
        if not hasattr(given, "__len__") or not hasattr(left, "__len__"):
            continue
        if {"seq_lengths", "labels"} <= {*(left.column_names or ())}:  # packed
            num_given = len(given)
            num_left = num_given - _num_masked(left)
        else:
            parts = (
                2 if method == "KTO" and "rejected" in given.column_names else 1
            )  # it takes a pair apart
            num_given, num_left = parts * len(given), len(left)
        if not num_left:
            raise ConfigError(NOTHING_LEFT)
        if num_left < num_given and trainer.is_world_process_zero():
            what = "chosen or rejected is" if method == "reward modeling" else "the prompt alone is"
            logger.warning(
                "%d of %d rows teach nothing: %s longer than max_length %s",
                *(num_given - num_left, num_given, what, trainer.args.max_length),
            )
    return num_left if hasattr(data.train, "__len__") else None


def _num_masked(packed: Any) -> int:
    """Sequences of packed rows without a token to learn from: TRL cuts their completions off, and leaves them in."""
    masked = 0
    for batch in (
        packed.select_columns(["labels", "seq_lengths"]).with_format("arrow").iter(batch_size=1000)
    ):
        labels, lengths = (
            batch[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            for name in ("labels", "seq_lengths")
        )
        starts = np.cumsum(lengths) - lengths
        masked += int((np.add.reduceat(labels != -100, starts) == 0).sum())
    return masked


def _write_into_card(trainer: Any, lineage: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Whenever TRL writes a model card (with checkpoints, at the end, before a push), it tells of the data."""
    create = trainer.create_model_card

    def create_and_extend(*args: Any, **kwargs: Any) -> None:
        create(*args, **kwargs)
        if trainer.is_world_process_zero():
            extend_model_card(Path(trainer.args.output_dir), lineage, facts)

    trainer.create_model_card = create_and_extend


def _tell_trackers(trainer: Any, lineage: dict[str, Any]) -> None:
    """Put the lineage into what every tracker records, which is the model's configuration, for as long as that takes."""
    from transformers import TrainerCallback

    config = trainer.model.config

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(
            self, *args: Any, **kwargs: Any
        ) -> None:  # after the trackers', which were added before
            vars(config).pop("toa_trl", None)

    config.toa_trl = lineage
    trainer.add_callback(Told)
