"""The states that the compared estimators learn from."""

import numpy as np
import pytest

from scripts.allocation_estimators import FEATURES, five_features
from toa_trl.sampling.allocation.history import History, Objective

HISTORY = History([1.0, 3.0, 2.0, 3.0], 4.0)


@pytest.mark.parametrize(
    ("num_plays", "expected"),
    [
        (4, {"value": 3, "plays": 4, "since": 2, "gap": 0, "spread": np.std([1, 3, 2, 3])}),
        (2, {"value": 3, "plays": 2, "since": 0, "gap": 2, "spread": 1}),
        (1, {"value": 1, "plays": 1, "since": 0, "gap": 0, "spread": 0}),
    ],
)
def test_each_number_is_what_its_name_says(num_plays: int, expected: dict[str, float]) -> None:
    found = dict(zip(FEATURES, five_features(HISTORY, num_plays, Objective()), strict=True))
    assert found == pytest.approx(expected)
