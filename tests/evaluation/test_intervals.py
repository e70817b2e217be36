from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toa_trl.evaluation.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    ("right", "number", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_the_published_values(
    right: int, number: int, low: float, high: float
) -> None:
    assert wilson(right, number) == pytest.approx((low, high), abs=5e-5)


@given(number=st.integers(1, 1000), data=st.data())
def test_wilson_holds_the_share_and_mirrors(number: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, number))
    low, high = wilson(right, number)
    assert 0 <= low <= right / number + 1e-12
    assert right / number - 1e-12 <= high <= 1
    mirrored = wilson(number - right, number)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


def test_the_bootstrap_is_near_the_normal_interval_where_that_holds() -> None:
    values = np.random.default_rng(0).normal(3, 2, 500)
    half = 1.96 * values.std(ddof=1) / math.sqrt(500)
    low, high = bootstrap(list(values))
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_the_bootstrap_is_repeatable_and_knows_constants() -> None:
    assert bootstrap([0.5] * 7) == (0.5, 0.5)
    assert bootstrap([2.0]) == (2.0, 2.0)
    assert bootstrap([0, 1, 1, 0, 1]) == bootstrap([0, 1, 1, 0, 1])
    values = [0.1, 0.7, 0.2, 0.9, 0.5]
    assert bootstrap(values, seed=1, num_resamples=50) != bootstrap(
        values, seed=2, num_resamples=50
    )
