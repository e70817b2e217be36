"""The result of a run: every play of every prompt, and the data sets derived from them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from toa_trl.data.builders import Render
from toa_trl.data.columns import described_columns, example_row
from toa_trl.data.preference import REJECTED_RANK, Policy, preference_rows
from toa_trl.data.recipes import Plan, check_trusted, make_plan
from toa_trl.data.review import review_beside
from toa_trl.data.sft import sft_rows
from toa_trl.data.tables import PREFERENCE, ROLLOUTS, SFT, as_dataset, rollout_rows, write_parquet
from toa_trl.errors import ConfigError
from toa_trl.hub import lineage
from toa_trl.hub.dataset_card import PARTS, write_card
from toa_trl.hub.push import push_folder
from toa_trl.report import audit
from toa_trl.rollouts.export import check_export, check_run_target, export_targets, is_complete
from toa_trl.rollouts.reading import Readable
from toa_trl.sampling.journal.grants import plays_of
from toa_trl.sampling.limits import cost_of
from toa_trl.tasks.recorded import recorded_task
from toa_trl.utils.config import call
from toa_trl.utils.stage import counted, stage
from toa_trl.utils.targets import replacing

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Rollouts", "check_export", "check_run_target", "export_targets", "is_complete"]

logger = logging.getLogger(__name__)


class Rollouts(Readable):
    """Every play of every prompt, read from the journal one prompt at a time."""

    def mark_complete(self) -> None:
        """Record that the data sets and the report are written, unless prompts are unfinished."""
        if not self.unfinished:
            self._journal.complete()

    def export(self) -> dict[str, Counter[str]]:
        """Write the data sets, as run.yaml says, and the report into the run's folder.

        Returns:
            For every data set, the number of prompts without a row, by reason.

        Raises:
            ConfigError: see `save`.
        """
        from toa_trl.report.page import write_report  # matplotlib

        folder = Path(self._journal.path).parent
        dropped = self.save(folder, trust=True)  # the run has just used it
        write_report(folder)
        self.mark_complete()
        return dropped

    def to_sft(
        self, *, top_k: int = 1, keep_truncated: bool = False, without: Sequence[str] = ()
    ) -> Dataset:
        """Return rows in TRL's prompt-completion format, as in the run's sft/*.parquet.

        Args:
            top_k: responses per prompt, best first, each text once.
            keep_truncated: also use responses that max_tokens cut short.
            without: ids of prompts that give no row.
        """
        given = {"top_k": top_k, "keep_truncated": keep_truncated, "without": without}
        return self._derived("sft", sft_rows, _changed(sft_rows, given), SFT)

    def to_preference(
        self,
        rejected_rank: int | float = REJECTED_RANK,
        *,
        policy: Policy = "rank",
        margin: float | None = None,
        keep_truncated: bool = False,
        without: Sequence[str] = (),
    ) -> Dataset:
        """Return a pair per prompt in TRL's preference format, as in the run's dpo/*.parquet.

        Args:
            rejected_rank: rank of the rejected response: an integer >= 2, or a fraction.
            policy: which response is rejected; see `toa_trl.data.preference.preference_rows`.
            margin: for policy "margin": how much lower its reward is at least.
            keep_truncated: also use responses that max_tokens cut short.
            without: ids of prompts that give no row.
        """
        given = {"policy": policy, "margin": margin, "keep_truncated": keep_truncated}
        changed = _changed(preference_rows, {**given, "without": without})
        params = {"rejected_rank": rejected_rank, **changed}
        return self._derived("preference", preference_rows, params, PREFERENCE)

    def _derived(
        self, kind: str, make: Callable[..., Any], params: Mapping[str, Any], schema: pa.Schema
    ) -> Dataset:
        """Return the rows that a function makes of the plays, and remember its parameters."""
        rows, dropped = call(kind, make, self, params=params)
        rows = review_beside(self._journal.path).rows(rows)
        made = _some(kind, as_dataset(rows, self._schema(schema)), dropped)
        self._last[kind] = params
        return made

    def to_datasets(
        self,
        recipes: Sequence[Mapping[str, Any]],
        clean: Mapping[str, Any] | None = None,
        trust: bool = False,
    ) -> dict[str, Dataset]:
        """Return the rows that recipes make, by format: "sft", "dpo", "kto", "groups".

        Args:
            recipes: entries {builder, name, ...}; see `toa_trl.data.recipes.BUILDERS`.
            clean: filters; see `toa_trl.data.cleaning.Cleaning`.
            trust: see `save`.
        """
        plan = make_plan(recipes=recipes, clean=clean, review=review_beside(self._journal.path))
        built = plan.build(plan.clean(self), (), self._render(plan, trust))
        made = {}
        for kind in plan.chosen:
            table = as_dataset(built[kind].rows, self._schema(plan.schema(kind)))
            made[kind] = _some(kind, table, built[kind].dropped)
        return made

    def save(
        self,
        run_dir: str | Path,
        sft: Mapping[str, Any] | None = None,
        preference: Mapping[str, Any] | None = None,
        *,
        without: Collection[str] = (),
        decontaminate: Sequence[str | Path] | None = None,
        card: Mapping[str, Any] | None = None,
        recipes: Sequence[Mapping[str, Any]] | None = None,
        clean: Mapping[str, Any] | None = None,
        trust: bool = False,
    ) -> dict[str, Counter[str]]:
        """Write rollouts/, the data sets, audit.json, lineage.json and README.md, their card.

        The data sets are sft/ and dpo/, and kto/ and groups/ if a recipe makes them.

        Arguments that are None are taken from run.yaml, if it exists.

        Args:
            run_dir: folder of the run.
            sft: parameters of `to_sft`.
            preference: parameters of `to_preference`.
            without: ids of prompts to leave out of the data sets.
            decontaminate: files of evaluation sets; prompts that overlap with one, or whose chosen
                responses do, are left out of the data sets too: see `toa_trl.report.audit`.
            card: {license: ..., language: ...} of the data set; by default the language is detected
                from the responses.
            recipes: entries {builder, name, ...}; see `toa_trl.data.recipes.BUILDERS`. sft/ and
                dpo/ are made by `sft` and `preference` if no recipe makes them.
            clean: filters; see `toa_trl.data.cleaning.Cleaning`.
            trust: whether to run code that run.yaml names: builders, and the task if they need it.

        Returns:
            For every data set, the number of prompts without a row, by reason.

        Raises:
            ConfigError: a parameter is out of range, a file is not an evaluation set, or something
                would be replaced that this package did not write.
        """
        from toa_trl.report import picture  # matplotlib

        if isinstance(without, str):
            raise ConfigError(f"without: must be a list, not {without!r}")
        run_dir = Path(run_dir).expanduser()
        left_out, of_run = frozenset(without), self.configuration
        sft = of_run.get("sft") if sft is None else sft
        preference = of_run.get("preference") if preference is None else preference
        decontaminate = of_run.get("decontaminate") if decontaminate is None else decontaminate
        card = of_run.get("card") if card is None else card
        clean = of_run.get("clean") if clean is None else clean
        if recipes is None:
            recipes = of_run.get("recipes") or ()
            check_trusted(recipes, trust)
        # Errors are raised before anything is written.
        plan = make_plan(sft, preference, recipes, clean, review_beside(self._journal.path))
        render = self._render(plan, trust)
        index = audit.Index(decontaminate) if decontaminate else None
        contamination, card_file = None, run_dir / "README.md"
        check_export(run_dir)
        with replacing(run_dir, export_targets()) as fresh:
            plays = rollout_rows(counted("writing rollouts", self, len(self)))
            schema = self._schema(ROLLOUTS)
            num_rows = {"rollouts": write_parquet(plays, schema, fresh / "rollouts")}
            with stage("cleaning"):
                cleaned = plan.clean(self)
            if index is not None:
                rows = {k: made.rows for k, made in plan.build(cleaned, left_out, render).items()}
                with stage("looking for evaluation sets"):
                    found = audit.find_contamination(fresh, index, rows)
                contamination = replace(found, num_kept=0)
                left_out = left_out.union(contamination.prompt_ids)
            built = plan.build(cleaned, left_out, render)
            dropped = {name: made.dropped for name, made in built.items()}
            for name, made in built.items():
                schema = self._schema(plan.schema(name))
                rows_of = counted(f"writing {name}", made.rows)
                num_rows[name] = write_parquet(rows_of, schema, fresh / name)
            with stage("auditing the rewards"):
                result = audit.Audit(audit.audit_reward(fresh), contamination)
            result.write(fresh / audit.FILE)
            agents = self._journal.agent_counts()
            lineage.write_lineage(fresh, self.identity, plays_of(self._journal))
            write_card(
                card_file,
                self.identity,
                self._journal.counts(),
                num_rows,
                dropped,
                plan.params,
                audit.card_section(result),
                about={"language": audit.languages_of(fresh / "sft"), **(card or {})},
                prompts=of_run,
                agents=agents,
                cost=cost_of(of_run, agents, self._journal.reward_spending),
                spending=self._journal.reward_spending,
                plays=plays_of(self._journal),
                picture=picture.write_reward_picture(fresh, self.configuration, self.identity),
                columns=described_columns(fresh, [part for part in PARTS if part in num_rows]),
                example=example_row(fresh / "sft"),
                output=fresh / card_file.name,
                **plan.for_card(cleaned, built),
            )
        return dropped

    def _render(self, plan: Plan, trust: bool) -> Render | None:
        """Return how the run's task renders prompts, if a builder needs it."""
        if not plan.needs_task:
            return None
        return recorded_task(self.configuration, self.identity, trust, "run.yaml").render

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        overwrite: bool = False,
        sft: Mapping[str, Any] | None = None,
        preference: Mapping[str, Any] | None = None,
        without: Collection[str] = (),
        decontaminate: Sequence[str | Path] | None = None,
        card: Mapping[str, Any] | None = None,
        recipes: Sequence[Mapping[str, Any]] | None = None,
        clean: Mapping[str, Any] | None = None,
        trust: bool = False,
    ) -> str:
        """Save into the run's folder, then push it as one data set with three configurations.

        SFT rows and pairs are made with what `to_sft` and `to_preference` were last given, or else
        as run.yaml says.

        Args:
            repo_id: name on the Hub, e.g. "me/my-data".
            private: whether a new data set is private; None: hub_private_repo of run.yaml, or the
                owner's default.
            token: token with write access; None: that of `hf auth login`.
            overwrite: replace any existing content: see `toa_trl.hub.push.push_folder`.
            sft: parameters of `to_sft` that override what was last given.
            preference: parameters of `to_preference` that override what was last given.
            without: see `save`, as for the arguments that follow.
            decontaminate: files of evaluation sets.
            card: {license: ..., language: ...}.
            recipes: entries {builder, name, ...}.
            clean: filters.
            trust: whether to run code that run.yaml names.

        Returns:
            The address of the data set's page.

        Raises:
            ConfigError: see `save` and `toa_trl.hub.push.push_folder`.
            ToaError: see `toa_trl.hub.push.push_folder`.
        """
        # A run in memory has no folder.
        with TemporaryDirectory(prefix="toa_trl-") as temporary:
            folder = Path(self._journal.path).parent
            if self._journal.in_memory:
                folder = Path(temporary) / repo_id.rpartition("/")[2]
            self.save(
                folder,
                self._last.get("sft") if sft is None else sft,
                self._last.get("preference") if preference is None else preference,
                without=without,
                decontaminate=decontaminate,
                card=card,
                recipes=recipes,
                clean=clean,
                trust=trust,
            )
            return push_folder(folder, repo_id, private=private, token=token, overwrite=overwrite)


def _changed(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that differ from a function's defaults; a card names these."""
    defaults = signature(function).parameters
    return {key: value for key, value in given.items() if value != defaults[key].default}


def _some(kind: str, rows: Dataset, dropped: Counter[str]) -> Dataset:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in dropped.most_common())
    if not len(rows):
        raise ConfigError(f"no prompt gives a {kind} row: {reasons}")
    if dropped:
        logger.warning("%d prompts give no %s row: %s", dropped.total(), kind, reasons)
    return rows
