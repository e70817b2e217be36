"""Elements of the page (sections, tables, pictures), and its notation of numbers and names."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from toa_trl.report.audit import findings
from toa_trl.report.figures import MUTED, PALETTE, color, power
from toa_trl.utils.files import as_configured

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
        text = re.compile(r"<span class=.(bar|agent|quoted)|[A-Za-z]")
        return any(text.match(str(row[column])) for row in self.rows)


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
        # + 0.0: no minus before a zero
        return f"{round(value, num) + 0.0:,.{num}f}".replace("-", MINUS)

    return write


def decimals(values: NDArray[np.float64]) -> int:
    """Return the decimals for a hundredth of the spread, 0 to 6; 3 without spread."""
    spread = float(values.std()) if len(values) else 0.0
    return min(6, max(0, 2 - math.floor(math.log10(spread)))) if spread > 0 else 3


def signed(text: str) -> str:
    """Return a number with its sign."""
    return text if text.startswith(MINUS) else f"+{text}"


def listed(parts: Iterable[str]) -> str:
    """Return a list as "a, b and c", as markup if a part is markup."""
    items = list(parts)
    text = Markup if any(isinstance(item, Markup) for item in items) else str
    if len(items) > 1:
        items[-2:] = [text(" and ").join(items[-2:])]
    return text(", ").join(items)


def histogram_rows(
    groups: Mapping[str, NDArray[np.float64]], agents: Mapping[str, int]
) -> list[tuple[str, str, NDArray[np.float64]]]:
    """Return the rows of `figures.distributions` for rewards: agents have their colours."""
    rows = []
    for name, values in groups.items():
        shade = color(agents[name]) if name in agents else MUTED
        rows.append((f"{name}, {many(len(values), 'play')}", shade, values))
    return rows


def chip(agents: Mapping[str, int], name: str) -> Markup:
    """Return an agent's name with its colour."""
    shade = f"c{agents[name] % len(PALETTE)}" if name in agents else "muted"
    return Markup('<span class="agent" style="--c:var(--{})">{}</span>').format(shade, name)


def bar(part: float, whole: float, style: str = "--c:var(--muted)") -> Markup:
    """Return a share as a number on a bar."""
    width = 100 * part / whole if whole else 0
    cell = Markup('<span class="bar" style="{};--w:{:.1f}%">{}</span>')
    return cell.format(style, width, share(part, whole))


def plain(value: Any) -> str:
    """Return a configuration value in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items()) or DASH
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(v) for v in value) or DASH
    return DASH if value is None or value == "" else as_configured(str(value))


def finite(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return value if real and math.isfinite(value) else None


def known_keys(rows: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> list[str]:
    """Return the keys under which any of the rows has a finite number."""
    return [key for key in keys if any(finite(row.get(key)) is not None for row in rows)]


def number(value: Any) -> str:
    """Return a number with three decimals; a dash if it is unknown."""
    return DASH if finite(value) is None else f"{round(value, 3) + 0.0:,.3f}".replace("-", MINUS)


def whole(value: Any) -> str:
    """Return a number without decimals; a dash if it is unknown."""
    return DASH if finite(value) is None else count(value)


def with_bounds(value: Any, bounds: Sequence[float] | None = None) -> str:
    """Return a number with its interval: 0.770 (0.721 to 0.819)."""
    if finite(value) is None or not bounds:
        return number(value)
    return f"{number(value)} ({number(bounds[0])} to {number(bounds[1])})"


def with_error(value: Any, error: Any) -> str:
    """Return a number with its standard error: 0.770 ± 0.012."""
    if finite(value) is None or finite(error) is None:
        return number(value)
    return f"{number(value)} ± {number(error)}"


def costs(row: Mapping[str, Any], *keys: str) -> list[str]:
    """Return numbers of tokens or FLOPs; a dash for those that are unknown."""
    return [power(row[key]) if row.get(key) else DASH for key in keys]
