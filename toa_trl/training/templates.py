"""The student's chat template: how it ends a turn, and what it has no place for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.models.chat import ChatTemplate, fold_system
from toa_trl.models.loading import load_tokenizer
from toa_trl.training.data import TrainingData
from toa_trl.training.rows import MESSAGES, kind_of

PLACE = "model_name_or_path"
TEMPLATE_FILES = (".jinja", ".j2")
_ANSWER = "5f1c answer 0b7e"  # a text that no template contains


def load_student_tokenizer(model: str, training: Any, revision: str | None) -> Any:
    """Load the tokenizer of the model to be trained, which needs no chat template yet.

    Args:
        model: path, or name on the Hub.
        training: TRL's configuration of the training.
        revision: of the model on the Hub.

    Raises:
        ConfigError: it cannot be loaded.
    """
    code = training.trust_remote_code
    return load_tokenizer(PLACE, model, trust_remote_code=code, revision=revision, template=False)


def template_tokenizer(path: str | None) -> Any:
    """Load the tokenizer from which TRL takes the chat template and the eos.

    Args:
        path: `chat_template_path`: folder or Hub name of a model, or a template file.

    Returns:
        None without a path, and for a template file, which has no eos.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if not path or path.endswith(TEMPLATE_FILES):
        return None
    return load_tokenizer("chat_template_path", path, template=False)


def trained_tokenizer(training: Any, model: Any) -> Any:
    """Load the student's tokenizer, with the chat template and eos that the trainer gives it.

    Raises:
        ConfigError: it, or what `chat_template_path` names, cannot be loaded.
    """
    tokenizer = load_student_tokenizer(model.model_name_or_path, training, model.model_revision)
    eos = getattr(training, "eos_token", None)
    if eos in tokenizer.get_vocab():  # TRL refuses any other
        tokenizer.eos_token = eos
    path = getattr(training, "chat_template_path", None)
    other = template_tokenizer(path)
    if other is not None:  # as TRL's clone_chat_template
        known = tokenizer.get_vocab()
        added = other.added_tokens_decoder.values()
        tokenizer.chat_template = other.chat_template
        tokenizer.add_tokens([token for token in added if token.content not in known])
        tokenizer.eos_token = other.eos_token
    elif path:
        try:
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"chat_template_path: {path} cannot be read: {error}") from error
    return tokenizer


def conversations_of(data: TrainingData) -> list[str]:
    """Return the columns that hold conversations; none of rows of texts or tokens."""
    return [name for name, value in next(iter(data.train)).items() if kind_of(value) == MESSAGES]


def fit_to_template(
    data: TrainingData, columns: Sequence[str], tokenizer: Any, name: str, takes_path: bool
) -> TrainingData:
    """Return data that the chat template accepts: system messages folded where it has none.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        option = "give --chat_template_path, a model's name or folder or a .jinja file"
        if not takes_path:
            option = "train it with toa-trl sft --chat_template_path first"
        raise ConfigError(
            f"{PLACE}: the tokenizer of {name!r} has no chat template, and the data are "
            f"conversations: {option}"
        )
    if ChatTemplate(tokenizer).takes_system:
        return data
    return replace(
        data,
        train=_folded(data.train, columns),
        test=None if data.test is None else _folded(data.test, columns),
    )


def end_of_turn(tokenizer: Any) -> list[int] | None:
    """Return the tokens that the template puts after a response; None if it shows none."""
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return None
    _, answer, tail = text.rpartition(_ANSWER)
    if not answer:
        return None
    tokens: list[int] = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return tokens


def stop_tokens(model: str, revision: str | None = None) -> set[int]:
    """Return the tokens at which a model stops, by its generation_config.json."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(model, revision=revision).eos_token_id
    except OSError:  # it has none: the eos of its tokenizer counts
        return set()
    return set(ends) if isinstance(ends, list) else set() if ends is None else {ends}


def _folded(rows: Any, columns: Sequence[str]) -> Any:
    """Return rows whose system messages are part of the first user message."""
    from datasets import Dataset

    def fold(row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: fold_system(row[name]) for name in columns if has_system(row[name])}

    if isinstance(rows, Dataset) and not any(map(fold, rows)):
        return rows
    return rows.map(fold, features=rows.features)


def has_system(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation has a system message that can be joined with the user's text."""
    return messages[0].get("role") == "system" and all(
        isinstance(message.get("content"), str) for message in messages[:2]
    )
