"""Checks of the models of a synthesis or an evaluation: where they stop, and how they sample."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from toa_trl.agents import IN_PROCESS
from toa_trl.agents.base import NEUTRAL
from toa_trl.errors import ConfigError
from toa_trl.models.loading import load_tokenizer
from toa_trl.training.findings import Finding
from toa_trl.training.templates import end_of_turn, stop_tokens

Entry = Mapping[str, Any]


def agent_findings(entries: Sequence[Entry], sampling: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is to be known of agents before the first play."""
    for entry in entries:
        if entry["engine"] in IN_PROCESS:
            yield _stop_finding(entry)
        elif entry["engine"] == "openai":
            yield from _left_out(entry)
    sampled = {entry["name"]: _sampling_of(entry, sampling) for entry in entries}
    is_same = True
    for key in dict.fromkeys(chain.from_iterable(sampled.values())):
        values = {name: of_agent.get(key) for name, of_agent in sampled.items()}
        if len(set(map(repr, values.values()))) > 1:
            is_same = False
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            yield Finding("fine", "sampling", f"the configuration sets {key} apart: {listed}")
    if is_same:
        what = "every engine is asked for the same sampling, whatever generation_config.json says"
        yield Finding("fine", "sampling", what)


def _sampling_of(entry: Entry, sampling: Mapping[str, Any]) -> dict[str, Any]:
    values = {**NEUTRAL, **sampling, **(entry.get("sampling") or {})}
    if entry["engine"] == "openai":
        values |= entry.get("extra_body") or {}
    return values


def _left_out(entry: Entry) -> Iterator[Finding]:
    """Yield a warning for fields that a server would take from generation_config.json."""
    given = entry.get("extra_body") or {}
    fields = [key for key in NEUTRAL if key in given and given[key] is None]
    if fields:
        yield Finding(
            "warning",
            "sampling",
            f"agent {entry['name']!r}: extra_body leaves out {', '.join(fields)}, so that the "
            "server takes its own from generation_config.json, which other engines do not",
            "remove them from extra_body, or start the server with --generation-config vllm",
        )


def _stop_finding(entry: Entry) -> Finding:
    """Return whether the model stops where its chat template ends a turn."""
    name, model, revision = f"agent {entry['name']!r}", entry["model"], entry.get("revision")
    code = bool(entry.get("trust_remote_code"))
    try:
        tokenizer = load_tokenizer(name, model, trust_remote_code=code, revision=revision)
    except ConfigError as error:
        return Finding("error", "template", str(error))
    tail = end_of_turn(tokenizer)
    if tail and not ({tokenizer.eos_token_id} | stop_tokens(model, revision)) & set(tail):
        return Finding(
            "warning",
            "eos",
            f"{name}: the chat template ends a turn with {tokenizer.decode(tail)!r}, and the model "
            f"stops at {tokenizer.eos_token!r}: responses continue until max_tokens",
            "use a model that was trained with this template, or name the text in sampling.stop",
        )
    return Finding("fine", "eos", f"{name} stops where its chat template ends a turn")
