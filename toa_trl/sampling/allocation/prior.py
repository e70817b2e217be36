"""What an earlier run teaches about the gain of further plays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toa_trl.errors import ConfigError
from toa_trl.sampling.allocation.gain import GainEstimator
from toa_trl.sampling.allocation.history import History, Objective
from toa_trl.sampling.allocation.waves import observations
from toa_trl.sampling.identity import differences, fingerprint
from toa_trl.sampling.journal import open_journal


def check_prior(run_dir: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Check that an earlier run can teach a new one, and return what identifies it.

    Args:
        run_dir: folder of the earlier run.
        identity: of the new run.

    Raises:
        ConfigError: there is no run, it has no scored plays, or its reward or task is another one.
    """
    if not (run_dir / "journal.sqlite").is_file():
        raise ConfigError(f"allocation.prior: {run_dir} holds no run")
    with open_journal(run_dir) as journal:
        num_plays = journal.counts().num_scored
        earlier = journal.identity
    if not num_plays:
        raise ConfigError(f"allocation.prior: the run in {run_dir} has no scored plays")
    for key in ("reward", "task"):
        changed = differences({key: earlier.get(key)}, {key: identity.get(key)})
        if changed:
            raise ConfigError(
                f"allocation.prior: the run in {run_dir} has another {key}, so its gains mean "
                f"nothing here: {'; '.join(changed)}"
            )
    return {"fingerprint": fingerprint(earlier), "num_plays": num_plays}


def learn_from(run_dir: Path, wave: int, objective: Objective, estimator: GainEstimator) -> None:
    """Let the estimator observe all plays of an earlier run, in steps of `wave` plays."""
    with open_journal(run_dir) as journal:
        for rollout in journal.rollouts():
            history = History.of(rollout.plays, lambda _: 1.0)
            seen = list(observations(history, wave, len(history), wave, objective))
            if seen:
                states, gains = zip(*seen, strict=True)
                estimator.observe(np.array(states), np.array(gains))
