"""What the viewer shares with the report: the colours of agents and searches, and the trees."""

from pathlib import Path

# after Okabe and Ito's colours for all kinds of colour vision: on light paper, on dark paper
PALETTE = (
    ("#0072b2", "#56a9e0"),
    ("#d55e00", "#f38b45"),
    ("#00926b", "#3cc79c"),
    ("#b8579b", "#e39fc9"),
    ("#a67c00", "#e3b93d"),
    ("#2f9fcf", "#9ad7f7"),
    ("#6b5b95", "#b3a5dc"),
    ("#7a6a5a", "#c4b3a2"),
    ("#8c2d04", "#d98a5f"),
    ("#5a7d00", "#aed15c"),
    ("#c2185b", "#f07aa8"),
    ("#1a2f8f", "#8c9eff"),
)


def drawing(kind: str) -> str:
    """Return what draws the tree of a prompt: the script ("js"), or its style sheet ("css")."""
    return Path(__file__).with_name(f"drawing.{kind}.html.j2").read_text(encoding="utf-8")
