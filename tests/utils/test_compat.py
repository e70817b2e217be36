"""Workarounds for single versions of libraries."""

from __future__ import annotations

import warnings

import pytest

from toa_trl.utils.compat import ignore_own_default


@pytest.mark.parametrize(
    ("text", "is_shown"),
    [
        ("`gradient_checkpointing` is deprecated", False),
        ("`gradient_checkpointing_enable` is deprecated", False),
        ("`is_gradient_checkpointing` is deprecated", False),
        ("`another` is deprecated", True),
    ],
)
def test_warnings_of_no_use_to_a_user_are_hidden(text: str, is_shown: bool) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        ignore_own_default()
        warnings.warn(text, FutureWarning, stacklevel=1)
    assert bool(shown) is is_shown
