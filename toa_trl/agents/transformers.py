"""A transformers model in this process; agents with the same model share it and its queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from toa_trl.agents.base import Agent, SamplingEntry
from toa_trl.agents.completions import SamplingOf, with_system, without_reasoning
from toa_trl.models.loading import load_model, load_tokenizer
from toa_trl.types import Completion, Flops, Message, Sampling
from toa_trl.utils.config import PositiveInt, Text

if TYPE_CHECKING:
    from toa_trl.agents.generation import Engine

_ENGINES: WeakValueDictionary[tuple[str, str, str | None, int, int], Engine] = WeakValueDictionary()


class TransformersAgent(Agent):
    """Run a causal language model, loaded once for all agents that share it.

    The random numbers of a play come from its seed alone, so that its text does not depend on its
    batch. A batch can change the rounding of the logits (about 1e-6 in float32, more in half
    precision), and with it, rarely, a token whose draw is on the border between two.

    Args:
        name: name of the agent.
        model: folder or Hub name of a model with a chat template.
        system_prompt: system prompt that is put in front of every conversation.
        sampling: sampling parameters that differ from the run's, such as {temperature: 1.0}.
        dtype: name of a torch dtype, or "auto".
        device: device such as "cuda:1"; default: a GPU if there is one.
        max_batch_size: maximum number of plays in a batch.
        max_batch_tokens: maximum number of prompt tokens in a batch, padding included; a longer
            prompt runs alone.
        keep_reasoning: keep the text in think tags in the response; otherwise it is stored apart.

    Raises:
        ConfigError: the model or its chat template cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        model: Text,
        system_prompt: str | None = None,
        sampling: SamplingEntry | None = None,
        dtype: str = "auto",
        device: str | None = None,
        max_batch_size: PositiveInt = 128,
        max_batch_tokens: PositiveInt = 65_536,
        keep_reasoning: bool = False,
    ) -> None:
        from toa_trl.agents.generation import Engine  # torch: entries are checked without it

        self.name = name
        self._place = place = f"agent {name!r}"
        self._system_prompt = system_prompt
        self._sampling = SamplingOf(place, sampling)
        self._keep_reasoning = keep_reasoning
        key = (model, dtype, device, max_batch_size, max_batch_tokens)
        engine = _ENGINES.get(key)
        if engine is None:
            loaded = load_model(place, "AutoModelForCausalLM", model, dtype=dtype, device=device)
            engine = _ENGINES[key] = Engine(
                place, loaded, load_tokenizer(place, model), max_batch_size, max_batch_tokens
            )
        self._engine = engine

    @property
    def compute(self) -> Flops | None:
        """See `Agent`."""
        return self._engine.flops

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`.

        Raises:
            AgentError: the prompt leaves no room in the model's context.
        """
        asked = with_system(messages, self._system_prompt)
        done = await self._engine.generate(asked, self._sampling(sampling), seed)
        return without_reasoning(self._place, done, self._keep_reasoning)
