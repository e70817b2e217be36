"""How a report is recognized; imports nothing of what draws it."""

from pathlib import Path

from toa_trl.utils.targets import head_of

# the second stands in reports from before the marker
MARKERS = (b'<meta name="generator" content="toa_trl">', b": report of a toa_trl run</title>")


def is_report(path: Path) -> bool:
    """Return whether a file is a report that this package wrote."""
    head = head_of(path)
    return any(marker in head for marker in MARKERS)
