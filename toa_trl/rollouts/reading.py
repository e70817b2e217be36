"""Reading what a run left: its rollouts one by one, as a table, and as pictures for a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import pyarrow as pa

from toa_trl.data.tables import ROLLOUTS, as_dataset, rollout_rows, with_message_fields
from toa_trl.errors import ConfigError
from toa_trl.rollouts.views import NUM_SHOWN, ShownRollout, html_view, shown
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.journal.grants import num_unfinished
from toa_trl.types import Rollout
from toa_trl.utils.files import read_configuration

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from matplotlib.figure import Figure


class Readable:
    """The rollouts of a run, read from its journal one prompt at a time."""

    def __init__(
        self, journal: Journal, given_up: Sequence[str] = (), limit: str | None = None
    ) -> None:
        self._journal = journal
        self.given_up = tuple(given_up)  # ids of prompts for which every agent kept failing
        self.limit = limit  # the limit that ended the run, with what was spent
        self._last = dict[str, Mapping[str, Any]]()  # what `to_sft`, `to_preference` were given

    @classmethod
    def load(cls, run_dir: str | Path) -> Self:
        """Load the rollouts from a run's folder, finished or not.

        Raises:
            ConfigError: there is no journal.
        """
        return cls(Journal(Path(run_dir).expanduser() / "journal.sqlite", lock=False))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the run's results, as JSON values; empty before the run has started."""
        return self._journal.identity

    @property
    def configuration(self) -> dict[str, Any]:
        """The content of run.yaml beside the journal; empty if it is missing.

        Raises:
            ConfigError: it is not YAML, or not a mapping.
        """
        in_memory = self._journal.in_memory
        return {} if in_memory else read_configuration(Path(self._journal.path).parent)

    @property
    def extensions(self) -> list[dict[str, Any]]:
        """When the run was extended, and what changed; see `Journal.extensions`."""
        return self._journal.extensions

    @property
    def unfinished(self) -> int:
        """Number of prompts whose budget is not spent."""
        return num_unfinished(self._journal)

    def __iter__(self) -> Iterator[ShownRollout]:
        """Yield the rollout of every prompt, in the order of the prompts."""
        agents = tuple(self.identity.get("agents", ()))
        return (shown(rollout, agents) for rollout in self._journal.rollouts())

    @overload
    def __getitem__(self, key: int | str) -> ShownRollout: ...

    @overload
    def __getitem__(self, key: slice) -> list[ShownRollout]: ...

    def __getitem__(self, key: int | str | slice) -> ShownRollout | list[ShownRollout]:
        """Return the rollout at a position, those of a slice, or the one of a prompt's id.

        Raises:
            IndexError: there are fewer prompts.
            KeyError: no prompt has this id.
        """
        if isinstance(key, slice):
            positions = range(*key.indices(len(self)))
            found = {n: each for n, each in enumerate(self) if n in positions}
            return [found[number] for number in positions]
        if isinstance(key, str):
            matching = (each for each in self._journal.prompts() if each.id == key)
            if (prompt := next(matching, None)) is None:
                raise KeyError(f"no prompt has the id {key!r}")
        else:
            position = key + len(self) if key < 0 else key
            if not 0 <= position < len(self):
                raise IndexError(f"there are {len(self)} prompts, and no number {key}")
            prompt = next(islice(self._journal.prompts(), position, None))
        rollout = Rollout(prompt, tuple(self._journal.plays(prompt.id)))
        return shown(rollout, tuple(self.identity.get("agents", ())))

    def __repr__(self) -> str:
        """Return what the run is, and how far it is."""
        counts, best = self._journal.counts(), self._journal.best_rewards()
        folder = "memory" if self._journal.in_memory else Path(self._journal.path).parent
        search, budget = self.identity.get("search"), self.identity.get("budget")
        parts = [f"{len(self):,} prompts", f"{counts.num_scored:,} scored plays"]
        parts += [f"{counts.num_failed:,} failed"] if counts.num_failed else []
        parts += [f"mean best reward {fmean(best.values()):.4g}"] if best else []
        parts += [f"{self.unfinished:,} prompts unfinished"] if self.unfinished else []
        return f"<Rollouts of {search}, budget {budget}, in {folder}: {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        agents = self._journal.agent_counts()
        return html_view(repr(self).strip("<>"), agents, list(islice(self, NUM_SHOWN)), len(self))

    def to_pandas(self) -> pd.DataFrame:
        """Return a row per play; see `to_dataset`."""
        frame: pd.DataFrame = self.to_dataset().to_pandas()
        return frame

    def plot(self) -> Figure:
        """Return a figure of the rewards of each agent's plays, with their medians.

        Raises:
            ConfigError: no play has a reward.
        """
        import matplotlib.pyplot  # noqa: F401  (notebooks then show figures)

        from toa_trl.report import figures
        from toa_trl.report.html import histogram_rows

        rewards: dict[str, list[float]] = {name: [] for name in self.identity.get("agents", ())}
        for rollout in self:
            for play in rollout.scored:
                assert play.reward is not None
                rewards.setdefault(play.action.agent, []).append(play.reward)
        groups = {agent: np.array(values) for agent, values in rewards.items() if values}
        if not groups:
            raise ConfigError("plot: no play has a reward")
        agents = {agent: number for number, agent in enumerate(rewards)}
        return figures.distributions(histogram_rows(groups, agents), "reward")[0]

    def __len__(self) -> int:
        """Return the number of prompts."""
        return self._journal.num_prompts()

    def to_dataset(self) -> Dataset:
        """Return a row per play, as in the run's rollouts/*.parquet."""
        return as_dataset(rollout_rows(self), self._schema(ROLLOUTS))

    def _schema(self, schema: pa.Schema) -> pa.Schema:
        return with_message_fields(schema) if self._journal.has_message_fields() else schema
