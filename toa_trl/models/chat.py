"""Chat templates: one way of rendering messages for agents, training and evaluation.

The conversations of reward models are rendered by `toa_trl.rewards.scoring.Conversations`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

Messages = Sequence[Mapping[str, Any]]
_PROBE = "5f1c system 0b7e"  # a text that no template contains


def render(tokenizer: Any, messages: Messages, **options: Any) -> Any:
    """Return token ids (or with tokenize=False the text) of messages in the chat template.

    A system message is folded into the first user message where the template has no place for it.

    Raises:
        ValueError: the template refuses the messages.
    """
    if messages[0]["role"] == "system" and not takes_system(tokenizer):
        messages = fold_system(messages)
    try:
        return tokenizer.apply_chat_template(list(messages), return_dict=False, **options)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from error


def takes_system(tokenizer: Any) -> bool:
    """Return whether the chat template shows a system message (Gemma's and Mistral's refuse it)."""
    messages = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "x"}]
    try:
        return _PROBE in tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return False


def fold_system(messages: Messages) -> list[dict[str, Any]]:
    """Return the messages with leading system messages at the start of the first user message.

    Messages without a leading system message, or with another role behind it, stay as they are.
    """
    roles = [message["role"] for message in messages]
    num_system = next((at for at, role in enumerate(roles) if role != "system"), len(roles))
    if num_system == 0 or roles[num_system : num_system + 1] != ["user"]:
        return [dict(message) for message in messages]
    text = "\n\n".join(message["content"] for message in messages[: num_system + 1])
    first = {**messages[num_system], "content": text}
    return [first, *(dict(message) for message in messages[num_system + 1 :])]
