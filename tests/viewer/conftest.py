"""A folder of runs with hostile texts: complete, not complete, damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.helpers import EchoAgent
from tests.report.conftest import HOSTILE, NastyAgent, SpreadReward
from toa_trl import TOASampler
from toa_trl.errors import AgentError
from toa_trl.viewer.folder import Folder
from toa_trl.viewer.server import make_app

PORT, TOKEN = 8321, "the-token"
AGENTS = ["nasty", "echo", "a_very_long_name/Meta-Llama-3.1-8B-Instruct_of_somebody"]


def sample(folder: Path, num_prompts: int = 7, budget: int = 12, **options: Any) -> None:
    """A complete run with its data sets."""
    failing = EchoAgent("echo", fails=0.3, raises=AgentError(f"HTTP 503 {HOSTILE}"))
    agents = [NastyAgent("nasty"), failing, NastyAgent(AGENTS[2])]
    sampler = TOASampler(agents, SpreadReward(), budget=budget, progress=False, **options)
    prompts = [
        {"id": f"p{i} {HOSTILE}" if i == 3 else f"p{i}", "prompt": f"Question {i}? {HOSTILE}"}
        for i in range(num_prompts)
    ]
    rollouts = sampler.sample(prompts, folder)
    rollouts.save(folder, preference={"rejected_rank": 2})
    rollouts.mark_complete()
    rollouts._journal.close()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """complete/, the same run as open/ that is not complete, and damaged/; do not change them."""
    folder = tmp_path_factory.mktemp("viewed") / "runs"
    sample(folder / "complete")
    for name in ("open", "damaged"):
        shutil.copytree(folder / "complete", folder / name)
    shutil.rmtree(folder / "open/rollouts")
    journal = folder / "damaged/journal.sqlite"
    journal.write_bytes(b"x" * 500 + journal.read_bytes()[500:])
    (folder / "notes").mkdir()
    return folder


@contextmanager
def client_of(folder: Path) -> Iterator[TestClient]:
    """A client of the viewer over a folder, as the page itself asks."""
    app = make_app(Folder(folder), PORT, TOKEN)
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}") as client:
        yield client


@pytest.fixture(scope="session")
def ask(runs: Path) -> Iterator[Callable[..., Any]]:
    """GET /api/..., with the parameters that are not None."""
    with client_of(runs) as client:

        def ask(path: str, status: int = 200, **parameters: Any) -> Any:
            given = {key: value for key, value in parameters.items() if value is not None}
            response = client.get(f"/api/{path}", params=given)
            assert response.status_code == status, response.text
            return response.json()

        yield ask
