"""An agent without a model: a dry run checks prompts, search, reward and datasets without a GPU."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from toa_trl.agents.base import Agent
from toa_trl.errors import AgentError
from toa_trl.types import Completion, Message, Sampling, as_messages
from toa_trl.utils.config import Fraction, NonNegativeFloat


class ScriptedAgent(Agent):
    """Answer from a script; the same seed gives the same answer.

    Args:
        name: name of the agent.
        responses: texts to draw from; default: the name, the seed and the start of the prompt.
        latency_s: seconds before each answer.
        failure_rate: probability that a play fails.
    """

    def __init__(
        self,
        name: str,
        responses: Sequence[str] = (),
        latency_s: NonNegativeFloat = 0.0,
        failure_rate: Fraction = 0.0,
    ) -> None:
        self.name = name
        self._responses = list(responses)
        self._latency_s = latency_s
        self._failure_rate = failure_rate

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`; a token is a word."""
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        rng = random.Random(f"{self.name}/{seed}")
        if rng.random() < self._failure_rate:
            raise AgentError(f"agent {self.name!r}: failed as scripted")
        asked = " ".join(message.content for message in as_messages(messages)).split()
        text = f"{self.name} {seed}: {' '.join(asked[:12])}"
        if self._responses:
            text = rng.choice(self._responses)
        tokens = text.split(" ")
        cut = len(tokens) > sampling.max_tokens
        return Completion(
            text=" ".join(tokens[: sampling.max_tokens]),
            finish_reason="length" if cut else "stop",
            prompt_tokens=len(asked),
            completion_tokens=min(len(tokens), sampling.max_tokens),
        )
