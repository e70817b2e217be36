"""Configuration of a comparison of searches."""

import re
from collections import Counter
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from toa_trl.cli.config import (
    OptionalReward,
    SamplingConfig,
    Settings,
    Verifier,
    none_if_empty,
    search_model,
)
from toa_trl.errors import ConfigError
from toa_trl.utils.config import Config, NonNegativeInt, PositiveInt, Text, validate
from toa_trl.utils.registry import Arguments


class ComparedSearch(Config):
    """One search of a comparison."""

    name: Text
    """Name of the search, or package.module:name."""
    label: str = ""
    """What it is called in tables and folders; by default its name."""
    params: Settings = Field(default_factory=dict)
    """Parameters of the search."""


class ComparisonConfig(SamplingConfig):
    """Searches that are compared on the same problems."""

    searches: Annotated[dict[str, Settings] | list[ComparedSearch], Field(min_length=1)]
    """Searches to compare, each with its parameters: {toa: {tau: 0.1}, parallel: {}}; or a list of
    {name, label, params}, so that one search can stand there with several settings."""
    baseline: str = ""
    """Label of the search from which the differences of the others are computed, and whose selected
    responses theirs are compared with."""
    baseline_budget: PositiveInt | None = None
    """Budget of the baseline in win rates, one of budgets; by default that of the search."""
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
    judge: Annotated[
        Annotated[Settings, Arguments("toa_trl.rewards.judge:JudgeReward")] | None,
        BeforeValidator(none_if_empty),
    ] = None
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
        entries = self.searches
        if isinstance(entries, list):
            for number, entry in enumerate(entries):
                place = f"searches[{number}]"
                validate(search_model(entry.name), entry.params, f"{place}.params")
                if not re.fullmatch(r"[^/\\]*", entry.label) or entry.label in (".", ".."):
                    raise ConfigError(f"{place}.label: must not contain a slash: {entry.label!r}")
            for label, times in Counter(entry.label or entry.name for entry in entries).items():
                if times > 1:
                    raise ConfigError(f"searches: {times} entries have the label {label!r}")
        else:
            for name, params in entries.items():
                validate(search_model(name), params, f"searches.{name}")
        if self.baseline and self.baseline not in self.compared:
            known = ", ".join(self.compared)
            raise ConfigError(f"baseline: must be one of {known}, not {self.baseline!r}")
        if self.baseline_budget is not None and self.baseline_budget not in self.budgets:
            raise ConfigError(
                f"baseline_budget: must be one of {self.budgets}, not {self.baseline_budget}"
            )
        if self.judge and not self.baseline:
            raise ConfigError("judge: needs a baseline, the label of a search")
        if self.judge and self.judge.get("mode") == "pointwise":
            raise ConfigError(
                "judge.mode: must be pairwise or arena, because pairs are compared; a judge that "
                "rates is a second_reward: {kind: judge, ...}"
            )
        if not self.budgets and not self.train:
            raise ConfigError("budgets: must not be empty without train")
        return self

    @property
    def compared(self) -> dict[str, ComparedSearch]:
        """The searches by their labels."""
        if isinstance(self.searches, list):
            return {entry.label or entry.name: entry for entry in self.searches}
        return {
            name: ComparedSearch(name=name, params=params) for name, params in self.searches.items()
        }
