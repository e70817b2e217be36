"""All checks of tokenizer, template and rows, on a sample of the rows and without the weights."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from toa_trl.models.sources import read_config
from toa_trl.training.data import TrainingData
from toa_trl.training.findings import Finding
from toa_trl.training.packages import package_findings
from toa_trl.training.preflight.rows import Checked, checked_rows, length_finding, row_findings
from toa_trl.training.preflight.template import (
    end_finding,
    generation_finding,
    pad_finding,
    system_findings,
)
from toa_trl.training.templates import (
    conversations_of,
    fit_to_template,
    has_system,
    trained_tokenizer,
)
from toa_trl.training.truncation import max_tokens_findings

IMAGES = {"image", "images"}
NUM_ROWS = 200  # enough to see a fault of one row in a hundred, tokenized in less than a second


@dataclass(frozen=True)
class Preflight:
    """What the checks found."""

    data: TrainingData
    """The data, fitted to the template."""
    findings: list[Finding]
    tokenizer: Any = None
    """As the trainer has it."""
    rows: Sequence[Checked] = field(default_factory=list)
    """The sample."""


def preflight(
    data: TrainingData, training: Any, model: Any, method: str, num_rows: int = NUM_ROWS
) -> Preflight:
    """Check tokenizer, chat template and a sample of the rows, and fit the data to the template.

    Raises:
        ConfigError: a tokenizer cannot be loaded, or has no chat template and the data are
            conversations.
    """
    name = model.model_name_or_path
    tokenizer = trained_tokenizer(training, model)
    columns = conversations_of(data)
    found: list[Finding | None] = []
    if columns:
        rows = _sample(data.train, num_rows)
        takes_path = hasattr(training, "chat_template_path")
        data = fit_to_template(data, columns, tokenizer, name, takes_path)
        num_system = sum(any(has_system(row[column]) for column in columns) for row in rows)
        found += [
            Finding("fine", "template", f"the tokenizer of {name} has a chat template"),
            *system_findings(tokenizer, num_system, len(rows)),
            end_finding(tokenizer, training, model, method),
        ]
    found += [pad_finding(tokenizer, training, method), generation_finding(model)]
    sample = _sample(data.train, num_rows)
    if IMAGES & sample[0].keys():  # a processor, and not the tokenizer, makes their tokens
        sample = []
    checked, refused = checked_rows(sample, tokenizer, training, method)
    size = None
    if not getattr(training, "chat_template_path", None):  # which adds its tokens to the model
        config = read_config("model_name_or_path", name, model.model_revision)
        size = (config.get("text_config") or config).get("vocab_size")
    found += package_findings({**vars(model), **vars(training)})
    found += [refused, *row_findings(checked, tokenizer, method, size)]
    found += [length_finding(checked, training, method)]
    found += max_tokens_findings(data.sources, getattr(training, "max_length", None))
    findings = [finding for finding in found if finding is not None]
    return Preflight(data, findings, tokenizer, checked)


def _sample(rows: Any, number: int) -> list[Any]:
    """Return rows drawn at random, always the same ones; of a stream the first ones."""
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        return list(islice(rows, number))
    drawn = random.Random(0).sample(range(len(rows)), min(number, len(rows)))
    return list(rows.select(sorted(drawn)))
