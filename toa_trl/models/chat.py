"""Chat templates: one way of rendering conversations, for agents, rewards, training, evaluation."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

Messages = Sequence[Mapping[str, Any]]
_PROBE = "5f1c system 0b7e"  # a text that no template contains


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: with a chat template.
        system: system prompt of conversations without one.
        error: makes the error for a conversation that the template refuses, of its message.
    """

    def __init__(
        self,
        tokenizer: Any,
        system: str | None = None,
        error: Callable[[str], Exception] = ValueError,
    ) -> None:
        self._tokenizer, self._system, self._error = tokenizer, system, error

    @cached_property
    def takes_system(self) -> bool:
        """Whether it shows system messages (Gemma's and Mistral's refuse them)."""
        messages = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "x"}]
        try:
            return _PROBE in self._tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError:
            return False

    def render(self, messages: Messages, response: str | None = None, **options: Any) -> Any:
        """Return the token ids (or with tokenize=False the text) of a conversation.

        A system message is folded into the first user message where the template has no place for
        it.

        Args:
            messages: of the conversation.
            response: the assistant's next message.
            options: of the tokenizer's `apply_chat_template`.

        Raises:
            Exception: `error` of the template's reason to refuse the conversation.
        """
        messages = list(messages)
        if self._system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._system})
        if messages[0]["role"] == "system" and not self.takes_system:
            messages = fold_system(messages)
        if response is not None:
            messages.append({"role": "assistant", "content": response})
        try:
            return self._tokenizer.apply_chat_template(messages, return_dict=False, **options)
        except (TemplateError, ValueError) as error:
            reason = f"the chat template refuses the conversation: {error}"
            raise self._error(reason) from error


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
