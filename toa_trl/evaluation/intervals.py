"""95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

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


def bootstrap(values: Sequence[float], num_resamples: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap of the mean, over the cases (prompts) that the values stand for, at least one."""
    cases = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(cases), size=(num_resamples, len(cases)))
    low, high = np.percentile(cases[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
