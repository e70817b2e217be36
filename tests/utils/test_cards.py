"""Cards: what is generated is replaced, what was written by hand stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import metadata_load
from hypothesis import given
from hypothesis import strategies as st

from toa_trl.errors import ConfigError
from toa_trl.utils.cards import is_card, new_card, replace_section, with_blocks, with_keys

META = {"pretty_name": "run", "tags": ["toa_trl"], "size": 1}
BLOCKS = {"card": "# Run\n\n3 prompts\n", "audit": "## Audit\n\n- fine\n"}
CARD = "# Title\n\ntext\n\n## Data\n\nold\n\n### Detail\n\nold\n\n## Citation\n\n@article\n"


def test_replace_section_replaces_one_section() -> None:
    assert replace_section(CARD, "## Data\n\nnew") == (
        "# Title\n\ntext\n\n## Data\n\nnew\n\n## Citation\n\n@article\n"
    )
    assert replace_section(CARD, "## Data\n\n\\1 $").count("\\1 $") == 1


def test_a_new_section_comes_before_the_citation_or_at_the_end() -> None:
    assert "old\n\n## New\n\nx\n\n## Citation" in replace_section(CARD, "## New\n\nx")
    assert replace_section("# T\n", "## New\n\nx\n\n\n") == "# T\n\n## New\n\nx\n"


def write(path: Path, previous: str = "", count: int = 3) -> str:
    blocks = {**BLOCKS, "card": f"# Run\n\n{count} prompts\n"}
    path.write_text(new_card(path, previous, {**META, "size": count}, blocks), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def test_what_was_written_by_hand_stays_and_what_was_generated_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    text = write(path)
    assert is_card(path)
    assert write(path, text) == text
    text = text.replace("pretty_name: run", "pretty_name: mine").replace(
        "size:", "# why\nlicense: mit\nsize:"
    )
    text = text.replace("<!-- toa_trl begin audit", "between\n\n<!-- toa_trl begin audit")
    once = write(
        path,
        text.replace("\n<!-- toa_trl begin card", "\nbefore\n\n<!-- toa_trl begin card")
        + "\nafter\n",
        4,
    )
    assert metadata_load(path) == {
        "pretty_name": "mine",
        "tags": ["toa_trl"],
        "size": 4,
        "license": "mit",
    }
    lines = [
        line
        for line in once.splitlines()
        if line in ("before", "4 prompts", "between", "- fine", "after")
    ]
    assert lines == ["before", "4 prompts", "between", "- fine", "after"]
    assert "3 prompts" not in once
    assert write(path, once, 4) == once
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_removed_by_hand_stays_removed(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    text = write(path).replace("size: 3\n", "")
    for count in (3, 4):
        text = write(path, text, count)
        assert "size" not in (metadata_load(path) or {})


@pytest.mark.parametrize("edit", ["inside", "unmarked"])
def test_a_card_is_kept_whole_if_something_in_it_would_be_lost(
    edit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "README.md"
    text = write(path).replace("3 prompts", "3 prompts of mine")
    if edit == "unmarked":
        text = "# Old\n\nmade by [toa_trl](https://arxiv.org/abs/2412.17061)\n"
        path.write_text(text)
        assert is_card(path)
    again = write(path, text)
    assert "mine" not in again
    assert (tmp_path / "README.edited-1.md").read_text() == text
    assert "README.edited-1.md" in caplog.text
    write(path, text)
    assert (tmp_path / "README.edited-2.md").read_text() == text


@pytest.mark.parametrize("text", ["", "# Mine\n", "---\nlicense: mit\n---\n", "\xff"])
def test_a_card_of_others_is_recognized(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text, encoding="latin-1")
    assert not is_card(tmp_path / "README.md")


def test_a_marker_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    text = write(path)
    path.write_text(text.replace("<!-- toa_trl end card -->\n", ""))
    with pytest.raises(ConfigError, match=r"README\.md: a marker .* is missing"):
        is_card(path)
    path.write_text(text.replace("tags:", "tags: ["))
    with pytest.raises(ConfigError, match=r"metadata of this card cannot be read"):
        is_card(path)


def test_one_block_and_one_key_are_replaced_in_any_card(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    foreign = "---\n# a comment\nlicense: mit\n---\n# Mine\n\n## Audit\n\nmine\n"
    text = with_blocks(foreign, {"audit": "## Audit\n\nours"})
    assert text.startswith(foreign)
    assert with_blocks(text, {"audit": "## Audit\n\nours"}) == text
    keys = with_keys(path, text, {"model-index": [1]})
    path.write_text(keys)
    assert metadata_load(path) == {"license": "mit", "model-index": [1]}
    assert with_keys(path, keys, {"model-index": [1]}) == keys


@given(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\x85\u2028\u2029"),
        max_size=30,
    )
)
def test_any_text_below_the_card_stays(text: str) -> None:
    path = Path("README.md")
    card = new_card(path, "", META, BLOCKS) + text
    assert new_card(path, card, {**META, "size": 9}, BLOCKS).endswith(
        BLOCKS["audit"] + "<!-- toa_trl end audit -->\n" + text
    )
