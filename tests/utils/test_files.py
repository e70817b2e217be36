"""Atomic writes, sections of cards, and errors in YAML and JSONL in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toa_trl.errors import ConfigError
from toa_trl.utils.files import read_jsonl, read_yaml, replace_section, replace_text

CARD = "# Title\n\ntext\n\n## Data\n\nold\n\n### Detail\n\nold\n\n## Citation\n\n@article\n"


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


def test_replace_section_replaces_one_section() -> None:
    assert replace_section(CARD, "## Data\n\nnew") == (
        "# Title\n\ntext\n\n## Data\n\nnew\n\n## Citation\n\n@article\n"
    )
    assert replace_section(CARD, "## Data\n\n\\1 $").count("\\1 $") == 1


def test_a_new_section_comes_before_the_citation_or_at_the_end() -> None:
    assert "old\n\n## New\n\nx\n\n## Citation" in replace_section(CARD, "## New\n\nx")
    assert replace_section("# T\n", "## New\n\nx\n\n\n") == "# T\n\n## New\n\nx\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "c.yaml is not YAML: "),
        (b"a: 1\n b: 2", "c.yaml is not YAML: "),
        (b"\xff", "c.yaml is not YAML: "),
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
