"""toa_trl: better training data than any one model gives.

Several language models work on each prompt together; a Monte Carlo tree search guided by a reward
model decides which model answers next and which earlier response it improves (TOA, arXiv
2412.17061). The rollouts become data sets for TRL's trainers. Importing this package loads neither
torch nor trl.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from toa_trl.errors import AgentError, ConfigError, JournalError, RewardError, SearchError, ToaError
from toa_trl.types import Action, Completion, Message, Play, Prompt, Rollout, Sampling, Score

if TYPE_CHECKING:
    from toa_trl.rollouts import Rollouts
    from toa_trl.sampler import TOASampler

__version__ = version("toa_trl")

__all__ = [
    "Action",
    "AgentError",
    "Completion",
    "ConfigError",
    "JournalError",
    "Message",
    "Play",
    "Prompt",
    "RewardError",
    "Rollout",
    "Rollouts",
    "Sampling",
    "Score",
    "SearchError",
    "TOASampler",
    "ToaError",
]


def __getattr__(name: str) -> Any:
    """Import what takes a second only when it is asked for: workers of rewards need none of it."""
    if name == "Rollouts":
        from toa_trl.rollouts import Rollouts

        return Rollouts
    if name == "TOASampler":
        from toa_trl.sampler import TOASampler

        return TOASampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
