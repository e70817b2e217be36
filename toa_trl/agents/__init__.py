"""Who answers? `make_agent` builds an agent from its configuration entry; one engine, one file, one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from toa_trl.agents.base import Agent, make_sampling
from toa_trl.errors import ConfigError
from toa_trl.utils.registry import choose, construct

ENGINES = {  # imported when asked for: torch is not loaded for a run over servers
    "transformers": "toa_trl.agents.transformers:TransformersAgent",
    "openai": "toa_trl.agents.openai:OpenAIAgent",
    "vllm": "toa_trl.agents.vllm:VLLMAgent",
    "recorded": "toa_trl.agents.recorded:RecordedAgent",
    "scripted": "toa_trl.agents.scripted:ScriptedAgent",
}

__all__ = ["ENGINES", "Agent", "make_agent", "make_sampling"]


def make_agent(entry: Mapping[str, Any]) -> Agent:
    """An agent from an entry {name, engine, ...}; the further keys are the arguments of the engine's class.

    Raises:
        ConfigError: an unknown engine or key, a missing one, or a model that cannot be loaded.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise ConfigError(f"agents: an entry needs a name and an engine, not {entry!r}")
    place = f"agent {entry['name']!r}"
    if "engine" not in entry:
        raise ConfigError(f"{place}: the key 'engine' is missing; choose one of {', '.join(ENGINES)}")
    module, _, attribute = choose(place, "engine", ENGINES, entry["engine"]).partition(":")
    factory: Callable[..., Agent] = getattr(import_module(module), attribute)
    return construct(place, factory, params={key: value for key, value in entry.items() if key != "engine"})
