"""Text from outside (servers, files, users) as plain text: on a terminal and in Markdown."""

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import zip_longest
from types import TracebackType
from typing import Any, TextIO

FORMAT_WARNING = warnings.formatwarning
# C0 and C1 controls except tab and newline, line separators, and marks that reorder text
_CONTROLS = [*range(9), *range(11, 32), *range(127, 160), 0x2028, 0x2029]
_CONTROLS += [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SURROGATES = range(0xD800, 0xE000)  # unpaired ones, which cannot be encoded
_VISIBLE = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROLS}
_VISIBLE |= {code: f"\\u{code:04x}" for code in _SURROGATES}
_BAR = re.compile(r"\r|\x1b\[A")  # what tqdm moves the cursor with
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&]")


def for_terminal(text: str) -> str:
    r"""Return a text whose control characters are visible, as in "\x1b[2J".

    A terminal would obey them: clear the screen, set its title, or reorder the text.
    """
    return text.translate(_VISIBLE)


def say(text: object) -> None:
    """Print a text that may come from outside: the only place that prints."""
    sys.stdout.write(f"{for_terminal(str(text))}\n")
    sys.stdout.flush()


def escape_output() -> None:
    """Escape the log lines, warnings and uncaught errors of this process, also those of others.

    Libraries add log handlers of their own, and the errors of a user's code quote what they like.
    """
    logging.setLogRecordFactory(TerminalRecord)
    warnings.formatwarning = _format_warning
    sys.excepthook = _show_error


@contextmanager
def escaped_prints() -> Iterator[None]:
    """Escape what code of others prints meanwhile; progress bars on stderr still move."""
    with redirect_stdout(_Escaping(sys.stdout)), redirect_stderr(_Escaping(sys.stderr, _BAR)):
        yield


def for_markdown(text: object) -> str:
    """Return a text as one line of Markdown that shows it as it is: no link, table or HTML."""
    return _escaped(_line(text))


def code(text: object) -> str:
    """Return a text as a code span, also in a cell of a table."""
    line = _line(text)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", r"\|")


def prose(text: str) -> str:
    """Return a sentence in Markdown whose code stands between backticks."""
    pieces = text.split("`")
    if not len(pieces) % 2:  # a backtick without its partner
        return for_markdown(text)
    shown = [code(part) if odd % 2 else _escaped(part) for odd, part in enumerate(pieces)]
    return "".join(shown)


class TerminalRecord(logging.LogRecord):
    """A log record for a terminal, whatever handler shows it."""

    def getMessage(self) -> str:
        """Return the message."""
        return for_terminal(super().getMessage())


class TerminalFormatter(logging.Formatter):
    """Formats log records for a terminal, with the tracebacks in them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return for_terminal(super().format(record))


class _Escaping:
    """A stream that escapes what is written to it, but for the given signs."""

    def __init__(self, stream: TextIO, kept: re.Pattern[str] | None = None) -> None:
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        """Write a text, and return the number of its characters."""
        kept = self._kept.findall(text) if self._kept else []
        plain = self._kept.split(text) if self._kept else [text]
        shown = [for_terminal(part) + sign for part, sign in zip_longest(plain, kept, fillvalue="")]
        self._stream.write("".join(shown))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _format_warning(*args: Any, **options: Any) -> str:
    return for_terminal(FORMAT_WARNING(*args, **options))


def _show_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sys.stderr.write(for_terminal("".join(traceback.format_exception(kind, error, trace))))


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", for_terminal(text.replace("\n", " ")))


def _line(text: object) -> str:
    return for_terminal(" ".join(str(text).split()))
