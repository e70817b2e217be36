from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server import Process, serving


@pytest.fixture(scope="session")
def scores() -> Iterator[Process]:
    """Serve scores, as vLLM does (POST /classify) and by the JSON contract (POST /score)."""
    with serving() as server:
        yield server
