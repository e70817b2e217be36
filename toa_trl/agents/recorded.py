"""Recorded responses: of a model that is no longer served, of people, of a published system."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from toa_trl.agents.base import Agent
from toa_trl.data.prompts import FILES, read_rows
from toa_trl.errors import AgentError, ConfigError
from toa_trl.types import Completion, Message, Sampling, as_messages
from toa_trl.utils.config import validate
from toa_trl.utils.files import file_format, read_jsonl


class RecordedAgent(Agent):
    """Return the recorded response to exactly the same messages; it cannot refine.

    Args:
        name: name of the agent.
        path: JSONL file, or .json, .parquet or .csv, or one of the Hub such as
            hf://datasets/NAME/FILE.json, with the prompts (a text or messages, as the task renders
            them) and the responses (a text, or a list from which the seed chooses); prompts may
            repeat.
        prompt_column: column with the prompts.
        response_column: column with the responses.

    Raises:
        ConfigError: the file cannot be read, or a line is invalid.
    """

    def __init__(
        self,
        name: str,
        path: str,
        prompt_column: str = "prompt",
        response_column: str = "response",
    ) -> None:
        self.name, self._place = name, f"agent {name!r}"
        if not path.startswith("hf://") and not Path(path).is_file():
            raise ConfigError(
                f"{self._place}: {path} does not exist; create it with prompt and response"
            )
        self._responses: dict[tuple[Message, ...], list[str]] = defaultdict(list)
        known = path.startswith("hf://") or file_format(Path(path)) in FILES
        columns = {"asked": prompt_column, "column": response_column}
        for place, row in read_rows(path, **columns) if known else read_jsonl(Path(path)):
            response = row.get(response_column) if isinstance(row, Mapping) else None
            texts = [response] if isinstance(response, str) else response
            place_of_texts = f"{place}: the column {response_column!r}"
            texts = validate(Annotated[list[str], Field(min_length=1)], texts, place_of_texts)
            try:
                self._responses[as_messages(row[prompt_column])] += texts
            except (KeyError, TypeError) as error:
                raise ConfigError(
                    f"{place}: the column {prompt_column!r} must be a text or a list of messages"
                ) from error

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`; a token is a word."""
        asked = as_messages(messages)
        if asked not in self._responses:
            raise AgentError(
                f"{self._place}: no response to {asked[-1].content[:60]!r} is recorded"
            )
        text = self._responses[asked][seed % len(self._responses[asked])]
        num_prompt = sum(len(message.content.split()) for message in asked)
        return Completion(text, "stop", num_prompt, len(text.split()))
