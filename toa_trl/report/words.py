"""Numbers and names as the page writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from toa_trl.report.audit import words
from toa_trl.report.figures import PALETTE

MINUS = "−"
DASH = "–"  # nothing to say
many = words.many


@dataclass
class Picture:
    """Panels that share one caption."""

    panels: list[Markup]
    caption: str | Markup


@dataclass
class Table:
    """Cells are text, or markup of our own; the first column holds names."""

    header: list[Any]
    rows: list[list[Any]]
    caption: str | Markup = ""
    wrap: bool = False  # the first column holds longer text, which may break

    def is_text(self, column: int) -> bool:
        """Numbers stand to the right, all else to the left."""
        return any(
            re.match(r"<span class=.(bar|agent)|[A-Za-z]", str(row[column])) for row in self.rows
        )


@dataclass
class Facts:
    """Terms and what they are."""

    items: list[tuple[str, Any]]


@dataclass
class Section:
    """One heading of the page and what stands under it: text, pictures, tables."""

    id: str
    title: str
    blocks: list[Any] = field(default_factory=list)


def count(value: float) -> str:
    """12345 as 12,345."""
    return f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """Percent, which no line break parts; of nothing: a dash."""
    return words.share(part, whole).replace(" ", "\u00a0")


def rewards(values: NDArray[np.float64]) -> Callable[[float], str]:
    """How to write rewards: with as many decimals as tell a hundredth of their spread."""
    num = decimals(values)

    def write(value: float) -> str:
        return f"{round(value, num) + 0.0:,.{num}f}".replace(
            "-", MINUS
        )  # + 0.0: no minus before a zero

    return write


def decimals(values: NDArray[np.float64]) -> int:
    """Decimals that tell a hundredth of the spread of `values`, 0 to 6; 3 where there is none."""
    spread = float(values.std()) if len(values) else 0.0
    return min(6, max(0, 2 - math.floor(math.log10(spread)))) if spread > 0 else 3


def signed(text: str) -> str:
    """A number as a gain or a loss."""
    return text if text.startswith(MINUS) else f"+{text}"


def listed(parts: Iterable[Any]) -> Markup:
    """a, b and c."""
    *others, last = [Markup.escape(p) for p in parts] or [Markup("")]
    return Markup(" and ").join([Markup(", ").join(others), last]) if others else last


def chip(agents: Mapping[str, int], name: str) -> Markup:
    """An agent's name beside its colour."""
    place = agents[name] % len(PALETTE) if name in agents else None
    style = f"--c:var(--c{place})" if place is not None else "--c:var(--muted)"
    return Markup('<span class="agent" style="{}">{}</span>').format(style, name)


def bar(part: float, whole: float, style: str = "--c:var(--muted)") -> Markup:
    """A share as a number on a bar."""
    width = 100 * part / whole if whole else 0
    return Markup('<span class="bar" style="{};--w:{:.1f}%">{}</span>').format(
        style, width, share(part, whole)
    )


def plain(value: Any) -> str:
    """A configuration value in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items()) or DASH
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(v) for v in value) or DASH
    return DASH if value is None or value == "" else str(value)
