"""Signs of reward hacking: one pass over every play of a run.

A search optimizes whatever its reward measures. Signs of hacking are a reward that correlates with
the length, a gain that a second reward model does not see, and best plays that are cut short,
copied or in the wrong language.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toa_trl.report.audit.best import BestPlays, BestPlaysCounter
from toa_trl.report.audit.correlation import Correlating, Correlation
from toa_trl.report.rollout_tables import (
    Floats,
    columns_of,
    floats,
    half_width,
    messages_of,
    prompt_spans,
    rollout_files,
    whole_prompts,
)
from toa_trl.report.training import read_pairs

NEEDED = ("prompt_id", "play", "reward")
FURTHER = ("prompt", "metadata", "response", "refs", "finish_reason", "second_reward")


@dataclass(frozen=True)
class PairLengths:
    """Characters of the responses in dpo/."""

    num_pairs: int
    num_longer: int  # pairs whose chosen response is the longer one
    num_shorter: int
    mean_chosen: float
    mean_rejected: float


@dataclass(frozen=True)
class SecondReward:
    """Rewards of a held-out second model, over the prompts whose best play has one.

    All means are means of the second reward.
    """

    correlation: Correlation  # of both rewards
    num_prompts: int
    num_gained: int  # of these: the best play's reward is higher than another play's
    picks: float  # mean over the prompts of the best play by the reward
    random: float  # ... of a random play: the mean of the prompt's plays
    best: float  # ... of the best play by the second reward
    all_plays: float  # mean over the plays
    gain_interval: tuple[float, float] | None  # 95 % of picks - random; None for one prompt
    agreement: float  # share of prompts whose best play is also the best by the second reward
    agreement_by_chance: float  # ... of a random play


@dataclass(frozen=True)
class RewardAudit:
    """Signs of reward hacking, or their absence."""

    length: Correlation  # reward with the length of the response in characters
    best: BestPlays
    pairs: PairLengths | None  # None: dpo/ has no rows
    second: SecondReward | None  # None: no best play has a second reward
    num_scored: int  # plays with a reward
    num_with_second: int  # of these: with a second reward


def audit_reward(run_dir: Path) -> RewardAudit:
    """Measure signs of reward hacking, reading every play once.

    Args:
        run_dir: a run's folder with rollouts/, and optionally dpo/.

    Raises:
        ConfigError: there are no rollouts, or a column is missing.
    """
    length, best, second, num_scored = Correlating(), BestPlaysCounter(), _Second(), 0
    for table in whole_prompts(rollout_files(run_dir), NEEDED, FURTHER):
        chars = floats(pc.utf8_length(table["response"].cast(pa.string())))
        reward, other = floats(table["reward"]), floats(table["second_reward"])
        plays = np.asarray(table["play"].cast(pa.int64()).to_numpy())
        for start, end in prompt_spans(table["prompt_id"].to_pylist()):
            scored = start + np.flatnonzero(~np.isnan(reward[start:end]))
            if not len(scored):
                continue
            num_scored += len(scored)
            # of equal rewards the earlier play
            pick = int(scored[np.lexsort((plays[scored], -reward[scored]))[0]])
            known = scored[~np.isnan(chars[scored])]
            length.add(reward[known], chars[known])
            both = scored[~np.isnan(other[scored])]
            second.add(reward[both], other[both], other[pick])
            row_of = dict(zip(plays[start:end].tolist(), range(start, end), strict=True))
            best.add(*_best_play(table, start, pick, row_of))
    pairs = _pair_lengths(run_dir)
    return RewardAudit(
        length.result(), best.result(), pairs, second.result(), num_scored, second.num_plays
    )


class _Second:
    """Collects second rewards prompt by prompt."""

    def __init__(self) -> None:
        self._correlating = Correlating()
        self._prompts: list[tuple[float, float, float, float, float]] = []
        self._sum, self._num_gained, self.num_plays = 0.0, 0, 0

    def add(self, reward: Floats, second: Floats, pick: float) -> None:
        """Add a prompt's plays with both rewards.

        Args:
            reward: rewards of the plays.
            second: their second rewards.
            pick: second reward of the prompt's best play, or nan.
        """
        if not len(second):
            return
        self._correlating.add(reward, second)
        self._sum, self.num_plays = self._sum + float(second.sum()), self.num_plays + len(second)
        if not np.isnan(pick):
            self._num_gained += bool(reward.min() < reward.max())
            top, mean = float(second.max()), float(second.mean())
            by_chance = float(np.mean(second == top))
            self._prompts.append((pick, mean, top, float(pick == top), by_chance))

    def result(self) -> SecondReward | None:
        """Return the result for all prompts added so far."""
        if not self._prompts:
            return None
        picks, random, best, agreement, by_chance = np.mean(self._prompts, axis=0).tolist()
        columns = np.array(self._prompts)
        gains, interval = columns[:, 0] - columns[:, 1], None
        if len(gains) > 1:
            mean, half = float(gains.mean()), half_width(gains)
            interval = (mean - half, mean + half)
        return SecondReward(
            correlation=self._correlating.result(),
            num_prompts=len(gains),
            num_gained=self._num_gained,
            picks=picks,
            random=random,
            best=best,
            all_plays=self._sum / self.num_plays,
            gain_interval=interval,
            agreement=agreement,
            agreement_by_chance=by_chance,
        )


def _best_play(
    table: pa.Table, start: int, pick: int, row_of: Mapping[int, int]
) -> tuple[Any, ...]:
    """Return the arguments of `BestPlaysCounter.add` for row `pick` of a prompt from `start` on."""
    refs = [row_of[ref] for ref in table["refs"][pick].as_py() or () if ref in row_of]
    drafts = table["response"].take(pa.array(refs, pa.int64())).drop_null().to_pylist()
    play = {name: table[name][pick].as_py() for name in FURTHER}
    messages = messages_of(play["prompt"])
    columns = columns_of(table["metadata"][start].as_py())  # null in the other rows of the prompt
    return play["response"] or "", drafts, play["finish_reason"], messages, columns


def _pair_lengths(run_dir: Path) -> PairLengths | None:
    chosen, rejected = (side.chars for side in read_pairs(run_dir))
    if not len(chosen):
        return None
    longer, shorter = int((chosen > rejected).sum()), int((chosen < rejected).sum())
    return PairLengths(len(chosen), longer, shorter, float(chosen.mean()), float(rejected.mean()))
