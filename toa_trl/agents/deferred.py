"""Agents whose models are loaded when the first response is missing, and checked before."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from toa_trl.agents import IN_PROCESS, make_agent
from toa_trl.agents.base import Agent
from toa_trl.agents.vllm import check_vllm
from toa_trl.errors import ToaError
from toa_trl.models.adapters import check_adapter
from toa_trl.models.devices import check_device, free_memory
from toa_trl.models.sources import read_config
from toa_trl.types import Completion, Message, Sampling

Part = TypeVar("Part", bound=Any)


class Deferred(Generic[Part]):
    """An agent or a reward model that is made when it is first needed.

    Args:
        make: makes it; what it raises is raised again by every further call, without a new attempt.
    """

    def __init__(self, make: Callable[[], Part]) -> None:
        self._make = make
        self._part: Part | None = None
        self._failure: ToaError | None = None

    def __call__(self) -> Part:
        """Return the part."""
        if self._failure is not None:
            raise self._failure
        if self._part is None:
            try:
                self._part = self._make()
            except ToaError as error:
                self._failure = error
                raise
        return self._part

    async def aclose(self) -> None:
        """Close the part and give its memory back; the next call makes another."""
        if self._part is not None:
            await self._part.aclose()
            self._part = None
            free_memory()


class DeferredAgent(Agent):
    """An agent that is made when it is first asked.

    Args:
        entry: {name, engine, ...}.
    """

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.name = str(entry["name"])
        self._entry = entry
        self._agent = Deferred(lambda: make_agent(entry))

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`."""
        return await self._agent().generate(messages, sampling=sampling, seed=seed)

    async def check(self) -> None:
        """See `check_entry`."""
        await check_entry(f"agent {self.name!r}", self._entry)

    async def aclose(self) -> None:
        """Close the agent and give its memory back."""
        await self._agent.aclose()


async def check_entry(place: str, entry: Mapping[str, Any]) -> None:
    """Check that the model of an agent's entry can be asked, without loading it.

    Args:
        place: what the error messages begin with.
        entry: {name, engine, ...}.

    Raises:
        ConfigError: a folder has no model, an adapter does not fit its base, a device does not
            exist, or a server cannot be reached.
    """
    engine, model = entry.get("engine"), entry.get("model")
    if engine in IN_PROCESS and model:
        read_config(place, model)
        if engine == "vllm":
            check_vllm(place, model, entry.get("device"))
        else:
            check_device(place, entry.get("device"))
        check_adapter(place, model)
    elif engine == "openai":
        async with aclosing(make_agent(entry)) as agent:
            await agent.check()
