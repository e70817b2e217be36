"""Let a run grow in its journal: more prompts, a larger budget, further agents.

The plays that were made stay. A search continues exactly if it makes the choices that it would
have made with the new budget from the start; where it does not, the user chooses what stays.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from toa_trl.errors import ConfigError
from toa_trl.sampling.identity import differences, digest_of_prompts, warn_of_unknown_contents
from toa_trl.sampling.journal import Journal
from toa_trl.search import Search, first_difference
from toa_trl.types import Prompt
from toa_trl.utils.config import validate

logger = logging.getLogger(__name__)

Extend = bool | Literal["keep_width", "given"]
"""False: the run must be unchanged. True: it may grow, if the search continues exactly.
"keep_width": the search keeps the width that it had. "given": the search takes the plays that were
made as they are, and continues with the width that follows from the new budget."""
SearchOf = Callable[[Sequence[str], int, Mapping[str, Any]], Search]
"""Returns the run's search for these agents, this budget and these parameters."""


def begin_or_extend(
    journal: Journal,
    identity: Mapping[str, Any],
    prompts: Sequence[Prompt],
    extend: Extend,
    search_of: SearchOf,
) -> None:
    """Begin or resume the run of a journal, which grows first where that is wanted.

    Raises:
        ConfigError: see `extended_identity` and `Journal.begin`.
    """
    validate(Extend, extend, "extend")
    stored = journal.identity
    if extend and stored:
        identity = extended_identity(journal.path, stored, identity, prompts, extend, search_of)
        if differences(stored, identity):
            journal.extend(identity, prompts)
    journal.begin(identity, prompts)


def extended_identity(
    path: str | Path,
    stored: Mapping[str, Any],
    identity: Mapping[str, Any],
    prompts: Sequence[Prompt],
    extend: Extend,
    search_of: SearchOf,
) -> dict[str, Any]:
    """Return the identity of a run that grows.

    Args:
        path: the journal, for errors.
        stored: identity of the run so far.
        identity: identity of the run as it is wanted.
        prompts: all prompts of the run as it is wanted.
        extend: see `Extend`.
        search_of: see `SearchOf`.

    Raises:
        ConfigError: something else than the prompts, the budget and the agents has changed, or the
            search does not continue exactly; the message offers the choice.
    """
    _check_grown(path, stored, identity, prompts)
    agents, budget = list(stored["agents"]), stored["budget"]
    params = dict(identity["search_params"])
    old = search_of(agents, budget, stored["search_params"])
    if extend == "keep_width":
        kept = params.setdefault("width", old.width)
        if kept is None or kept != old.width:
            has = "no width; choose given" if old.width is None else f"the width {old.width}"
            raise ConfigError(f"--extend keep_width: the search of the run has {has}")
    wanted = {**identity, "search_params": params}
    as_before = _without_growth(stored, wanted, agents)
    # The width may change where the user has chosen it, or is asked to choose below.
    free = () if old.width is None else ("width",)
    rest = differences(_without_params(stored, free), _without_params(as_before, free))
    if rest:
        raise ConfigError(
            f"{path}: --extend takes more prompts, a larger budget and further agents; restore "
            f"what else has changed (then -> now): {'; '.join(rest)}"
        )
    new = search_of(list(identity["agents"]), identity["budget"], params)
    if extend is True:
        _check_exact(stored, identity, old, new, search_of)
    warn_of_unknown_contents(path, stored, as_before)
    added = [name for name in identity["agents"] if name not in agents]
    if added:
        logger.warning(
            "--extend: the earlier plays were chosen without the agents %s and stay as they are%s",
            ", ".join(added),
            ""
            if identity["budget"] > budget
            else "; raise the budget to let them answer the earlier prompts",
        )
    return wanted


def _check_grown(
    path: str | Path,
    stored: Mapping[str, Any],
    identity: Mapping[str, Any],
    prompts: Sequence[Prompt],
) -> None:
    number, digest = stored["prompts"]["number"], stored["prompts"]["digest"]
    if len(prompts) < number or digest_of_prompts(prompts[:number]) != digest:
        raise ConfigError(
            f"{path}: --extend: the first {number} prompts are not those of the run; restore them, "
            "and append further prompts at the end"
        )
    if identity["budget"] < stored["budget"]:
        raise ConfigError(
            f"{path}: --extend: budget: must be >= {stored['budget']}, that of the run, not "
            f"{identity['budget']}"
        )
    agents = list(stored["agents"])
    if list(identity["agents"])[: len(agents)] != agents:
        raise ConfigError(
            f"{path}: --extend: agents: the first must be {', '.join(agents)}, as in the run; "
            "append further agents at the end"
        )


def _without_growth(
    stored: Mapping[str, Any], identity: Mapping[str, Any], agents: Sequence[str]
) -> dict[str, Any]:
    """Return the wanted identity with the prompts, the budget and the agents of the run so far."""
    added = tuple(f"agents.{name}." for name in identity["agents"] if name not in agents)
    added += tuple(f"agents.{name} " for name in identity["agents"] if name not in agents)
    contents = identity.get("contents") or {}
    return {
        **identity,
        "prompts": stored["prompts"],
        "budget": stored["budget"],
        "agents": {name: identity["agents"][name] for name in agents},
        "contents": {key: value for key, value in contents.items() if not key.startswith(added)},
    }


def _without_params(identity: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    params = {k: v for k, v in identity["search_params"].items() if k not in names}
    return {**identity, "search_params": params}


def _check_exact(
    stored: Mapping[str, Any],
    identity: Mapping[str, Any],
    old: Search,
    new: Search,
    search_of: SearchOf,
) -> None:
    """Refuse a search whose first choices depend on the budget."""
    agents, params = list(stored["agents"]), stored["search_params"]
    budgets = f"{stored['budget']} -> {identity['budget']}"
    if old.width != new.width:
        follows = "" if "width" in params else f" follows from the budget ({budgets})"
        reason = f"search_params.width{follows}: {old.width} -> {new.width}"
    else:
        play = first_difference(
            lambda: search_of(agents, stored["budget"], params),
            lambda: search_of(agents, identity["budget"], params),
            stored["budget"],
        )
        if play is None:
            return
        reason = f"its choices depend on the budget ({budgets}) from play {play} on"
    keep = f"--extend keep_width to keep the width of {old.width}, or " if old.width else ""
    raise ConfigError(
        f"--extend: the search {stored['search']!r} cannot continue exactly: {reason}. Choose "
        f"{keep}--extend given to take the plays that were made as they are; they stay either way"
    )
