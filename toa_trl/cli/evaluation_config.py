"""The configuration of an evaluation: models, judges and benchmarks."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from toa_trl.cli.config import (
    Asked,
    OptionalJudge,
    OptionalReward,
    PromptConfig,
    Sampled,
    Settings,
    Verifier,
    check_compares,
    none_if_empty,
    shared_budget,
)
from toa_trl.errors import ConfigError
from toa_trl.evaluation.alpaca import AlpacaEvalConfig
from toa_trl.evaluation.harness import LmEvalConfig
from toa_trl.systems.models import MODELS, make_model
from toa_trl.utils.config import NonNegativeInt, Text, check_names


def split_budgets(models: list[Settings]) -> list[Settings]:
    """Return a model for each budget of a run or a search.

    They are valid before, so that an error names the entry by its place in the file.
    """
    split: list[Settings] = []
    for entry in models:
        budgets = entry.get("budget")
        if not isinstance(budgets, list) or not budgets:
            split.append(entry)
            continue
        for budget in budgets:
            split.append({**entry, "name": f"{entry['name']}@{budget}", "budget": budget})
    return split


class EvaluationConfig(PromptConfig):
    """Which checkpoints, and how they are evaluated."""

    models: Annotated[
        list[Annotated[Settings, MODELS]], Field(min_length=1), AfterValidator(split_budgets)
    ]
    """Checkpoints, as agents: entries {name, engine, model, ...}; runs: {name, engine: run, path,
    budget}; or searches: {name, engine: search, agents, reward, search, budget}."""
    verifier: Verifier = ""
    """1 correct, 0 wrong: package.module:name of a TRL reward function, or {kind, ...}; by default
    the task's."""
    reward: OptionalReward = None
    """Reward model: {kind, ...}."""
    comet: OptionalReward = None
    """Scorer of translations: {kind: http, url, name}, see scripts/serve_comet.py."""
    baseline: str = ""
    """Name of the model with which the others are compared."""
    judge: OptionalJudge = None
    """Compares pairs of responses; mode is pairwise (the default here) or arena."""
    alpaca_eval: Annotated[AlpacaEvalConfig | None, BeforeValidator(none_if_empty)] = None
    """AlpacaEval 2 against the baseline."""
    lm_eval: Annotated[LmEvalConfig | None, BeforeValidator(none_if_empty)] = None
    """Tasks of lm-eval."""
    sampling: Sampled = Field(default_factory=dict)
    """How responses are sampled; max_tokens and stop apply to the greedy ones too."""
    num_samples: NonNegativeInt = 4
    """Sampled responses per problem: the k of maj@k and pass@k."""
    seed: NonNegativeInt = 0
    """Random seed of the samples."""
    results: Text = "results.json"
    """File whose parts are replaced."""
    output_dir: str = ""
    """Folder of the responses; by default `outputs` beside results."""
    model_cards: bool = False
    """Write the figures into README.md of every local model except the baseline."""

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        names = [entry["name"] for entry in self.models]
        check_names("models", names)
        for entry in self.models:
            engine = entry["engine"]
            if self.lm_eval and engine in MODELS.built_in:
                raise ConfigError(f"lm_eval: cannot ask a model of engine {engine}")
            if engine == "search":
                make_model(entry)  # the parameters must fit the search
        needed = self.baseline or self.judge or self.alpaca_eval
        if needed and self.baseline not in names:
            raise ConfigError(
                f"baseline: must be one of the models {', '.join(names)}, not {self.baseline!r}"
            )
        check_compares(self.judge)
        return self

    @property
    def has_prompts(self) -> bool:
        """Whether models are asked prompts, and not only tasks of lm-eval."""
        return bool(self.prompts) or not self.lm_eval

    @property
    def asked(self) -> Asked:
        """The agents that are asked, and how many responses each gives to a prompt on average."""
        asked = Asked()
        for entry in self.models:
            if entry["engine"] == "search":
                search: Any = MODELS.check(entry)
                asked += shared_budget(search.agents, search.budget)
            elif entry["engine"] not in MODELS.built_in:  # a run has its responses
                asked.append((entry, 1 + self.num_samples))
        return asked

    @property
    def folder(self) -> Path:
        """Folder of the responses."""
        return Path(self.output_dir or Path(self.results).parent / "outputs")
