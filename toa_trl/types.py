"""The values that travel between the parts: frozen dataclasses, standard library only.

One *play* is one generation call: an `Action` (who answers, and which earlier plays it sees), then
a `Completion`, then a reward. A `Rollout` is every play of one prompt. Terms are those of the TOA
paper (arXiv 2412.17061): agent, play, reward, budget, width, depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["answer", "refine", "aggregate"]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message, as in TRL's conversational format."""

    role: str  # "system", "user" or "assistant"
    content: str


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
    finish_reason: str = "stop"  # "stop", or "length" when max_tokens cut it short
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float | None = None  # forward FLOPs of this call; None if the model's size is unknown
    reasoning: str | None = None  # what a reasoning model wrote before `text`; recorded, not used


@dataclass(frozen=True, slots=True)
class Score:
    """A raw reward with its details."""

    value: float  # raw, unbounded, finite
    flops: float | None = None  # forward FLOPs of the reward models; None if unknown
    second: float | None = None  # raw reward of a held-out model, which no search sees
    weight: float = 1.0  # weight of a judge's verdict (Arena-Hard: 3 for "much better")


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


@dataclass(frozen=True, slots=True)
class AgentCounts:
    """Totals of one agent over a run."""

    num_scored: int = 0
    num_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float = 0.0  # as far as known


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


def _reward(play: Play) -> float:
    assert play.reward is not None
    return play.reward


def as_messages(value: str | Iterable[Message | Mapping[str, str]]) -> tuple[Message, ...]:
    """Return a text (one user message), `Message`s or TRL's dicts as a tuple of `Message`s.

    Raises:
        TypeError: an entry is neither a `Message` nor a mapping of role and content.
    """
    if isinstance(value, str):
        return (Message("user", value),)
    messages = []
    for entry in value:
        if isinstance(entry, Message):
            messages.append(entry)
        elif (
            isinstance(entry, Mapping)
            and isinstance(entry.get("role"), str)
            and isinstance(entry.get("content"), str)
        ):
            messages.append(Message(entry["role"], entry["content"]))
        else:
            raise TypeError(f"a message needs a text role and a text content, not {entry!r}")
    return tuple(messages)


def as_dicts(messages: Sequence[Message | Mapping[str, str]]) -> list[dict[str, str]]:
    """Return messages as dicts, as chat templates, TRL and OpenAI-compatible servers take them."""
    return [{"role": m.role, "content": m.content} for m in as_messages(messages)]
