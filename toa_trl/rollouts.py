"""What a run leaves: every play of every prompt, and the data sets that are made of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from toa_trl.data.preference import preference_rows
from toa_trl.data.sft import sft_rows
from toa_trl.data.tables import PREFERENCE, ROLLOUTS, SFT, as_dataset, rollout_rows, write_parquet
from toa_trl.errors import ConfigError
from toa_trl.hub.dataset_card import write_card
from toa_trl.hub.lineage import write_lineage
from toa_trl.hub.push import push_folder
from toa_trl.report import audit
from toa_trl.report.audit.language import main_languages
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.limits import Meter
from toa_trl.types import Rollout
from toa_trl.utils.config import call
from toa_trl.utils.files import read_yaml

if TYPE_CHECKING:
    from datasets import Dataset

LOOKED_AT = 1_000  # responses, to tell their language

logger = logging.getLogger(__name__)


class Rollouts:
    """Every play of every prompt, read from the journal one prompt at a time."""

    def __init__(
        self, journal: Journal, given_up: Sequence[str] = (), limit: str | None = None
    ) -> None:
        self._journal = journal
        self.given_up = tuple(given_up)  # ids of prompts on which every agent kept failing
        self.limit = limit  # which limit ended the run, and what was spent

    @classmethod
    def load(cls, run_dir: str | Path) -> Rollouts:
        """The rollouts of a run's folder, finished or not.

        Raises:
            ConfigError: there is no journal.
        """
        return cls(Journal(Path(run_dir) / "journal.sqlite", lock=False))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the run's result, as JSON values; an empty mapping before it was begun."""
        return self._journal.identity

    @property
    def configuration(self) -> dict[str, Any]:
        """What run.yaml beside the journal holds; an empty mapping where there is none, as while a run goes on.

        Raises:
            ConfigError: it is not YAML, or no mapping.
        """
        path = Path(self._journal.path).with_name("run.yaml")
        return read_yaml(path) if path.is_file() and not self._journal.in_memory else {}

    @property
    def unfinished(self) -> int:
        """Prompts whose budget is not spent."""
        scored, budget = self._journal.num_scored(), int(self.identity.get("budget", 0))
        return len(self) - sum(count >= budget for count in scored.values())

    def __iter__(self) -> Iterator[Rollout]:
        return self._journal.rollouts()

    def __len__(self) -> int:
        return self._journal.num_prompts()

    def to_dataset(self) -> Dataset:
        """A row per play, as in the run's rollouts/*.parquet."""
        return as_dataset(rollout_rows(self), ROLLOUTS)

    def to_sft(self, **params: Any) -> Dataset:
        """A row per prompt: see `toa_trl.data.sft.sft_rows` for `top_k` and `keep_truncated`."""
        rows, dropped = call("sft", sft_rows, self, params=params)
        return _some("SFT", as_dataset(rows, SFT), dropped)

    def to_preference(self, rejected_rank: int | float = 30, **params: Any) -> Dataset:
        """A pair per prompt: see `toa_trl.data.preference.preference_rows` for the policies and their parameters."""
        params = {"rejected_rank": rejected_rank, **params}
        rows, dropped = call("preference", preference_rows, self, params=params)
        return _some("preference", as_dataset(rows, PREFERENCE), dropped)

    def save(
        self,
        run_dir: str | Path,
        sft: Mapping[str, Any] | None = None,
        preference: Mapping[str, Any] | None = None,
        *,
        without: Collection[str] = (),
        decontaminate: Sequence[str | Path] | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> dict[str, Counter[str]]:
        """Write rollouts/, sft/, dpo/, audit.json, lineage.json and README.md (the data set card) into the run's folder.

        What is None is as in the run's run.yaml, where there is one.

        Args:
            run_dir: the folder.
            sft: parameters as of `to_sft`.
            preference: parameters as of `to_preference`.
            without: ids of prompts that have no row in sft/ and dpo/.
            decontaminate: files of evaluation sets; prompts that overlap with one, or whose chosen responses do, have no
                row in sft/ and dpo/ either: see `toa_trl.report.audit`.
            card: {license: ..., language: ...} of the data set; the language is otherwise told from the responses.

        Returns:
            For "sft" and "dpo", how many prompts gave no row, by reason.

        Raises:
            ConfigError: a parameter is out of range, or a file is no evaluation set.
        """
        from toa_trl.report.picture import write_reward_picture  # matplotlib

        if isinstance(without, str):
            raise ConfigError(f"without: must be a list, not {without!r}")

        run_dir, contamination, left_out, of_run = (
            Path(run_dir),
            None,
            frozenset(without),
            self.configuration,
        )
        given: dict[str, Any] = {
            "sft": sft,
            "preference": preference,
            "decontaminate": decontaminate,
            "card": card,
        }
        made = {key: of_run.get(key) if value is None else value for key, value in given.items()}
        params = {"sft": dict(made["sft"] or {}), "dpo": dict(made["preference"] or {})}
        # every mistake shows before anything is written
        index = audit.Index(made["decontaminate"]) if made["decontaminate"] else None
        rows, dropped = self._rows(params, left_out)
        (run_dir / audit.FILE).unlink(
            missing_ok=True
        )  # if this ends halfway, nothing is said of other data
        num_rows = {"rollouts": write_parquet(rollout_rows(self), ROLLOUTS, run_dir / "rollouts")}
        if index is not None:
            contamination = replace(audit.find_contamination(run_dir, index, rows), num_kept=0)
            rows, dropped = self._rows(params, left_out.union(contamination.prompt_ids))
        for name, schema in (("sft", SFT), ("dpo", PREFERENCE)):
            num_rows[name] = write_parquet(rows[name], schema, run_dir / name)
        found = audit.Audit(audit.audit_reward(run_dir), contamination)
        found.write(run_dir / audit.FILE)
        write_lineage(run_dir, self.identity)
        write_card(
            run_dir / "README.md",
            self.identity,
            self._journal.counts(),
            num_rows,
            dropped,
            params,
            audit.card_section(found),
            about={"language": _languages(run_dir / "sft"), **(made["card"] or {})},
            prompts=of_run,
            agents=self._journal.agent_counts(),
            cost=self._cost(of_run),
            picture=write_reward_picture(run_dir),
        )
        return dropped

    def _cost(self, configuration: Mapping[str, Any]) -> float | None:
        """Of all plays, where agents have prices."""
        entries = [
            entry for entry in configuration.get("agents") or () if isinstance(entry, Mapping)
        ]
        prices = {entry["name"]: entry["price"] for entry in entries if "price" in entry}
        meter = Meter({}, prices)
        meter.resume(self._journal.agent_counts(), 0.0)
        return meter.cost if prices else None

    def _rows(
        self, params: Mapping[str, Mapping[str, Any]], without: frozenset[str]
    ) -> tuple[dict[str, Iterable[dict[str, Any]]], dict[str, Counter[str]]]:
        sft, no_sft = call("sft", sft_rows, self, params=_and_without(params["sft"], without))
        pairs, no_pair = call(
            "preference", preference_rows, self, params=_and_without(params["dpo"], without)
        )
        return {"sft": sft, "dpo": pairs}, {"sft": no_sft, "dpo": no_pair}

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        overwrite: bool = False,
        **params: Any,
    ) -> str:
        """Save into the run's folder, then push that: the configurations sft, dpo and rollouts of one data set.

        Args:
            repo_id: e.g. "me/my-data".
            private: whether a new data set is private; None: as in run.yaml (hub_private_repo), or the owner's default.
            token: with write access; default: that of `hf auth login`.
            overwrite: replace what is there, whatever it is: see `toa_trl.hub.push.push_folder`.
            params: as of `save`.

        Returns:
            The address of the data set's page.

        Raises:
            ConfigError, ToaError: as of `save` and `toa_trl.hub.push.push_folder`.
        """
        with TemporaryDirectory(prefix="toa_trl-") as temporary:  # of a run that has no folder
            name = repo_id.rpartition("/")[2]
            folder = (
                Path(temporary) / name
                if self._journal.in_memory
                else Path(self._journal.path).parent
            )
            self.save(folder, **params)
            return push_folder(folder, repo_id, private=private, token=token, overwrite=overwrite)


def _languages(sft: Path) -> list[str]:
    """Of the first best responses, as far as it is certain."""
    texts: list[str] = []
    for file in sorted(sft.glob("*.parquet"))[:1]:
        for batch in islice(
            pq.ParquetFile(file).iter_batches(LOOKED_AT, columns=["completion"]), 1
        ):
            texts += [completion[-1]["content"] for completion in batch["completion"].to_pylist()]
    return main_languages(texts)


def _and_without(params: Mapping[str, Any], without: Collection[str]) -> Mapping[str, Any]:
    return {**params, "without": [*params.get("without", ()), *without]} if without else params


def _some(kind: str, rows: Dataset, dropped: Counter[str]) -> Dataset:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in dropped.most_common())
    if not len(rows):
        raise ConfigError(f"no prompt gives a {kind} row: {reasons}")
    if dropped:
        logger.warning("%d prompts give no %s row: %s", dropped.total(), kind, reasons)
    return rows
