"""The error tree.

    ToaError
    |-- ConfigError        the user's mistake: names the place and the remedy; the recipes exit with code 2
    |-- SearchError        a search was told something impossible (an unknown play, a reward that is NaN)
    |-- AgentError         a play gave no response, after the agent's own retries
    |-- RewardError        a response could not be scored
    |-- JournalError       the journal cannot be read or written
    |-- Unavailable        none of an agent's or a reward model's servers answers; nothing was asked, nothing is lost

`ConfigError` and `SearchError` are `ValueError`s as well.
"""

from __future__ import annotations

from toa_trl.types import Completion


class ToaError(Exception):
    """Everything this package raises on purpose."""


class ConfigError(ToaError, ValueError):
    """A mistake in the configuration or in an input file."""


class SearchError(ToaError, ValueError):
    """A search was told something impossible."""


class AgentError(ToaError):
    """An agent gave no response, after its own retries.

    Args:
        message: the reason.
        completion: what was paid for all the same, so that its tokens count.
    """

    def __init__(self, message: str, completion: Completion | None = None) -> None:
        super().__init__(message)
        self.completion = completion


class RewardError(ToaError):
    """A reward model gave no usable score. Never a number that stands for a failure."""


class Unavailable(ToaError):
    """None of the servers of an agent or a reward model answers. Nothing came of the request, and a later one may work."""


class JournalError(ToaError):
    """The journal of a run cannot be read or written."""
