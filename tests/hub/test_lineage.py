"""lineage.json: what it says of a run's data, and how it is found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from toa_trl.hub.lineage import FILE, from_hub, lineage_of, read_lineage, write_lineage
from toa_trl.sampling.budget import PlaysPerPrompt

IDENTITY: dict[str, Any] = {
    "search": "toa",
    "search_params": {"tau": 0.1},
    "budget": 160,
    "seed": 3,
    "task": {"name": "math", "templates": {"answer": "text of a template"}},
    "agents": {
        "hub": {"engine": "openai", "model": "org/model", "base_url": "http://gpu1:8000/v1"},
        "local": {"engine": "transformers", "model": "/home/me/models/mine", "api_key": "sk-1"},
        "own": "MyAgent",
    },
    "reward": {"kind": "classifier", "model": "org/reward", "base_url": "http://gpu2:8000"},
    "prompts": {"number": 4, "digest": "abc"},
}


def test_a_lineage_has_names_but_no_addresses_or_keys() -> None:
    lineage = lineage_of(IDENTITY)
    assert lineage == {
        "fingerprint": lineage["fingerprint"],
        "search": "toa",
        "search_params": {"tau": 0.1},
        "budget": 160,
        "seed": 3,
        "task": "math",
        "agents": {"hub": "org/model", "local": "mine", "own": None},
        "reward": "classifier `org/reward`",
        "prompts": {"number": 4, "digest": "abc"},
    }
    text = json.dumps(lineage)
    assert not any(secret in text for secret in ("gpu1", "gpu2", "sk-1", "/home", "template"))


def test_the_fingerprint_depends_on_everything_but_the_order_of_keys() -> None:
    fingerprint = lineage_of(IDENTITY)["fingerprint"]
    assert len(fingerprint) == 16
    assert lineage_of(dict(reversed(IDENTITY.items())))["fingerprint"] == fingerprint
    for key in IDENTITY.keys() - {"agents"}:
        assert lineage_of({**IDENTITY, key: "other"})["fingerprint"] != fingerprint, key
    assert lineage_of({**IDENTITY, "agents": {}})["fingerprint"] != fingerprint


def test_the_most_tokens_of_a_response_are_known() -> None:
    agents = {"a": {"sampling": {"max_tokens": 512}}, "b": {"engine": "scripted"}, "c": "MyAgent"}
    assert lineage_of({"sampling": {"max_tokens": 256}, "agents": agents})["max_tokens"] == 512
    assert lineage_of({"sampling": {"max_tokens": 256}})["max_tokens"] == 256
    assert "max_tokens" not in lineage_of(IDENTITY)


def test_the_plays_of_an_adaptive_run_are_known() -> None:
    lineage = lineage_of(IDENTITY, PlaysPerPrompt(4, 157.25, 1280))
    assert lineage["plays_per_prompt"] == {"least": 4, "mean": 157.25, "most": 1280}
    assert PlaysPerPrompt.read(lineage["plays_per_prompt"]) == PlaysPerPrompt(4, 157.25, 1280)


@pytest.mark.parametrize("value", [None, 7, "many", {}, {"least": 1, "mean": "x", "most": 2}])
def test_plays_that_somebody_else_wrote_are_left_out(value: Any) -> None:
    assert PlaysPerPrompt.read(value) is None


def test_a_run_without_a_task_is_one_of_alignment() -> None:
    assert lineage_of({})["task"] == "alignment"
    assert lineage_of({"task": "mine:Task"})["task"] == "mine:Task"
    assert lineage_of({})["agents"] == {}


def test_a_lineage_is_found_from_the_run_or_one_of_its_parts(tmp_path: Path) -> None:
    (tmp_path / "run" / "sft").mkdir(parents=True)
    write_lineage(tmp_path / "run", IDENTITY)
    for folder in ("run", "run/sft"):
        assert read_lineage(str(tmp_path / folder)) == lineage_of(IDENTITY)
    assert read_lineage(str(tmp_path)) == {}


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": ', b"\xff"])
def test_a_broken_lineage_is_no_lineage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert read_lineage(str(tmp_path)) == {}


def test_a_lineage_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lineage(tmp_path, IDENTITY)
    asked = []

    def download(name: str, file: str, *, repo_type: str, revision: str | None) -> str:
        asked.append((name, file, repo_type, revision))
        if name != "me/data":
            raise OSError("no network")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert read_lineage("me/data", "v1") == lineage_of(IDENTITY)
    assert read_lineage("me/other") == {}
    assert from_hub("me/other", "model") is None
    assert asked == [
        ("me/data", FILE, "dataset", "v1"),
        ("me/other", FILE, "dataset", None),
        ("me/other", FILE, "model", None),
    ]
