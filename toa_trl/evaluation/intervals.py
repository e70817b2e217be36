"""95 % intervals."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2_000
Name = TypeVar("Name")


def wilson(num_right: float, num_all: int) -> tuple[float, float]:
    """Return Wilson's interval of a share, in [0, 1]; also valid for few cases and near 0 and 1.

    Args:
        num_right: number of right cases, a whole number.
        num_all: number of all cases, >= 1.
    """
    z = NormalDist().inv_cdf(0.975)  # scipy.stats takes seconds to import
    share, scale = num_right / num_all, z**2 / num_all
    center = (share + scale / 2) / (1 + scale)
    half = math.sqrt(share * (1 - share) * scale + scale**2 / 4) / (1 + scale)
    return max(0.0, center - half), min(1.0, center + half)


def bootstrap(
    values: Sequence[float], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over cases (prompts), at least one."""
    cases = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(cases), size=(num_resamples, len(cases)))
    return middle_95(cases[drawn].mean(axis=1))


def middle_95(draws: NDArray[np.float64]) -> tuple[float, float]:
    """Return the interval that holds the middle 95 % of the draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def gap_bounds(right: Mapping[Name, NDArray[np.float64]]) -> dict[Name, float]:
    """Return half the width of the 95 % interval of each search's gap to the best.

    The best was selected on the same seeds, so the width is that of Tukey's range: of equal
    searches, all gaps are within it in 95 of 100 tables. A seed counts as one case, with an effect
    common to all searches and as much noise in each; the variance over problems is added.

    Args:
        right: search -> 1 or 0, shape (seeds, problems), the same for all.

    Returns:
        Search -> half width; empty with one search or one seed.
    """
    of_seeds, freedom = _noise_of_seeds(right)
    if freedom == 0:
        return {}
    best = max(right, key=lambda name: float(right[name].mean()))
    factor = studentized_range(len(right), freedom) / np.sqrt(2)
    return {
        name: float(factor * np.sqrt(of_seeds + _variance_of_problems(right[best], given)))
        for name, given in right.items()
    }


def planned_bound(
    right: Mapping[Name, NDArray[np.float64]], first: Name, second: Name
) -> float | None:
    """Return half the width of the 95 % interval of a difference that was named beforehand.

    As `gap_bounds`, without what picking the best adds: the width is that of Student's t, with the
    noise of the seeds estimated from all searches.

    Args:
        right: search -> 1 or 0, shape (seeds, problems), the same for all.
        first: one of the searches.
        second: another one.

    Returns:
        Half width; None with one seed.
    """
    from scipy.stats import t  # slow to import

    of_seeds, freedom = _noise_of_seeds(right)
    if freedom == 0:
        return None
    variance = of_seeds + _variance_of_problems(right[first], right[second])
    return float(t.ppf(0.975, freedom) * np.sqrt(variance))


def _noise_of_seeds(right: Mapping[Name, NDArray[np.float64]]) -> tuple[float, int]:
    """Return the variance that seeds add to a difference of two means, and its degrees of freedom.

    It is pooled over all searches, after the effects of searches and of seeds are taken out.
    """
    means = np.array(list(right.values())).mean(axis=2)
    num_searches, num_seeds = means.shape
    freedom = (num_searches - 1) * (num_seeds - 1)
    if freedom == 0:
        return 0.0, 0
    noise = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    return float(2 * (noise**2).sum() / freedom / num_seeds), freedom


def _variance_of_problems(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    differences = (first - second).mean(axis=0)
    return float(differences.var() / len(differences))


@cache
def studentized_range(num_means: int, freedom: int) -> float:
    """Return the 95 % point of the studentized range: largest less smallest of the means."""
    from scipy.stats import studentized_range as distribution  # slow to import

    return float(distribution.ppf(0.95, num_means, freedom))


def resampled_means(right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return bootstrap draws of the mean of (seeds, problems), both drawn independently.

    Of s seeds the resampling covers only (s - 1) / s of the variance that they add: with few
    seeds, the intervals are narrow.
    """
    rng, (num_seeds, num_problems) = np.random.default_rng(0), right.shape
    by_problem = rng.multinomial(
        num_problems, np.full(num_problems, 1 / num_problems), NUM_RESAMPLES
    )
    by_seed = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_RESAMPLES)
    weights = (by_seed / num_seeds, right, by_problem / num_problems)
    return np.asarray(np.einsum("ds,sp,dp->d", *weights, optimize=True))
