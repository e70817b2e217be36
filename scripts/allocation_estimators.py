"""Estimators of the gain that bench_allocation.py compares with the one of the package."""

from __future__ import annotations

import numpy as np

from toa_trl.sampling.allocation.gain import GainEstimator, falling_curve
from toa_trl.sampling.allocation.history import History, Objective
from toa_trl.types import LARGEST_SCORE

FEATURES = (
    "value",  # of the objective, in units of the reward
    "plays",  # number of scored plays
    "since",  # scored plays since the best reward last improved
    "gap",  # best reward minus the second best
    "spread",  # standard deviation of the rewards
)
"""Names of the numbers of a state, in their order; the package's estimator uses the first two."""
AT = {name: at for at, name in enumerate(FEATURES)}


def five_features(history: History, num_plays: int, objective: Objective) -> tuple[float, ...]:
    """Return the FEATURES of a prompt after its first `num_plays` scored plays, at least one."""
    scored = np.clip(history.rewards[:num_plays], -LARGEST_SCORE, LARGEST_SCORE)
    value = objective.value(history.rewards[:num_plays])
    at, (*_, second) = int(scored.argmax()), sorted(scored)[-2:-1] or [scored.max()]
    spread = scored.std() if scored.min() < scored.max() else 0.0
    return value, num_plays, num_plays - 1 - at, float(scored.max() - second), float(spread)


class Remembering(GainEstimator):
    """Keep the newest observations whole."""

    def __init__(self) -> None:
        super().__init__()
        self.states, self.gains = np.empty((0, len(FEATURES))), np.empty(0)
        self.rng = np.random.default_rng(0)

    def observe(self, states: np.ndarray, gains: np.ndarray) -> None:
        """See `GainEstimator`."""
        self.states = np.concatenate([self.states, states])[-self.memory :]
        self.gains = np.concatenate([self.gains, gains])[-self.memory :]

    def expected(self, states: np.ndarray) -> np.ndarray:
        """See `GainEstimator`."""
        return self.fitted(states) if len(self.gains) else np.full(len(states), np.inf)

    def fitted(self, states: np.ndarray) -> np.ndarray:
        """Return the expected gains, given at least one observation."""
        raise NotImplementedError


class Random(Remembering):
    """Know nothing."""

    def fitted(self, states: np.ndarray) -> np.ndarray:
        """See `Remembering`."""
        return self.rng.random(len(states))


class Lowest(Remembering):
    """Serve the lowest best reward first."""

    def fitted(self, states: np.ndarray) -> np.ndarray:
        """See `Remembering`."""
        return -states[:, AT["value"]]


class Nearest(Remembering):
    """Expect the mean gain of the nearest observations, by features in standard deviations."""

    def __init__(self, number: int = 40, features: tuple[str, ...] = ("value",)) -> None:
        super().__init__()
        self.number, self.columns = number, [AT[name] for name in features]

    def fitted(self, states: np.ndarray) -> np.ndarray:
        """See `Remembering`."""
        known = self.states[:, self.columns]
        scale = known.std(axis=0)
        scale[scale == 0] = 1
        apart = (states[:, None, self.columns] - known[None]) / scale
        number = min(self.number, len(known))
        near = np.argpartition((apart**2).sum(axis=2), number - 1, axis=1)[:, :number]
        means: np.ndarray = self.gains[near].mean(axis=1)
        return means


class Falling(Remembering):
    """Isotonic regression on the value: steps, or linear between their middles."""

    def __init__(self, steps: bool = True) -> None:
        super().__init__()
        self.steps = steps

    def fitted(self, states: np.ndarray) -> np.ndarray:
        """See `Remembering`."""
        values = self.states[:, AT["value"]]
        order = np.argsort(values, kind="stable")
        middles, levels = falling_curve(values[order], self.gains[order])
        asked = states[:, AT["value"]]
        if not self.steps:
            return np.interp(asked, middles, levels)
        borders = (middles[1:] + middles[:-1]) / 2
        return np.asarray(levels[np.searchsorted(borders, asked)])


class Gaussian(Remembering):
    """Expected improvement of one draw of a normal distribution, its spread shrunk to the pool.

    The best of n draws is taken to be where the best of n normal draws is expected: AdaBoN and
    Pandora's box with what a state holds.
    """

    def fitted(self, states: np.ndarray) -> np.ndarray:
        """See `Remembering`."""
        from scipy.stats import norm

        plays, spread = states[:, AT["plays"]], states[:, AT["spread"]]
        pool = (self.states[:, AT["spread"]] ** 2).mean()
        deviation = np.sqrt((plays * spread**2 + 4 * pool) / (plays + 4))
        z = norm.ppf(1 - 1 / (plays + 1))
        return np.asarray(deviation * (norm.pdf(z) - z * norm.sf(z)))


class ExtremeValue(Remembering):
    """The best of n draws with an exponential tail: it grows by scale / n with the next draw."""

    def fitted(self, states: np.ndarray) -> np.ndarray:
        """See `Remembering`."""
        plays, gap = states[:, AT["plays"]], states[:, AT["gap"]]
        pool = self.states[:, AT["gap"]].mean()  # the mean gap of an exponential tail is its scale
        return np.asarray((gap + 4 * pool) / 5 / plays)


ESTIMATORS = {
    "falling curve x plays": GainEstimator,
    "falling curve": lambda: Falling(steps=False),
    "falling steps": Falling,
    "40 nearest by value": Nearest,
    "160 nearest by value": lambda: Nearest(160),
    "40 nearest by value, since": lambda: Nearest(40, ("value", "since")),
    "40 nearest, five features": lambda: Nearest(40, ("value", "plays", "since", "gap", "spread")),
    "Gaussian improvement": Gaussian,
    "extreme value": ExtremeValue,
    "lowest first": Lowest,
    "random": Random,
}
"""Name -> a function that returns a fresh one; the first is the package's."""
