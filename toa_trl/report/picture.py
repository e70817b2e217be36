"""The picture of a data set card: the rewards of every agent's plays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from toa_trl.report import figures
from toa_trl.report.html import histogram_rows
from toa_trl.report.rollout_tables import named_agents
from toa_trl.utils.cards import is_unmarked
from toa_trl.utils.targets import head_of

FILE = "rewards.png"


def is_picture(path: Path) -> bool:
    """Return whether this package drew a picture, as its marker or a card without markers says."""
    if figures.DRAWN in head_of(path):
        return True
    try:
        card = path.with_name("README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return is_unmarked(card) and f"]({path.name})" in card


def write_reward_picture(
    folder: Path, configuration: Mapping[str, Any], identity: Mapping[str, Any]
) -> str | None:
    """Draw the rewards in rollouts/ into rewards.png beside it, in the colours of the report.

    Args:
        folder: a folder with rollouts/.
        configuration: content of run.yaml, which orders the agents.
        identity: of the run, which orders them where there is no run.yaml.

    Returns:
        The file's name, or None (and no file) if no play has a reward.
    """
    frames = [pd.DataFrame(columns=["agent", "reward"])]
    names = dict.fromkeys(named_agents(configuration) or identity.get("agents") or ())
    for file in sorted((folder / "rollouts").glob("*.parquet")):
        table = pq.read_table(file, columns=["agent", "reward"])
        names |= dict.fromkeys(table["agent"].unique().to_pylist())
        frames.append(table.drop_null().to_pandas())
    rewards = dict(iter(pd.concat(frames[1:] or frames).groupby("agent")["reward"]))
    if not rewards:
        return None
    groups = {agent: rewards[agent].to_numpy() for agent in names if agent in rewards}
    agents = {agent: number for number, agent in enumerate(names)}
    figure, _ = figures.distributions(histogram_rows(groups, agents), "reward")
    # the marker stands in place of matplotlib's version, so the same rewards give the same file
    figure.savefig(folder / FILE, dpi=150, metadata={"Software": "toa_trl"})
    return FILE
