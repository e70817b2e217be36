"""The picture of a data set card: the rewards of every agent's plays."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from toa_trl.report import figures
from toa_trl.report.audit.findings import many

FILE = "rewards.png"


def write_reward_picture(run_dir: Path) -> str | None:
    """Draw the rewards in rollouts/ into rewards.png, beside the card.

    Returns:
        The file's name, or None (and no file) if no play has a reward.
    """
    frames = [pd.DataFrame(columns=["agent", "reward"])]
    for file in sorted((run_dir / "rollouts").glob("*.parquet")):
        frames.append(pq.read_table(file, columns=["agent", "reward"]).drop_null().to_pandas())
    rows = []
    for i, (agent, plays) in enumerate(pd.concat(frames[1:] or frames).groupby("agent")):
        label = f"{agent}, {many(len(plays), 'play')}"
        rows.append((label, figures.color(i), plays["reward"].to_numpy()))
    if not rows:
        (run_dir / FILE).unlink(missing_ok=True)
        return None
    figure, _ = figures.distributions(rows, "reward")
    # without matplotlib's version the same rewards give the same file
    figure.savefig(run_dir / FILE, dpi=150, metadata={"Software": None})
    return FILE
