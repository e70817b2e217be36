"""Addresses and local paths do not get into what is published."""

from __future__ import annotations

from pathlib import Path

import pytest

from toa_trl.utils.redaction import is_local, on_hub, public_name, without_addresses


@pytest.mark.parametrize(
    "address",
    [
        "http://gpu1.example:8000/v1/chat",
        "https://user:secret@host/path?key=abc",
        "10.0.0.7",
        "10.0.0.7:8000",
        "::1",
        "[::1]:8000",
        "fe80::1",
        "2001:db8::ff00:42:8329",
        "localhost",
        "localhost:8000",
        "gpu1.cluster.local:8000",
    ],
)
def test_addresses_are_redacted(address: str) -> None:
    assert without_addresses(f"connecting to {address} failed") == ("connecting to a server failed")
    assert without_addresses(f"'{address}', refused.") == "'a server', refused."


@pytest.mark.parametrize(
    "text",
    [
        "HTTP 429: too many requests",
        "max_tokens 2048 of 4096; version 1.2.3",
        "line 3: not JSON",
        "[Errno 111] refused",
        "ratio 3:4",
    ],
)
def test_other_text_is_unchanged(text: str) -> None:
    assert without_addresses(text) == text


def test_public_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org/model").mkdir(parents=True)
    for name, public in [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("/home/me/models/student", "student"),
        ("~/student", "student"),
        ("../student", "student"),
        ("a/b/student", "student"),
        ("runs/student", "student"),
        ("data/prompts.jsonl", "prompts.jsonl"),
        ("org/model", "model"),  # exists as a folder here
        ("gpt2", "gpt2"),
    ]:
        assert public_name(name) == public, name


def test_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert on_hub("org/model")
    assert not is_local("org/model")
    for name in ("model", "/org/model", "a/b/c", "org/rows.parquet", "runs/x", "org/mo del"):
        assert not on_hub(name), name
    Path("org/model").mkdir(parents=True)
    assert is_local("org/model")
    assert not on_hub("org/model")
