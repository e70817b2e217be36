"""The reward model of a run, from what the run recorded of it."""

from collections.abc import Mapping
from typing import Any

from toa_trl.agents import ENGINES
from toa_trl.errors import ConfigError
from toa_trl.rewards import KINDS


def recorded_reward(configuration: Mapping[str, Any], trust: bool, place: str) -> dict[str, Any]:
    """Return the entry of the reward model that run.yaml names.

    Args:
        configuration: content of run.yaml.
        trust: whether code that run.yaml names may be run.
        place: name of the run, for errors.

    Raises:
        ConfigError: the reward model was an object that the run could not record, or its entry
            names code, and `trust` is not set.
    """
    entry = configuration.get("reward")
    if not isinstance(entry, Mapping) or "kind" not in entry:
        raise ConfigError(
            f"{place}: the run recorded only the name of its reward model, {entry!r:.80}; give the "
            "entry of the reward model, or the object"
        )
    if not trust:
        check_no_code(entry, f"{place}: reward")
    return dict(entry)


def check_no_code(value: Any, place: str) -> None:
    """Refuse an entry of a reward model that names code, also in the entries nested in it.

    Raises:
        ConfigError: names the key.
    """
    if isinstance(value, list):
        for number, inner in enumerate(value):
            check_no_code(inner, f"{place}[{number}]")
    if not isinstance(value, Mapping):
        return
    known = {"kind": KINDS.built_in.keys() - {"function"}, "engine": ENGINES.built_in.keys()}
    for key, inner in value.items():
        is_code = key == "trust_remote_code" and inner
        if key in known:
            is_code = not isinstance(inner, str) or inner not in known[key]
        if is_code:
            raise ConfigError(f"{place}.{key}: {inner!r} is code, which is run only with --trust")
        check_no_code(inner, f"{place}.{key}")
