"""Text from outside is shown as it is: a terminal and Markdown obey nothing in it."""

from __future__ import annotations

import io
import logging
import sys
import unicodedata
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from toa_trl.utils.escape import (
    TerminalFormatter,
    code,
    escape_output,
    escaped_prints,
    for_markdown,
    for_terminal,
    prose,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\tb\nc", "a\tb\nc"),
        ("kept\rgone", r"kept\x0dgone"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
        ("größer 数 🧮", "größer 数 🧮"),
    ],
)
def test_a_terminal_obeys_nothing(text: str, shown: str) -> None:
    assert for_terminal(text) == shown


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    for character in for_terminal(text):
        assert character in "\t\n" or unicodedata.category(character) not in ("Cc", "Cs")


@pytest.fixture
def escaped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command sets for its process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    before = logging.getLogRecordFactory()
    escape_output()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("escaped")
def test_log_lines_of_other_packages_are_escaped() -> None:
    """lm_eval and transformers have handlers of their own."""
    stream, logger = io.StringIO(), logging.getLogger("another_package")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    logger.warning("answered: %s", "\x1b[2J")
    logger.removeHandler(handler)
    assert stream.getvalue() == "answered: \\x1b[2J\n"


@pytest.mark.usefixtures("escaped")
def test_uncaught_errors_and_warnings_of_user_code_are_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        raise ValueError("the reward says \x1b]0;title\x07")
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last)")
    assert shown.endswith("ValueError: the reward says \\x1b]0;title\\x07\n")
    line = warnings.formatwarning("odd \x1b[31m", UserWarning, "file.py", 3, "")
    assert line == "file.py:3: UserWarning: odd \\x1b[31m\n"


def test_prints_of_other_packages_are_escaped_and_progress_bars_move(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with escaped_prints():
        print("\x1b[2J", "a\rb")  # noqa: T201
        sys.stdout.writelines(["\x1b]0;title\x07\n"])
        print("\r 10%\x1b[A\r 20% \x1b[2J", file=sys.stderr)  # noqa: T201
        assert not sys.stdout.isatty()
    print("\x1b[1mours\x1b[0m")  # noqa: T201
    out, err = capsys.readouterr()
    assert out == "\\x1b[2J a\\x0db\n\\x1b]0;title\\x07\n\x1b[1mours\x1b[0m\n"
    assert err == "\r 10%\x1b[A\r 20% \\x1b[2J\n"


def test_log_lines_are_escaped() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TerminalFormatter("%(message)s"))
    handler.emit(logging.LogRecord("x", 30, "", 0, "failed: %s", ("\x1b[31m",), None))
    assert stream.getvalue() == "failed: \\x1b[31m\n"


HOSTILE = [
    "[x](http://evil)",
    "![x](http://evil)",
    "<script>alert(1)</script>",
    "a | b\n| c | d",
    "**bold** *it*",
    "`code` ``x",
    "&lt;b&gt;",
    "\n# heading\n<!-- toa_trl end card -->",
    "back\\slash \\[x](y)",
]


@pytest.mark.parametrize("show", [for_markdown, code, prose])
@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_the_text_as_it_is(show: object, text: str) -> None:
    row = f"| a | b |\n|---|---|\n| {show(text)} | end |\n"  # type: ignore[operator]
    tokens = MarkdownIt("commonmark").enable("table").parse(row)
    cells = [token for token in tokens if token.type == "inline"]
    assert [cell.content for cell in cells[-1:]] == ["end"]
    assert len(cells) == 4
    kinds = {child.type for child in cells[2].children or ()}
    assert kinds <= {"text", "text_special", "code_inline"}
    if show is not prose:
        shown = "".join(child.content for child in cells[2].children or ())
        assert shown == " ".join(text.split())
