"""The recipe of a run: completion is a fact in the journal, and a finished run can grow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toa_trl import TOASampler
from toa_trl.cli.main import run as command
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts, is_complete
from toa_trl.types import Play

AGENTS = [{"name": "a", "engine": "scripted"}, {"name": "b", "engine": "scripted"}]


def synthesize(folder: Path, *options: str, **changes: Any) -> None:
    """Run the command with a small configuration."""
    settings = {
        "agents": AGENTS,
        "reward": {"kind": "length", "unit": "characters"},
        "budget": 4,
        "preference": {"policy": "worst"},
        **changes,
    }
    arguments = ["synthesize", *options]
    settings.setdefault("prompts", str(folder / "prompts.jsonl"))
    settings.setdefault("output_dir", str(folder / "run"))
    for key, value in settings.items():
        arguments += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    command(arguments)


def plays(folder: Path) -> list[tuple[str, Play]]:
    return [(r.prompt.id, play) for r in Rollouts.load(folder / "run") for play in r.plays]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [json.dumps({"prompt": f"What is {number}?"}) for number in range(5)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_report_of_a_killed_export_does_not_make_the_run_complete(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("toa_trl.report.page.write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            synthesize(folder)
    assert Rollouts.load(folder / "run").unfinished == 0
    paid = plays(folder)
    command(["report", str(folder / "run")])
    assert (folder / "run/report.html").is_file()
    assert not is_complete(folder / "run")
    synthesize(folder)  # writes what is missing
    assert (folder / "run/audit.json").is_file()
    assert (folder / "run/lineage.json").is_file()
    assert is_complete(folder / "run")
    assert plays(folder) == paid
    with pytest.raises(ConfigError, match="holds a finished run; --extend lets it grow"):
        synthesize(folder)
    (folder / "run/report.html").unlink()
    with pytest.raises(ConfigError, match="holds a finished run"):
        synthesize(folder)


def test_a_finished_run_grows_by_prompts_budget_and_agents(folder: Path) -> None:
    synthesize(folder, num_prompts="2")
    paid = plays(folder)
    toa = "search 'toa' cannot continue exactly"
    with pytest.raises(ConfigError, match=toa):
        synthesize(folder, "--extend", budget=9)
    synthesize(folder, "--extend", num_prompts="3")
    synthesize(folder, "--extend", "keep_width", num_prompts="3", budget=9)
    more = [*AGENTS, {"name": "c", "engine": "scripted"}]
    grown = {"num_prompts": "3", "budget": 12, "agents": more}
    with pytest.raises(ConfigError, match=r"search_params\.width: 2 -> 3"):
        synthesize(folder, "--extend", search_params={"width": 3}, **grown)
    synthesize(folder, "--extend", "given", search_params={"width": 3}, **grown)
    assert is_complete(folder / "run")
    now = plays(folder)
    assert len(now) == 36
    assert [play for play in now if play in paid] == paid
    assert "c" in {play.action.agent for _, play in now}
    assert len(list((folder / "run/sft").glob("*.parquet"))) == 1
    assert len(Rollouts.load(folder / "run").to_sft()) == 3


def test_a_merged_run_resumes_grows_and_is_exported_as_any_other(tmp_path: Path) -> None:
    rows = [{"id": f"p{n}", "prompt": f"What is {n}?", "answer": str(n)} for n in range(5)]
    given: dict[str, Any] = {"agents": AGENTS, "search": "parallel", "budget": 2, "task": "math"}
    for name, part in (("one", rows[:2]), ("two", rows[2:4])):
        reward = {"kind": "length", "unit": "characters"}
        sampler = TOASampler(reward_model=reward, progress=False, **given)
        sampler.sample(part, tmp_path / name)._journal.close()
    merged = tmp_path / "merged"
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    merged.mkdir()
    (merged / "prompts.jsonl").write_text('{"prompt": "mine"}\n')
    with pytest.raises(ConfigError, match=r"prompts\.jsonl: was not written by toa_trl"):
        command(["merge", *runs, "--output", str(merged)])
    (merged / "prompts.jsonl").unlink()
    command(["merge", *runs, "--output", str(merged)])
    paid = [rollout.plays for rollout in Rollouts.load(merged)]
    with (merged / "prompts.jsonl").open("a") as lines:
        lines.write(json.dumps(rows[4]) + "\n")
    given |= {"prompts": str(merged / "prompts.jsonl"), "output_dir": str(merged)}
    with pytest.raises(ConfigError, match=r"prompts\.number: 4 -> 5"):
        synthesize(tmp_path, **given)
    synthesize(tmp_path, "--extend", **given)
    rollouts = list(Rollouts.load(merged))
    assert [rollout.plays for rollout in rollouts][:4] == paid
    assert [len(rollout.scored) for rollout in rollouts] == [2] * 5
    assert [rollout.prompt.id for rollout in rollouts] == [row["id"] for row in rows]
    texts = [rollout.prompt.messages[-1].content for rollout in rollouts]
    assert {text.partition("?")[2] for text in texts} == {texts[0].partition("?")[2]}
    assert is_complete(merged)
    assert (merged / "report.html").is_file()
    assert len(Rollouts.load(merged).to_sft()) == 5
