"""The error tree.

    ToaError
    |-- ConfigError        invalid configuration or input; names the key and the remedy; exit code 2
    |-- SearchError        invalid use of a search (an unknown play, a reward that is NaN)
    |-- AgentError         no response after the agent's own retries
    |-- RewardError        a response could not be scored
    |-- JournalError       the journal cannot be read or written
    |-- Unavailable        no server answers; the request had no effect

`ConfigError` and `SearchError` are `ValueError`s as well.
"""

from toa_trl.types import Completion


class ToaError(Exception):
    """Base class of the errors that this package raises."""


class ConfigError(ToaError, ValueError):
    """The configuration or an input file is invalid."""


class SearchError(ToaError, ValueError):
    """A search was used in an invalid way."""


class AgentError(ToaError):
    """An agent gave no response, after its own retries.

    Args:
        message: the reason.
        completion: a response that was paid for but is unusable; its tokens count.
    """

    def __init__(self, message: str, completion: Completion | None = None) -> None:
        super().__init__(message)
        self.completion = completion


class RewardError(ToaError):
    """A reward model gave no usable score."""


class Unavailable(ToaError):
    """No server of an agent or a reward model answers; a later request may succeed."""


class JournalError(ToaError):
    """The journal of a run cannot be read or written."""
