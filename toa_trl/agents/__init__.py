"""Who answers? `make_agent` builds an agent from its entry; one engine, one file, one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toa_trl.agents.base import Agent, AgentOptions, as_agent, make_sampling
from toa_trl.errors import ConfigError
from toa_trl.utils.registry import Registry

# classes are imported when they are used: a run over servers does not load torch
ENGINES: Registry[Any] = Registry(
    key="engine",
    built_in={
        "transformers": "toa_trl.agents.transformers:TransformersAgent",
        "openai": "toa_trl.agents.openai:OpenAIAgent",
        "vllm": "toa_trl.agents.vllm:VLLMAgent",
        "recorded": "toa_trl.agents.recorded:RecordedAgent",
        "scripted": "toa_trl.agents.scripted:ScriptedAgent",
    },
    group="toa_trl.agents",
    common=AgentOptions,
)
IN_PROCESS = ("transformers", "vllm")
"""Engines that load a model into this process."""

__all__ = [
    "ENGINES",
    "IN_PROCESS",
    "Agent",
    "as_agent",
    "make_agent",
    "make_sampling",
    "names_of_agents",
]


def make_agent(entry: Mapping[str, Any]) -> Agent:
    """Return the agent that an entry {name, engine, ...} describes.

    Args:
        entry: `engine` names the class, the further keys are the arguments of its constructor.

    Raises:
        ConfigError: an unknown engine or key, a missing one, or a model that cannot be loaded.
    """
    name = entry.get("name") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ConfigError(f"agents: an entry needs a name and an engine, not {entry!r}")
    return as_agent(ENGINES.build(f"agent {name!r}", entry))


def names_of_agents(agents: Sequence[Agent | Mapping[str, Any]]) -> list[str]:
    """Return the names of the agents.

    Raises:
        ConfigError: an entry is invalid; the message names its path.
    """
    names = []
    for number, agent in enumerate(agents):
        if isinstance(agent, Mapping):
            ENGINES.check(agent, f"agents[{number}]")
            names.append(str(agent["name"]))
        else:
            names.append(as_agent(agent, f"agents[{number}]").name)
    return names
