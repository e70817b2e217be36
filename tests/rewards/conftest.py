from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server import Process, serving


@pytest.fixture(scope="session")
def scores() -> Iterator[Process]:
    """A scoring server: vLLM's POST /classify, and POST /score of the JSON contract."""
    with serving() as server:
        yield server
