"""The values that travel between the parts: frozen dataclasses, standard library only.

One *play* is one generation call: an `Action` (who answers, and which earlier plays it sees), then
a `Completion`, then a reward. A `Rollout` is every play of one prompt. Terms are those of the TOA
paper (arXiv 2412.17061): agent, play, reward, budget, width, depth.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from numbers import Real
from typing import Any, Literal, NamedTuple, Self, TypeGuard

Kind = Literal["answer", "refine", "aggregate"]
LARGEST_SCORE = 1e100  # squares and sums of larger ones may be infinite


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message, as in TRL's conversational format."""

    role: str  # "system", "user", "assistant" or "tool"
    content: str  # empty where an assistant only calls tools
    tool_calls: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)  # in TRL's format
    name: str | None = None
    tool_call_id: str | None = None

    def __repr__(self) -> str:
        """Show what is set: seeds of judges come from this text and must not change."""
        further = {name: getattr(self, name) for name in ("tool_calls", "name", "tool_call_id")}
        fields = {"role": self.role, "content": self.content}
        fields |= {name: value for name, value in further.items() if value not in ((), None)}
        return f"Message({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    @property
    def text(self) -> str:
        """The content and the tool calls, for a reader without a chat template."""
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in self.tool_calls]
        return "\n".join(part for part in (self.content, *calls) if part)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the agents are asked; `messages` may also be a text or TRL's list of dicts."""

    id: str  # unique within a run
    messages: tuple[Message, ...]  # ends with a user message
    metadata: Mapping[str, Any] = field(default_factory=dict)  # further columns of the prompts file

    def __post_init__(self) -> None:
        """Convert the messages."""
        object.__setattr__(self, "messages", as_messages(self.messages))


@dataclass(frozen=True, slots=True)
class Action:
    """What a search wants played next."""

    agent: str
    kind: Kind = "answer"
    refs: tuple[int, ...] = ()  # plays whose responses are put into the prompt, in the order shown
    parent: int | None = None  # parent in the tree; a fresh arm has a parent and no refs
    depth: int = 0  # 0 under the root, else 1 + the parent's depth


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an agent samples. Defaults are the paper's (section 4)."""

    temperature: float = 0.7  # 0 is greedy
    top_p: float = 1.0  # (0, 1]
    max_tokens: int = 2048
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One response of an agent."""

    text: str
    finish_reason: str = "stop"  # "length": max_tokens cut it short; any other: a failed play
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float | None = None  # forward FLOPs of this call; None if the model's size is unknown
    reasoning: str | None = None  # what a reasoning model wrote before `text`; recorded, not used
    tokens_estimated: bool = False  # neither a server nor a tokenizer has counted them


@dataclass(frozen=True, slots=True)
class Flops:
    """The compute of one model: call it with a number of tokens.

    FLOPs per token = 2 * parameters + 2 * layers * context * hidden for the attention, as in the
    paper's accounting; a call with T tokens in all costs T times that, at a context of T.
    """

    num_parameters: int  # active per token, input embeddings included
    num_layers: int
    hidden_size: int

    def __call__(self, num_tokens: int, context: int | None = None) -> float:
        """Return the FLOPs of a forward pass.

        Args:
            num_tokens: prompt and completion together.
            context: tokens that each token attends to; by default `num_tokens`.
        """
        context = num_tokens if context is None else context
        return num_tokens * (
            2.0 * self.num_parameters + 2.0 * self.num_layers * context * self.hidden_size
        )


@dataclass(frozen=True, slots=True)
class Score:
    """A raw reward with its details; numbers of numpy and torch become those of Python.

    Raises:
        ValueError: a reward is not a finite number within +-LARGEST_SCORE.
    """

    value: float  # raw
    flops: float | None = None  # forward FLOPs of the reward models; None if unknown
    second: float | None = None  # raw reward of a held-out model, which no search sees
    weight: float = 1.0  # weight of a judge's verdict (Arena-Hard: 3 for "much better")

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", checked_score(self.value))
        if self.second is not None:
            object.__setattr__(self, "second", checked_score(self.second))
        if self.flops is not None:
            object.__setattr__(self, "flops", as_number(self.flops))


def checked_score(value: Any) -> float:
    """Return a raw reward as a float.

    Raises:
        ValueError: it is not a finite number within +-LARGEST_SCORE.
    """
    if type(value) is float and abs(value) <= LARGEST_SCORE:  # most scores
        return value
    number = as_number(value)
    if not is_finite(number):
        raise ValueError(f"a score must be a finite number, not {number!r}")
    if abs(number) > LARGEST_SCORE:
        raise ValueError(
            f"a score must be within +-{LARGEST_SCORE:g}, so that means and variances stay finite, "
            f"not {number:g}; raise an error for a response that has no score"
        )
    return float(number)


def is_finite(number: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number."""
    size: Any = abs(number) if isinstance(number, Real) else math.inf
    return bool(size <= sys.float_info.max)  # an integer may be larger


def as_number(value: Any) -> Any:
    """Return the number in a torch tensor or numpy array without dimensions; else the value."""
    is_scalar = getattr(value, "shape", None) == () and callable(getattr(value, "item", None))
    return value.item() if is_scalar else value


@dataclass(frozen=True, slots=True)
class Play:
    """One play: scored (with `completion` and `reward`) or failed (with the reason in `error`).

    A failed play has a completion if one was paid for: its response was unusable.
    """

    index: int  # 0, 1, 2, ... within the prompt, in the order of asking
    action: Action
    completion: Completion | None = None
    reward: float | None = None  # raw, unbounded
    error: str | None = None
    seed: int = 0
    reward_flops: float | None = None  # FLOPs the reward model spent on this play
    second_reward: float | None = None  # raw, of a held-out model; the search never sees it


@dataclass(frozen=True, slots=True)
class Rollout:
    """Every play of one prompt, failed ones included, by index."""

    prompt: Prompt
    plays: tuple[Play, ...]

    @property
    def scored(self) -> tuple[Play, ...]:
        """The plays that have a reward, by index."""
        return tuple(p for p in self.plays if p.reward is not None)

    @property
    def ranked(self) -> tuple[Play, ...]:
        """The scored plays, best reward first; of equal ones the earlier first."""
        return tuple(sorted(self.scored, key=lambda p: (-_reward(p), p.index)))

    @property
    def ranks(self) -> dict[int, int]:
        """The rank by reward of every scored play, by its index; 1 is the best."""
        return {play.index: rank for rank, play in enumerate(self.ranked, 1)}

    def first(self, num_scored: int | None) -> Self:
        """Return the rollout with its first scored plays only; None: with all of them."""
        return replace(self, plays=self.scored[:num_scored])


@dataclass(frozen=True, slots=True)
class AgentCounts:
    """Totals of one agent over a run."""

    num_scored: int = 0
    num_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float = 0.0  # as far as known
    num_estimated: int = 0  # plays whose tokens are estimated

    def __add__(self, other: Self) -> Self:
        """Return the sum."""
        return type(self)(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals over a run."""

    num_prompts: int
    num_scored: int
    num_failed: int
    num_truncated: int  # scored plays that max_tokens cut short
    prompt_tokens: int
    completion_tokens: int
    flops: float  # of the agents, as far as known
    reward_flops: float
    num_estimated: int = 0  # plays whose tokens are estimated


class Grant(NamedTuple):
    """A wave of plays that an adaptive allocation grants to one prompt."""

    wave: int  # number in the order of the decisions
    round: int  # waves of one round were decided together
    prompt: int  # position in the run's prompts
    plays: int  # scored plays that the prompt has at the end of the wave
    gain: float | None = None  # expected increase of the objective per play; None at the start


@dataclass(frozen=True, slots=True)
class Spending:
    """What calls of reward models have cost."""

    tokens: int = 0  # prompt and completion tokens
    cost: float = 0.0  # by their prices
    num_estimated: int = 0  # of the tokens, those that no server or tokenizer has counted

    def __add__(self, other: Self) -> Self:
        """Return the sum."""
        return type(self)(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def _reward(play: Play) -> float:
    assert play.reward is not None
    return play.reward


# Servers have several words for the two ends of a response that was not interrupted.
WHOLE = {
    *("stop", "eos", "eos_token", "stop_token", "stop_sequence", "stop_string"),
    *("end_turn", "end_of_turn", "complete"),
}
CUT = {"length", "max_tokens", "max_output_tokens", "max_length", "model_length"}
MAX_REASON = 40  # characters of a finish_reason that are kept


def finish_of(reason: str | None) -> str:
    """Return "stop", "length", or what a server gave instead: such a response is not usable."""
    if reason == "stop" or reason == "length":
        return reason
    word = (reason or "").strip().lower()
    if word in WHOLE:
        return "stop"
    return "length" if word in CUT else (reason or "none")[:MAX_REASON]


MESSAGE_KEYS = ("role", "content", "tool_calls", "name", "tool_call_id")
"""Keys of a message that are kept."""


def as_messages(value: str | Iterable[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """Return a text (one user message), `Message`s or TRL's dicts as a tuple of `Message`s.

    Raises:
        TypeError: an entry is neither a `Message` nor a mapping of role and content, or its tool
            calls are not in the format of TRL or OpenAI.
    """
    if isinstance(value, str):
        return (Message("user", value),)
    # `Iterable` is an abstract class, which is slow to check
    if not isinstance(value, (list, tuple)) and (
        not isinstance(value, Iterable) or isinstance(value, bytes)
    ):
        raise TypeError(f"a list of messages is needed, not {value!r}")
    # a list, because it is faster than a generator
    return tuple([entry if isinstance(entry, Message) else _message(entry) for entry in value])


def _message(entry: Any) -> Message:
    if not isinstance(entry, Mapping):
        raise TypeError(f"a message needs a text role and a text content, not {entry!r}")
    calls = entry.get("tool_calls") or ()
    role, content = entry.get("role"), entry.get("content")
    if content is None and calls:
        content = ""
    if not isinstance(role, str) or not isinstance(content, str):
        raise TypeError(f"a message needs a text role and a text content, not {entry!r}")
    for key in ("name", "tool_call_id"):
        if not isinstance(entry.get(key), str | None):
            raise TypeError(f"the {key} of a message must be a text, not {entry[key]!r}")
    if isinstance(calls, str | Mapping) or not isinstance(calls, Iterable):
        raise TypeError(f"tool_calls must be a list, not {calls!r}")
    tool_calls = tuple(_tool_call(call) for call in calls)
    return Message(role, content, tool_calls, entry.get("name"), entry.get("tool_call_id"))


def _tool_call(call: Any) -> Mapping[str, Any]:
    """Return a tool call in TRL's format, where arguments are a mapping, not JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise TypeError(f"a tool call needs a function with a name and arguments, not {call!r}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if not isinstance(arguments, Mapping):
        raise TypeError(f"the arguments of a tool call must be a mapping or its JSON, not {call!r}")
    given = {key: value for key, value in call.items() if value is not None}
    whole = {**function, "arguments": dict(arguments)}
    return {"type": "function", **given, "function": whole}


def as_dicts(messages: Sequence[Message | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as dicts, as TRL and chat templates take them; unset keys are left out."""
    dicts = []
    for message in as_messages(messages):
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            entry["tool_calls"] = list(message.tool_calls)
        if message.name is not None:
            entry["name"] = message.name
        if message.tool_call_id is not None:
            entry["tool_call_id"] = message.tool_call_id
        dicts.append(entry)
    return dicts
