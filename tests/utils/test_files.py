"""Atomic writes, and errors in YAML and JSONL in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toa_trl.errors import ConfigError
from toa_trl.utils.cards import read_metadata
from toa_trl.utils.files import (
    as_configured,
    expand_paths,
    load_yaml,
    read_jsonl,
    read_value,
    read_yaml,
    replace_text,
)


def test_replace_text_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    replace_text(path, "first")
    before = path.stat().st_ino
    replace_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert path.stat().st_ino != before, "the old file is replaced, not overwritten"
    assert list(tmp_path.iterdir()) == [path]

    def fail(source: Path, target: Path) -> None:
        raise OSError("killed before the rename")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="before the rename"):
        replace_text(path, "third")
    assert path.read_text(encoding="utf-8") == "größer"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "c.yaml is not YAML: "),
        (b"a: 1\n b: 2", "c.yaml is not YAML: "),
        (b"\xff", "c.yaml is not YAML: "),
        (b'a: {b: ["\\ud800"]}', "c.yaml is not YAML: '\\ud800' contains an unpaired surrogate"),
        (b'a: [{"\\udfff": 1}]', "c.yaml is not YAML: '\\udfff' contains an unpaired surrogate"),
        (b"a: " + b"[" * 5000, "c.yaml is not YAML: it is nested too deeply"),
        (b"a: &a {b: [*a]}", "c.yaml is not YAML: it is nested too deeply, or an alias contains"),
        (b"- 1", "c.yaml must contain keys and values; start it"),
        (b"", "c.yaml must contain keys and values; start it"),
    ],
)
def test_yaml_errors_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "c.yaml"
    with pytest.raises(
        ConfigError, match=r"^--config: .*c\.yaml cannot be read: No such .*; start"
    ):
        read_yaml(path, place="--config: ", remedy="; start it")
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_yaml(path, place="--config: ", remedy="; start it")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_yaml_keys_and_values(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: {b: [1, x]}\n")
    assert read_yaml(tmp_path / "c.yaml") == {"a": {"b": [1, "x"]}}


def test_jsonl_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[2]\n{"a": \xff}\n')
    rows = read_jsonl(path)
    assert next(rows) == (f"{path}, line 1", {"a": 1})
    assert next(rows) == (f"{path}, line 3", [2])
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 4: not JSON .*each line must be"):
        next(rows)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is given twice, first in line 1"),
        ("a:\n  - {b: 1}\n  - b: 1\n    c: 2\n    'b': 2\n", "line 5: the key 'b' is given twice"),
        ("{a: 1, a: 2}", "line 1: the key 'a' is given twice"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"c\.yaml is not YAML: {named}"):
        read_yaml(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=named):
        read_metadata(tmp_path / "README.md", f"---\n{text}\n---\n")


def test_merged_keys_may_be_overridden() -> None:
    text = """
    deep: {a: &a {<<: &b {x: 1, y: 2}, x: 3}}
    c: {<<: *a, y: 4}
    d: {<<: [*a, *b]}
    """
    deep = {"x": 3, "y": 2}
    assert load_yaml(text) == {"deep": {"a": deep}, "c": {"x": 3, "y": 4}, "d": deep}


def test_the_home_folder_is_expanded_in_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    given = {"a": "~/x", "b": ["~", {"c": "~/y"}], "d": "~x", "e": "a ~/x", "f": 1, "g": ("~/x",)}
    assert expand_paths(given) == {
        **given,
        "a": "/home/ada/x",
        "b": ["/home/ada", {"c": "/home/ada/y"}],
    }


def test_the_bundled_world_is_found_where_the_folder_does_not_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "toa_trl/demo/weights/student"
    assert Path(expand_paths([name])[0]).is_absolute()
    assert Path(expand_paths([name])[0], "config.json").is_file()
    assert as_configured(expand_paths(name)) == name
    assert as_configured(f"{tmp_path}/{name}") == f"{tmp_path}/{name}", "somebody's own"
    (tmp_path / name).mkdir(parents=True)
    assert expand_paths(name) == name, "a clone's own comes first"
    named = "toa_trl.demo.world:accuracy_reward"
    assert expand_paths(named) == named


@pytest.mark.parametrize("written", ["{api_key: %s", "[{headers: {Authorization: Bearer %s}"])
def test_a_value_that_cannot_be_read_is_shown_without_its_keys(written: str) -> None:
    key = "sk-abcdefghijklmnop1234"
    with pytest.raises(ConfigError, match="--agents: neither YAML nor JSON") as raised:
        read_value("--agents", written % key)
    assert key not in str(raised.value)
