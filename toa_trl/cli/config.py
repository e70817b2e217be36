"""Configurations of sampling: typed, and valid before anything is spent.

Nested values stay mappings as the user wrote them, because they are part of a run's identity; the
annotations say against what they are validated.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from toa_trl.agents import ENGINES
from toa_trl.data.prompts import load_prompts
from toa_trl.data.recipes import BUILDERS, make_plan
from toa_trl.errors import ConfigError
from toa_trl.report.audit import Index
from toa_trl.rewards import KINDS
from toa_trl.sampler import TOASampler
from toa_trl.sampling.allocation import ALLOCATIONS
from toa_trl.sampling.extension import Extend
from toa_trl.search import SEARCHES
from toa_trl.serving.endpoints import apply_endpoints
from toa_trl.tasks import make_task
from toa_trl.types import Prompt
from toa_trl.utils.config import (
    Config,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Text,
    check_names,
    validate,
)
from toa_trl.utils.registry import Arguments


class Card(Config):
    """Metadata of the dataset card, as the Hub writes them."""

    license: str | None = None
    """License identifier, such as apache-2.0."""
    language: str | list[str] | None = None
    """Language codes. By default detected from the responses."""


def none_if_empty(value: Any) -> Any:
    """Return None for an empty text or mapping, which a YAML key without a value gives."""
    return None if value in ({}, "") else value


def check_compares(judge: Mapping[str, Any] | None) -> None:
    """Check that a judge compares pairs.

    Raises:
        ConfigError: it rates single responses.
    """
    if judge and judge.get("mode") == "pointwise":
        raise ConfigError(
            "judge.mode: must be pairwise or arena, because pairs are compared; a judge that "
            "rates is a reward: {kind: judge, ...}"
        )


JUDGE = "toa_trl.rewards.judge:JudgeReward"
OptionalReward = Annotated[Annotated[dict[str, Any], KINDS] | None, BeforeValidator(none_if_empty)]
Function = Annotated[str, Tag("str")]
NamedOr = Discriminator(lambda value: "dict" if isinstance(value, Mapping) else "str")
Settings = dict[str, Any]
Sampled = Annotated[Settings, Arguments("toa_trl.agents.base:SamplingChanges")]
OptionalJudge = Annotated[
    Annotated[Settings, Arguments(JUDGE)] | None, BeforeValidator(none_if_empty)
]
Verifier = Annotated[Function | Annotated[Settings, KINDS, Tag("dict")], NamedOr]


Asked = list[tuple[Mapping[str, Any], float]]
"""Entries of agents, and how many responses each gives to a prompt on average."""


def shared_budget(agents: Sequence[Mapping[str, Any]], budget: int) -> Asked:
    """Return the agents of a search with their shares of its budget, as if they were equal."""
    return [(entry, budget / len(agents)) for entry in agents]


class PromptConfig(Config):
    """Which prompts, and how they are read."""

    prompts: str = ""
    """JSONL, JSON, CSV, parquet or text file, folder or Hub name, with the columns of the task."""
    prompts_config: str | None = None
    """Configuration of a folder or Hub dataset that has several."""
    prompts_split: str = "train"
    """Split of a folder or Hub dataset."""
    prompt_column: str | None = None
    """Column with the question; by default the one that the task asks about, such as prompt."""
    prompts_shuffle_seed: NonNegativeInt | None = None
    """Seed of the order of the prompts; by default they are taken as in the source."""
    num_prompts: PositiveInt | None = None
    """Number of prompts to use; by default all."""
    skip_prompts: NonNegativeInt = 0
    """Number of prompts to skip at the start."""
    task: Annotated[Function | Annotated[Settings, Tag("dict")], NamedOr] = "alignment"
    """alignment, translation or math; a folder of templates; package.module:name of a Task; or a
    mapping {name, ...} with arguments of the task."""

    @property
    def has_prompts(self) -> bool:
        """Whether models are asked prompts."""
        return True

    def load_prompts(self) -> list[Prompt]:
        """Return the prompts.

        Raises:
            ConfigError: see `toa_trl.data.prompts.load_prompts`.
        """
        if not self.prompts:
            raise ConfigError(
                "prompts: the key is missing; name a JSONL or parquet file, a folder or a Hub "
                "dataset"
            )
        end = None if self.num_prompts is None else self.skip_prompts + self.num_prompts
        task = make_task(self.task)
        loaded = load_prompts(
            self.prompts,
            self.prompts_split,
            end,
            task.read,
            config=self.prompts_config,
            column=self.prompt_column,
            asked=task.asked,
            shuffle_seed=self.prompts_shuffle_seed,
        )
        prompts = loaded[self.skip_prompts :]
        if not prompts:
            raise ConfigError(
                f"skip_prompts: {self.prompts} has no prompt after the first {self.skip_prompts}"
            )
        return prompts

    def settings(self) -> dict[str, Any]:
        """Return every key with its value, as run.yaml holds them."""
        return {key: getattr(self, key) for key in type(self).model_fields}


class SamplingConfig(PromptConfig):
    """Who works on the prompts, and how."""

    agents: Annotated[list[Annotated[Settings, ENGINES]], Field(min_length=1)]
    """The models that answer: entries {name, engine, ...}."""
    reward: Annotated[Settings, KINDS]
    """The reward model that guides the search: {kind, ...}."""
    endpoints: str = ""
    """File that `toa-trl serve-agents` writes: gives agents and reward their base_url."""
    sampling: Sampled = Field(default_factory=dict)
    """How all agents sample; an agent's own `sampling` overrides it."""
    seed: NonNegativeInt = 0
    """Random seed of the run."""
    plays_in_flight: PositiveInt = 1
    """Concurrent plays per prompt. With 1, a run is reproducible."""
    prompts_in_flight: PositiveInt = 256
    """Prompts worked on concurrently."""
    patience_s: NonNegativeFloat = 900.0
    """Seconds without a single play after which a run stops because no agent is available."""

    sampler_class: ClassVar[type[TOASampler]] = TOASampler

    @model_validator(mode="before")
    @classmethod
    def _fill_in_endpoints(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not given.get("endpoints"):
            return given
        agents, reward = given.get("agents"), given.get("reward")
        if not isinstance(agents, list) or not isinstance(reward, Mapping):
            return given
        agents, reward = apply_endpoints(agents, reward, Path(str(given["endpoints"])))
        return {**given, "agents": agents, "reward": reward}

    @model_validator(mode="after")
    def _refuse_duplicate_names(self) -> Self:
        check_names("agents", [entry.get("name") for entry in self.agents])
        return self

    def sampler(self, search: str, budget: int, **options: Any) -> TOASampler:
        """Return a sampler with these settings.

        Args:
            search: name of the search.
            budget: plays per prompt.
            options: further arguments of `TOASampler`; they override those of the configuration.

        Raises:
            ConfigError: see `TOASampler`.
        """
        given = {
            "agents": self.agents,
            "reward_model": self.reward,
            "seed": self.seed,
            "plays_in_flight": self.plays_in_flight,
            "prompts_in_flight": self.prompts_in_flight,
            "sampling": self.sampling,
            "task": self.task,
            "patience_s": self.patience_s,
        }
        return self.sampler_class(search=search, budget=budget, **{**given, **options})


class SynthesisConfig(SamplingConfig):
    """A run: prompts in, rollouts and datasets out."""

    search: Text = "toa"
    """best_of_n, parallel, prs, sequential, moa, toa, greedy or ab_mcts; or package.module:name."""
    search_params: Settings = Field(default_factory=dict)
    """Parameters of the search; of toa: {width, alpha, tau, top_k}."""
    budget: PositiveInt = 160
    """Scored plays per prompt; 160 in the paper."""
    allocation: Annotated[Settings, ALLOCATIONS] = Field(
        default_factory=lambda: {"kind": "uniform"}
    )
    """How the budget is divided among the prompts: uniform, or adaptive, where it is a mean."""
    limits: Annotated[Settings, Arguments("toa_trl.sampling.limits:Limits")] = Field(
        default_factory=dict
    )
    """Limits of the whole run, which stops gracefully when one is reached."""
    sft: Annotated[Settings, Arguments("toa_trl.data.sft:sft_rows", skip=1, omit=("without",))] = (
        Field(default_factory=dict)
    )
    """How SFT rows are made."""
    preference: Annotated[
        Settings, Arguments("toa_trl.data.preference:preference_rows", skip=1, omit=("without",))
    ] = Field(default_factory=dict)
    """How preference pairs are made."""
    recipes: list[Annotated[Settings, BUILDERS]] = Field(default_factory=list)
    """Builders of the data sets; without one of their format, `sft` and `preference` make them."""
    clean: Annotated[Settings, Arguments("toa_trl.data.cleaning:Cleaning")] = Field(
        default_factory=dict
    )
    """What is left out of the data sets."""
    decontaminate: list[str] = Field(default_factory=list)
    """Evaluation sets (JSONL, JSON or parquet): prompts and responses that overlap are dropped."""
    card: Annotated[Settings, Arguments("toa_trl.cli.config:Card")] = Field(default_factory=dict)
    """Metadata of the dataset card."""
    output_dir: Text
    """Folder of the run."""
    extend: Extend = False
    """Let the run in output_dir grow: prompts appended, budget raised, agents appended. Where the
    search cannot continue exactly: keep_width, or given (the earlier plays stay as they are)."""
    push_to_hub: str = ""
    """Name on the Hub to which the dataset is pushed at the end."""
    hub_private_repo: bool | None = None
    """Whether a new dataset there is private; by default as its owner has set."""
    runner: Literal["local", "ray"] = "local"
    """local: this process; ray: shards over a Ray cluster."""
    num_shards: PositiveInt | None = None
    """Shards of `runner: ray`; by default as many as fit."""
    num_cpus: NonNegativeFloat = 1.0
    """CPUs of each Ray shard."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs of each Ray shard."""
    ray_address: str | None = None
    """host:port of the Ray cluster."""

    @model_validator(mode="after")
    def _check_before_sampling(self) -> Self:
        validate(search_model(self.search), self.search_params, "search_params")
        # checks across several keys, over no rollouts
        make_plan(self.sft, self.preference, self.recipes, self.clean).check_ranks(self.budget)
        if self.decontaminate:
            Index(self.decontaminate)
        return self

    def settings(self) -> dict[str, Any]:
        """Return every key with its value, as run.yaml holds them; `extend` is not one of a run."""
        return {key: value for key, value in super().settings().items() if key != "extend"}

    @property
    def asked(self) -> Asked:
        """The agents, and how many responses each gives to a prompt on average."""
        return shared_budget(self.agents, self.budget)

    def new_sampler(self, shard: int = 0, num_shards: int = 1) -> TOASampler:
        """Return the sampler of the run, or of a shard with an equal share of the limits.

        Raises:
            ConfigError: see `TOASampler`.
        """
        limits = self.limits
        if num_shards > 1:
            limits = {k: None if v is None else v / num_shards for k, v in limits.items()}
        return self.sampler(
            self.search,
            self.budget,
            allocation=self.allocation,
            search_params=self.search_params,
            limits=limits,
            preference=self.preference,
        )


def search_model(name: str) -> type[Config]:
    """Return the configuration model of a search's parameters."""
    return SEARCHES.model(name, skip=3)
