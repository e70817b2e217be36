"""The student's chat template: how it ends a turn, and what it has no place for."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.models.chat import fold_system, takes_system
from toa_trl.models.loading import load_tokenizer
from toa_trl.training.data import TrainingData
from toa_trl.training.rows import MESSAGES, kind_of

logger = logging.getLogger(__name__)
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


def fit_to_template(data: TrainingData, training: Any, model: Any, method: str) -> TrainingData:
    """Check the template that conversations are rendered with, and return data that it accepts.

    Args:
        data: rows of texts are returned as they are.
        training: configuration of the trainer.
        model: TRL's ModelConfig.
        method: name of the method, such as "SFT".

    Raises:
        ConfigError: the tokenizer has no chat template; the template ends a turn with a token at
            which the student does not stop.
    """
    columns = [name for name, value in next(iter(data.train)).items() if kind_of(value) == MESSAGES]
    if not columns:
        return data
    tokenizer = _tokenizer_of(training, model)
    name = model.model_name_or_path
    if not tokenizer.chat_template:
        option = "give --chat_template_path, a model's name or folder or a .jinja file"
        if not hasattr(training, "chat_template_path"):
            option = "train it with recipes/sft.py --chat_template_path first"
        raise ConfigError(
            f"{PLACE}: the tokenizer of {name!r} has no chat template, and the data are "
            f"conversations: {option}"
        )
    # a reward model generates nothing, and ORPO and SimPO append the eos
    if method in ("SFT", "DPO", "KTO") and not getattr(training, "eos_token", None):
        _check_end(tokenizer, training, model, method)
    if takes_system(tokenizer):
        return data
    return replace(
        data,
        train=_folded(data.train, columns),
        test=None if data.test is None else _folded(data.test, columns),
    )


def _tokenizer_of(training: Any, model: Any) -> Any:
    """Return the tokenizer whose template and eos the trainer will use."""
    path = getattr(training, "chat_template_path", None)
    tokenizer = template_tokenizer(path)
    if tokenizer is not None:
        return tokenizer
    tokenizer = load_student_tokenizer(model.model_name_or_path, training, model.model_revision)
    if path:
        try:
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"chat_template_path: {path} cannot be read: {error}") from error
    return tokenizer


def _check_end(tokenizer: Any, training: Any, model: Any, method: str) -> None:
    """Refuse, or warn of, a template that ends a turn without a token at which the model stops."""
    tail = end_of_turn(tokenizer)
    if tail is None:
        return
    ends = {tokenizer.eos_token_id}
    if not getattr(training, "chat_template_path", None):
        ends |= stop_tokens(model.model_name_or_path, model.model_revision)
    if ends & set(tail):
        return
    name = model.model_name_or_path
    known = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    special = [token for token in tail if token in known]
    if not special:
        logger.warning(
            "the chat template of %s ends a turn with %r, which has no end-of-sequence token: the "
            "student may never stop; --chat_template_path of recipes/sft.py names another template",
            *(name, tokenizer.decode(tail)),
        )
        return
    end = tokenizer.decode(special[:1])
    fault = (
        f"the chat template of {name!r} ends a turn with {end!r}, and the model stops at "
        f"{tokenizer.eos_token!r}"
    )
    if method == "SFT":
        raise ConfigError(
            f"eos_token: {fault}, so the student would never stop: give --eos_token '{end}' (or "
            f"--eos_token '{tokenizer.eos_token}' to train it all the same)"
        )
    logger.warning(
        "%s: the student may never stop; train it with recipes/sft.py --eos_token '%s' first",
        *(fault, end),
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
        return {name: fold_system(row[name]) for name in columns if _has_system(row[name])}

    if isinstance(rows, Dataset):
        if not any(_has_system(row[name]) for row in rows for name in columns):
            return rows
        logger.warning(
            "the chat template has no system role: system messages are put at the start of the "
            "first user message"
        )
    return rows.map(fold, features=rows.features)


def _has_system(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation has a system message that can be joined with the user's text."""
    return messages[0].get("role") == "system" and all(
        isinstance(message.get("content"), str) for message in messages[:2]
    )
