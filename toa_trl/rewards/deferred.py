"""Reward models and judges whose models are loaded when the first score is missing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toa_trl.agents import IN_PROCESS
from toa_trl.agents.deferred import Deferred, DeferredAgent
from toa_trl.models.adapters import check_adapter
from toa_trl.models.devices import check_device
from toa_trl.models.sources import read_config
from toa_trl.rewards import make_reward
from toa_trl.rewards.base import DetailedReward
from toa_trl.types import Prompt, Score

# kinds that load a model when they are made -> the class of its base, where it is an adapter
LOADED = {
    "classifier": "AutoModelForSequenceClassification",
    "ultrarm": "AutoModelForSequenceClassification",
    "likelihood": "AutoModelForCausalLM",
    "process": "AutoModelForCausalLM",
}


class DeferredReward(DetailedReward):
    """A reward model of one of the kinds in `LOADED`, made when it is first asked.

    Args:
        entry: {kind, ...}.
        place: path of the entry in the configuration, for errors.
    """

    def __init__(self, entry: Mapping[str, Any], place: str) -> None:
        self._entry, self._place = entry, place
        self._model = Deferred(lambda: make_reward(entry, place))

    async def check(self) -> None:
        """Check that the model and its devices exist, without loading anything."""
        place = f"{self._place} {self._entry['kind']!r}"
        for device in self._entry.get("devices") or [self._entry.get("device")]:
            check_device(place, device)
        if model := self._entry.get("model"):
            read_config(place, model, self._entry.get("revision"))
            check_adapter(place, model, LOADED[self._entry["kind"]])

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        return await self._model().score_details(prompt, responses)

    async def aclose(self) -> None:
        """Close the model and give its memory back; the next score loads it again."""
        await self._model.aclose()


def deferred(entry: Any, place: str = "reward") -> Any:
    """Return what `make_reward` and `JudgeReward` take, with nothing loaded before it is needed.

    Args:
        entry: {kind, ...}; anything else is returned as it is. A class of the user's own is made
            at once.
        place: path of the entry in the configuration, for errors.
    """
    kind = entry.get("kind") if isinstance(entry, Mapping) else None
    if kind in LOADED:
        return DeferredReward(entry, place)
    if kind == "judge":
        return with_deferred_agent(entry)
    if kind == "held_out":
        return {**entry, **{key: deferred(entry.get(key)) for key in ("reward", "second")}}
    if kind in ("weighted_sum", "minimum"):
        parts = [{**part, "reward": deferred(part["reward"])} for part in entry["rewards"]]
        return {**entry, "rewards": parts}
    return entry


def models_in(entry: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of models that an entry loads into this process, also of nested ones."""
    if isinstance(entry, Mapping):
        if entry.get("engine") in IN_PROCESS or entry.get("kind") in LOADED:
            yield entry
        for part in entry.values():
            yield from models_in(part)
    elif isinstance(entry, list):
        for part in entry:
            yield from models_in(part)


def with_deferred_agent(judge: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a judge, whose agent is made when it is first asked."""
    agent = judge.get("agent")
    return {**judge, **({"agent": DeferredAgent(agent)} if isinstance(agent, Mapping) else {})}
