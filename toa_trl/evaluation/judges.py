"""Rewards and judges of an evaluation: loaded when first asked, and what they answer is kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toa_trl.evaluation.ledger import KeptReward, ledger_path
from toa_trl.rewards import make_reward
from toa_trl.rewards.deferred import deferred, with_deferred_agent
from toa_trl.rewards.judge import JudgeReward
from toa_trl.sampling.identity import decisive
from toa_trl.utils.config import call


def kept_reward(entry: Mapping[str, Any] | None, place: str, folder: Path) -> KeptReward | None:
    """Return a reward model whose scores are kept in a folder; None without an entry.

    Args:
        entry: {kind, ...}.
        place: key of the entry, for errors and for the file.
        folder: of the file.

    Raises:
        ConfigError: the entry is invalid.
    """
    if not entry:
        return None
    model = make_reward(deferred(entry, place), place)
    return KeptReward(model, ledger_path(folder, f"_{place}", decisive(entry), model.texts))


def kept_judge(params: Mapping[str, Any] | None, folder: Path) -> KeptReward | None:
    """Return a judge that compares pairs, whose verdicts are kept; None without parameters.

    Args:
        params: arguments of `JudgeReward`; mode is pairwise unless given.
        folder: of the file with the verdicts.

    Raises:
        ConfigError: a parameter is invalid.
    """
    if not params:
        return None
    given = {"mode": "pairwise", **params}
    judge = call("judge", JudgeReward, params=with_deferred_agent(given))
    return KeptReward(judge, ledger_path(folder, "_judge", decisive(given), judge.texts))
