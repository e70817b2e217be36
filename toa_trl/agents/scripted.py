"""An agent without a model, for a dry run: it shows that prompts, search, reward and data sets fit before a GPU is paid."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from toa_trl.agents.base import Agent
from toa_trl.errors import AgentError, ConfigError
from toa_trl.types import Completion, Message, Sampling, as_messages


class ScriptedAgent(Agent):
    """Answers from a script; the same seed gives the same answer.

    Args:
        name: of the agent.
        responses: texts to draw from. Without them, a numbered line that quotes how the prompt begins.
        latency_s: seconds before each answer.
        failure_rate: share of plays that fail, in [0, 1].
    """

    def __init__(
        self,
        name: str,
        responses: Sequence[str] = (),
        latency_s: float = 0.0,
        failure_rate: float = 0.0,
    ) -> None:
        if isinstance(responses, str) or not all(isinstance(text, str) for text in responses):
            raise ConfigError(f"agent {name!r}: responses must be a list of texts")
        if not 0 <= failure_rate <= 1:
            raise ConfigError(
                f"agent {name!r}: failure_rate must be in [0, 1], not {failure_rate!r}"
            )
        self.name = name
        self._responses = list(responses)
        self._latency_s = latency_s
        self._failure_rate = failure_rate

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`. Tokens are words."""
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        rng = random.Random(f"{self.name}/{seed}")
        if rng.random() < self._failure_rate:
            raise AgentError(f"agent {self.name!r}: failed as scripted")
        asked = [word for message in as_messages(messages) for word in message.content.split()]
        text = (
            rng.choice(self._responses)
            if self._responses
            else f"{self.name} {seed}: {' '.join(asked[:12])}"
        )
        words = text.split(" ")
        cut = len(words) > sampling.max_tokens
        return Completion(
            text=" ".join(words[: sampling.max_tokens]),
            finish_reason="length" if cut else "stop",
            prompt_tokens=len(asked),
            completion_tokens=min(len(words), sampling.max_tokens),
        )
