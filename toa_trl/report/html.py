"""Elements of the page (sections, tables, pictures), and its notation of numbers and names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from toa_trl.report.audit import findings
from toa_trl.report.figures import PALETTE

MINUS = "−"
DASH = "–"  # no value
many = findings.many


@dataclass
class Picture:
    """Panels that share one caption."""

    panels: list[Markup]
    caption: str | Markup


@dataclass
class Table:
    """Cells are text or markup; the first column contains names."""

    header: list[Any]
    rows: list[list[Any]]
    caption: str | Markup = ""
    wrap: bool = False  # the first column holds longer text, which may break

    def is_text(self, column: int) -> bool:
        """Return whether a column is text, which is left-aligned, unlike numbers."""
        return any(
            re.match(r"<span class=.(bar|agent)|[A-Za-z]", str(row[column])) for row in self.rows
        )


@dataclass
class Facts:
    """Terms and their values."""

    items: list[tuple[str, Any]]


@dataclass
class Section:
    """One heading of the page with its text, pictures and tables."""

    id: str
    title: str
    blocks: list[Any] = field(default_factory=list)


def count(value: float) -> str:
    """Return 12345 as 12,345."""
    return f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """Return a percentage without line breaks; a dash if the whole is zero."""
    return findings.share(part, whole).replace(" ", "\u00a0")


def rewards(values: NDArray[np.float64]) -> Callable[[float], str]:
    """Return a function that formats rewards, with decimals for a hundredth of their spread."""
    num = decimals(values)

    def write(value: float) -> str:
        return f"{round(value, num) + 0.0:,.{num}f}".replace(
            "-", MINUS
        )  # + 0.0: no minus before a zero

    return write


def decimals(values: NDArray[np.float64]) -> int:
    """Return the decimals for a hundredth of the spread, 0 to 6; 3 without spread."""
    spread = float(values.std()) if len(values) else 0.0
    return min(6, max(0, 2 - math.floor(math.log10(spread)))) if spread > 0 else 3


def signed(text: str) -> str:
    """Return a number with its sign."""
    return text if text.startswith(MINUS) else f"+{text}"


def listed(parts: Iterable[Any]) -> Markup:
    """Return a list as "a, b and c"."""
    *others, last = [Markup.escape(p) for p in parts] or [Markup("")]
    return Markup(" and ").join([Markup(", ").join(others), last]) if others else last


def chip(agents: Mapping[str, int], name: str) -> Markup:
    """Return an agent's name with its colour."""
    place = agents[name] % len(PALETTE) if name in agents else None
    style = f"--c:var(--c{place})" if place is not None else "--c:var(--muted)"
    return Markup('<span class="agent" style="{}">{}</span>').format(style, name)


def bar(part: float, whole: float, style: str = "--c:var(--muted)") -> Markup:
    """Return a share as a number on a bar."""
    width = 100 * part / whole if whole else 0
    return Markup('<span class="bar" style="{};--w:{:.1f}%">{}</span>').format(
        style, width, share(part, whole)
    )


def plain(value: Any) -> str:
    """Return a configuration value in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items()) or DASH
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(v) for v in value) or DASH
    return DASH if value is None or value == "" else str(value)
