"""Configuration of a comparison of searches."""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from toa_trl.cli.config import (
    OptionalJudge,
    OptionalReward,
    SamplingConfig,
    Settings,
    Verifier,
    check_compares,
    none_if_empty,
    search_model,
)
from toa_trl.errors import ConfigError
from toa_trl.sampling.allocation import ALLOCATIONS, make_allocation
from toa_trl.search import make_search
from toa_trl.utils.config import Config, NonNegativeInt, PositiveInt, Text, check_names, validate
from toa_trl.utils.registry import Arguments


class ComparedSearch(Config):
    """One search of a comparison."""

    name: Text
    """Name of the search, or package.module:name."""
    label: str = ""
    """What it is called in tables and folders; by default its name."""
    params: Settings = Field(default_factory=dict)
    """Parameters of the search."""
    allocation: Annotated[Settings, ALLOCATIONS] = Field(
        default_factory=lambda: {"kind": "uniform"}
    )
    """How each of its budgets is divided among the prompts, as in a run: uniform or adaptive."""
    budgets: list[PositiveInt] = Field(default_factory=list)
    """Budgets of this search, in place of `budgets` and `train.budget`."""

    def check(self, place: str, agents: Sequence[str], budgets: Iterable[int]) -> None:
        """Check the parameters, and the allocation at every budget.

        Raises:
            ConfigError: one is invalid; the message names the key after `place`.
        """
        validate(search_model(self.name), self.params, f"{place}.params")
        allocation = make_allocation(self.allocation)
        params = allocation.search_params(self.name, self.params)
        for budget in budgets:
            try:
                allocation.check(
                    budget, lambda plays: make_search(self.name, agents, plays, **params), {}
                )
            except ConfigError as error:
                # the key of the parameters has another name in a run
                text = str(error).replace("search_params", "params")
                raise ConfigError(f"{place}.{text}") from error


class ComparisonConfig(SamplingConfig):
    """Searches that are compared on the same problems."""

    searches: Annotated[
        Annotated[dict[str, Settings], Tag("dict")] | Annotated[list[ComparedSearch], Tag("list")],
        Discriminator(lambda given: "list" if isinstance(given, list) else "dict"),
        Field(min_length=1),
    ]
    """Searches to compare, each with its parameters: {toa: {tau: 0.1}, parallel: {}}; or a list of
    {name, label, params, allocation, budgets}, so that one search can stand there several times."""
    baseline: str = ""
    """Label of the search from which the differences of the others are computed, also between their
    students, and whose selected responses theirs are compared with."""
    baseline_budget: PositiveInt | None = None
    """Budget of the baseline in win rates, one of its budgets; by default that of the search.
    Differences are then computed both to this budget and to that of the search."""
    seeds: list[NonNegativeInt] = Field(default_factory=list)
    """Seeds of the runs, each of all prompts; by default `seed` alone."""
    budgets: list[PositiveInt] = Field(default_factory=lambda: [8, 16, 32])
    """Plays per problem; may be empty where `train` is given."""
    verifier: Verifier = ""
    """Scores responses for the comparison: {kind: math}, another {kind, ...}, or
    package.module:name of a TRL reward function that says 1 correct or 0 wrong; by default the
    task's. Without any, only rewards are compared."""
    second_reward: OptionalReward = None
    """Another reward model, which no search sees: {kind, ...}; scores the selected responses."""
    judge: OptionalJudge = None
    """Compares the selected responses with the baseline's; mode is pairwise (the default here) or
    arena."""
    flops_context: PositiveInt | None = None
    """Tokens that each token attends to in the FLOPs of the agents; the paper counts 15000. By
    default the tokens of each call."""
    train: Annotated[
        Annotated[Settings, Arguments("toa_trl.evaluation.students:TrainingConfig")] | None,
        BeforeValidator(none_if_empty),
    ] = None
    """Students of the data table, trained on what each search found."""
    results: Text = "results.json"
    """File whose parts are replaced."""
    output_dir: Text
    """Folder of the runs, the figures and the students."""

    @model_validator(mode="after")
    def _check_before_sampling(self) -> Self:
        entries, agents = self.searches, [entry["name"] for entry in self.agents]
        if isinstance(entries, list):
            check_names("searches", [entry.label or entry.name for entry in entries], "label")
            for number, entry in enumerate(entries):
                place = f"searches[{number}]"
                if not re.fullmatch(r"[^/\\]*", entry.label) or entry.label in (".", ".."):
                    raise ConfigError(f"{place}.label: must not contain a slash: {entry.label!r}")
                entry.check(place, agents, {*self._compared_at(entry), *self._taught_at(entry)})
        else:
            for name, params in entries.items():
                validate(search_model(name), params, f"searches.{name}")
        self._check_baseline()
        if self.judge and not self.baseline:
            raise ConfigError("judge: needs a baseline, the label of a search")
        check_compares(self.judge)
        for label, entry in self.compared.items():
            if not self.train and not self._compared_at(entry):
                raise ConfigError("budgets: must not be empty without train")
            if self.train and not self._taught_at(entry):
                raise ConfigError(
                    f"train.budget: the key is missing, and the search {label} has no budgets of "
                    "its own"
                )
        return self

    def _check_baseline(self) -> None:
        if self.baseline and self.baseline not in self.compared:
            known = ", ".join(self.compared)
            raise ConfigError(f"baseline: must be one of {known}, not {self.baseline!r}")
        if self.baseline_budget is not None:
            if not self.baseline:
                raise ConfigError("baseline_budget: needs a baseline, the label of a search")
            own = [budget for label, budget in self.cells or self.taught if label == self.baseline]
            if self.baseline_budget not in own:
                raise ConfigError(
                    f"baseline_budget: must be one of {own}, the budgets of {self.baseline}, not "
                    f"{self.baseline_budget}"
                )
        elif self.baseline:
            for cells in (self.cells, self.taught):
                for label, budget in cells:
                    if (self.baseline, budget) not in cells:
                        raise ConfigError(
                            f"baseline: {self.baseline} has no budget {budget}, which {label} has; "
                            "add it there, or set baseline_budget"
                        )

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Label and budget of every run that is compared, without those that only teach."""
        return [(label, n) for label, of in self.compared.items() for n in self._compared_at(of)]

    @property
    def taught(self) -> list[tuple[str, int]]:
        """Label and budget of every run that a student learns from."""
        return [(label, n) for label, of in self.compared.items() for n in self._taught_at(of)]

    def _compared_at(self, entry: ComparedSearch) -> list[int]:
        return sorted(set(entry.budgets or self.budgets))

    def _taught_at(self, entry: ComparedSearch) -> list[int]:
        usual = self.train.get("budget") if self.train else None
        budgets = entry.budgets or ([] if usual is None else [usual])
        return sorted(set(budgets)) if self.train else []

    @property
    def compared(self) -> dict[str, ComparedSearch]:
        """The searches by their labels."""
        if isinstance(self.searches, list):
            return {entry.label or entry.name: entry for entry in self.searches}
        return {
            name: ComparedSearch(name=name, params=params) for name, params in self.searches.items()
        }
