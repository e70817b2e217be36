"""Every example in Python of README and docs/ runs as printed."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.docs.shell import short_trainings
from tests.docs.snippets import PAGES, ROOT, of
from toa_trl import TOASampler

ELSEWHERE = {
    "docs/own_parts.md": "test_own_parts.py",  # and the contract tests
    "docs/guides/search_as_a_system.md": "docs/test_commands.py",  # asks the server that it starts
}
"""Pages whose examples other tests run."""
HEAVY = {"README.md", "docs/guides/reward_signal.md"}
"""Pages whose examples load models."""


def parameters() -> list[Any]:
    """Return the pages whose examples run here."""
    heavy = [pytest.mark.heavy, pytest.mark.xdist_group("docs")]
    pages = [page for page in PAGES if of("python", [page])]
    names = [str(page.relative_to(ROOT)) for page in pages]
    return [
        pytest.param(name, marks=heavy if name in HEAVY else [])
        for name in names
        if name not in ELSEWHERE
    ]


@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_:FutureWarning",  # GRPO and distillation of TRL
)
@pytest.mark.parametrize("name", parameters())
def test_the_examples_of_a_page_run(name: str, place: Path) -> None:
    with short_trainings() if name in HEAVY else nullcontext():
        for example in of("python", [ROOT / name]):
            found: dict[str, Any] = {"__name__": "page"}
            exec(compile(example.text, example.place, "exec"), found)
    if name == "README.md":
        assert [len(rollout.scored) for rollout in found["rollouts"]] == [4, 4]
        assert len(found["rollouts"].to_sft()) == 2


def test_the_task_of_the_guide_asks_for_its_columns(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = of("python", [ROOT / "docs/guides/tasks_and_rewards.md"])
    Path("summaries.py").write_text(example.text)
    monkeypatch.syspath_prepend(place)
    agents = [{"name": "a", "engine": "scripted"}]
    sampler = TOASampler(agents, {"kind": "length"}, task="summaries:Summary", budget=3)
    (rollout,) = sampler.sample([{"document": "A long story.", "words": 5}])
    sys.modules.pop("summaries")
    assert "In at most 5 words" in rollout.prompt.messages[-1].content
    assert len(rollout.scored) == 3
