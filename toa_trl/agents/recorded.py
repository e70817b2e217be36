"""Responses that are there already: of a model that is no longer served, of people, of a published system."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from toa_trl.agents.base import Agent
from toa_trl.errors import AgentError, ConfigError
from toa_trl.types import Completion, Message, Sampling, as_messages
from toa_trl.utils.files import read_jsonl


class RecordedAgent(Agent):
    """Gives the recorded response to the very messages that it is asked; it cannot refine.

    Args:
        name: of the agent.
        path: JSONL file with the columns prompt (text or messages, as the task asks them) and response (a text, or a list of
            which the seed chooses one); several lines may have one prompt.

    Raises:
        ConfigError: the file cannot be read, or a line is not of that form.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name, self._place = name, f"agent {name!r}"
        if not Path(path).is_file():
            raise ConfigError(
                f"{self._place}: {path} does not exist; a JSONL file with prompt and response is needed"
            )
        self._responses: dict[tuple[Message, ...], list[str]] = defaultdict(list)
        for place, row in read_jsonl(Path(path)):
            given = row.get("response") if isinstance(row, Mapping) else None
            texts = [given] if isinstance(given, str) else given
            if (
                not isinstance(texts, list)
                or not texts
                or not all(isinstance(text, str) for text in texts)
            ):
                raise ConfigError(
                    f"{place}: the column 'response' must be a text or a list of texts"
                )
            try:
                self._responses[as_messages(row["prompt"])] += texts
            except (KeyError, TypeError) as error:
                raise ConfigError(
                    f"{place}: the column 'prompt' must be a text or a list of messages"
                ) from error

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`. Tokens are words."""
        asked = as_messages(messages)
        if asked not in self._responses:
            raise AgentError(
                f"{self._place}: no response to {asked[-1].content[:60]!r} is recorded"
            )
        text = self._responses[asked][seed % len(self._responses[asked])]
        num_prompt = sum(len(message.content.split()) for message in asked)
        return Completion(text, "stop", num_prompt, len(text.split()))
