"""How a report is recognized; imports nothing of what draws it."""

from pathlib import Path

# the second stands in reports from before the marker
MARKERS = (b'<meta name="generator" content="toa_trl">', b": report of a toa_trl run</title>")


def is_report(path: Path) -> bool:
    """Return whether a file is a report that this package wrote."""
    try:
        with path.open("rb") as file:
            head = file.read(10_000)
    except OSError:
        return False
    return any(marker in head for marker in MARKERS)
