"""95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2_000
NUM_DRAWS = 200_000  # of the range of means
Z = 1.959963984540054  # of the normal distribution, two-sided 95 %


def wilson(num_right: float, num_all: int) -> tuple[float, float]:
    """Wilson's interval of a share, in [0, 1]; it holds for few cases and for shares near 0 and 1.

    Args:
        num_right: cases that are right.
        num_all: all cases, >= 1.
    """
    share, z2 = num_right / num_all, Z * Z / num_all
    middle = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(share * (1 - share) / num_all + z2 / num_all / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(
    values: Sequence[float], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap of the mean, over the cases (prompts) that the values stand for, at least one."""
    cases = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(cases), size=(num_resamples, len(cases)))
    low, high = np.percentile(cases[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def gap_bounds(right: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Half the width of the 95 % interval of each search's gap to the best; nothing where there is one search or one seed.

    The best was found on the same seeds, so the width is that of Tukey's range: of equal searches all gaps are within it
    in 95 of 100 tables. A seed counts as one case, with an effect common to all searches and as much noise in each; what
    other problems would change is added.

    Args:
        right: by search, 1 or 0, shape (seeds, problems), for all the same.
    """
    each = np.array(list(right.values()))
    means = each.mean(axis=2)
    num_searches, num_seeds = means.shape
    if not (freedom := (num_searches - 1) * (num_seeds - 1)):
        return {}
    noise = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    of_seeds = 2 * (noise**2).sum() / freedom / num_seeds
    of_problems = (each[means.mean(axis=1).argmax()] - each).mean(axis=1).var(axis=1) / each.shape[
        2
    ]
    half_widths = studentized_range(num_searches, freedom) * np.sqrt((of_seeds + of_problems) / 2)
    return dict(zip(right, half_widths.tolist(), strict=True))


def studentized_range(num_means: int, freedom: int) -> float:
    """The 95 % point of the studentized range, by draws: the largest less the smallest mean, in estimated deviations."""
    rng = np.random.default_rng(0)
    ranges = np.ptp(rng.normal(size=(NUM_DRAWS, num_means)), axis=1)
    return float(np.quantile(ranges / np.sqrt(rng.chisquare(freedom, NUM_DRAWS) / freedom), 0.95))


def resampled_means(right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bootstrap draws of the mean of (seeds, problems), with seeds and problems drawn independently of one another.

    Of s seeds the resampling finds only (s - 1) / s of what they add to the variance: with few, the intervals are narrow.
    """
    rng, (num_seeds, num_problems) = np.random.default_rng(0), right.shape
    by_problem = (
        rng.multinomial(num_problems, np.full(num_problems, 1 / num_problems), NUM_RESAMPLES)
        / num_problems
    )
    by_seed = (
        rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_RESAMPLES) / num_seeds
    )
    return np.asarray(np.einsum("ds,sp,dp->d", by_seed, right, by_problem, optimize=True))
