from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.server import Process, serving


@pytest.fixture(scope="session")
def scores() -> Iterator[Process]:
    """A scoring server: vLLM's POST /classify, and POST /score of the JSON contract."""
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """The folder of a small model, and the model as it was before it was saved."""
    from tests.rewards.tiny import build  # imports torch

    @cache
    def made(kind: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp("tiny") / kind
        return folder, build(kind, folder)

    return made
