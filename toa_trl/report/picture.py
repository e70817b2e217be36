"""The picture of a data set card: the rewards of every agent's plays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from toa_trl.report import figures
from toa_trl.report.audit.findings import many

FILE = "rewards.png"


def write_reward_picture(run_dir: Path) -> str | None:
    """Draw the rewards in rollouts/ into rewards.png, beside the card.

    Returns:
        The file's name, or None (and no file) if no play has a reward.
    """
    rewards: dict[str, list[figures.Floats]] = {}
    for file in sorted((run_dir / "rollouts").glob("*.parquet")):
        plays = pq.read_table(file, columns=["agent", "reward"]).drop_null()
        agents, values = plays["agent"].to_numpy(), plays["reward"].to_numpy()
        for agent in np.unique(agents.astype(str)):
            rewards.setdefault(agent, []).append(values[agents == agent])
    rows = [(agent, np.concatenate(parts)) for agent, parts in sorted(rewards.items())]
    if not rows:
        (run_dir / FILE).unlink(missing_ok=True)
        return None
    labelled = [
        (f"{agent}, {many(len(values), 'play')}", figures.color(i), values)
        for i, (agent, values) in enumerate(rows)
    ]
    figure, _ = figures.distributions(labelled, "reward")
    # without matplotlib's version the same rewards give the same file
    figure.savefig(run_dir / FILE, dpi=150, metadata={"Software": None})
    return FILE
