"""The configuration of a sampling run: one dataclass, read by TrlParser, so that every key is also an option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from toa_trl.cli.arguments import structure
from toa_trl.data.preference import preference_rows
from toa_trl.data.prompts import load_prompts
from toa_trl.data.sft import sft_rows
from toa_trl.errors import ConfigError
from toa_trl.report.audit import Index
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.sampler import TOASampler
from toa_trl.serving.fleet import apply_endpoints
from toa_trl.tasks import Task, make_task
from toa_trl.types import Prompt
from toa_trl.utils.registry import check_keys, check_whole, choose, construct


def structured(default: str, help: str) -> Any:
    """A field that holds a mapping or a list: YAML in the configuration, YAML or JSON in one argument."""
    return field(
        default=default,
        metadata={"help": f"{help} On the command line: YAML or JSON in one argument."},
    )


def _read_structures(config: Any, **kinds: type) -> None:
    """The keys as the lists and mappings that were written.

    Raises:
        ConfigError: one is something else.
    """
    for key, kind in kinds.items():
        setattr(config, key, structure(key, getattr(config, key)))
        if not isinstance(getattr(config, key), kind):
            raise ConfigError(f"{key}: a {kind.__name__} is needed, not {getattr(config, key)!r}")


@dataclass
class PromptArguments:
    """Which prompts."""

    prompts: str = field(
        default="",
        metadata={
            "help": "JSONL or parquet file, folder or Hub name; the columns of the task, optionally id, others."
        },
    )
    prompts_split: str = field(
        default="train", metadata={"help": "Split of a folder or Hub data set."}
    )
    num_prompts: int | None = field(
        default=None, metadata={"help": "Take the first so many. Default: all."}
    )
    skip_prompts: int = field(
        default=0, metadata={"help": "Leave out the first so many, before num_prompts."}
    )
    task: str = structured(
        "alignment",
        "alignment, translation or math; a folder of templates; package.module:name of a Task; or {name, ...}.",
    )

    def __post_init__(self) -> None:
        self.task = structure("task", self.task)

    def load_prompts(self) -> list[Prompt]:
        """The prompts.

        Raises:
            ConfigError: see `toa_trl.data.prompts.load_prompts`.
        """
        if not self.prompts:
            raise ConfigError(
                "prompts: the key is missing; name a JSONL or parquet file, a folder or a Hub data set"
            )
        if self.num_prompts is not None:
            check_whole("num_prompts", self.num_prompts, at_least=1)
        check_whole("skip_prompts", self.skip_prompts, at_least=0)
        last = None if self.num_prompts is None else self.skip_prompts + self.num_prompts
        prompts = load_prompts(self.prompts, self.prompts_split, last, make_task(self.task).read)[
            self.skip_prompts :
        ]
        if not prompts:
            raise ConfigError(
                f"skip_prompts: {self.prompts} has no prompt after the first {self.skip_prompts}"
            )
        return prompts


@dataclass
class EvaluationArguments(PromptArguments):
    """Which checkpoints, and what judges them."""

    models: str = structured(
        "[]", "Checkpoints, as agents: {name, engine: transformers | vllm | openai, model, ...}."
    )
    verifier: str = structured(
        "",
        "1 right, 0 wrong: package.module:name of a TRL reward function, or {kind, ...}. Default: the task's.",
    )
    reward: str = structured("{}", "Reward model: {kind: classifier | vllm | http | ..., ...}.")
    comet: str = structured(
        "{}", "Scorer of translations: {kind: http, url, name}, see scripts/serve_comet.py."
    )
    baseline: str = field(
        default="", metadata={"help": "Name of the model with which the others are compared."}
    )
    judge: str = structured(
        "{}", "Compares pairs: {agent: {name, engine, ...}, mode: pairwise | arena, ...}."
    )
    alpaca_eval: str = structured(
        "{}", "AlpacaEval 2 against the baseline: {annotator: {model, base_url}, ...}."
    )
    lm_eval: str = structured(
        "{}", "lm-eval tasks: {tasks: [...], include_path, limit, num_fewshot, ...}."
    )
    sampling: str = structured(
        "{}", "Of the sampled responses; max_tokens and stop also of the greedy ones."
    )
    num_samples: int = field(
        default=4, metadata={"help": "Sampled responses per problem: the k of maj@k and pass@k."}
    )
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    results: str = field(
        default="results.json", metadata={"help": "File whose parts are replaced."}
    )
    output_dir: str = field(
        default="", metadata={"help": "Folder of the responses. Default: outputs, beside results."}
    )
    model_cards: bool = field(
        default=False,
        metadata={
            "help": "Write the figures into README.md of every local model but the baseline."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("num_samples", self.num_samples, at_least=0)
        keys = ("sampling", "reward", "comet", "judge", "alpaca_eval", "lm_eval")
        _read_structures(self, models=list, **dict.fromkeys(keys, dict))
        names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in self.models]
        if not names or None in names or len(set(names)) < len(names):
            raise ConfigError(
                "models: a list of {name, engine, model} with different names is needed"
            )
        if self.baseline not in names and (self.baseline or self.judge or self.alpaca_eval):
            raise ConfigError(
                f"baseline: {self.baseline!r} is none of the models: {', '.join(map(str, names))}"
            )
        if isinstance(self.judge, dict) and self.judge.get("mode") == "pointwise":
            raise ConfigError("judge: pairs are compared, so mode is pairwise or arena")
        self.output_dir = self.output_dir or str(Path(self.results).parent / "outputs")


@dataclass
class SamplingArguments(PromptArguments):
    """Who works on the prompts, and how."""

    agents: str = structured(
        "[]",
        "List of agents: {name, engine: openai | vllm | transformers | recorded | scripted, model, ...}.",
    )
    reward: str = structured(
        "{}", "Reward model: {kind: classifier | process | judge | math | chrf | ..., ...}."
    )
    endpoints: str = field(
        default="",
        metadata={
            "help": "File of toa_trl/cli/serve_agents.py: the base_url of agents and reward without one."
        },
    )
    sampling: str = structured("{}", "Of all agents: {temperature, top_p, max_tokens, stop}.")
    seed: int = field(default=0, metadata={"help": "Of the run; everything random comes from it."})
    plays_in_flight: int = field(
        default=1, metadata={"help": "Per prompt. With 1, a run is reproducible."}
    )
    prompts_in_flight: int = field(default=256, metadata={"help": "Prompts worked on at once."})
    patience_s: float = field(
        default=900.0,
        metadata={
            "help": "Seconds that a run waits, without a single play, while no agent answers."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _read_structures(self, agents=list, reward=dict, sampling=dict)
        if self.endpoints:
            agents: Any = self.agents
            reward: Any = self.reward
            self.agents, self.reward = apply_endpoints(agents, reward, Path(self.endpoints))  # type: ignore[assignment]

    def sampler(
        self,
        agents: Any,
        reward_model: Any,
        search: str,
        budget: int,
        search_params: Any,
        limits: Any = None,
    ) -> TOASampler:
        """A sampler with these settings; agents and reward model may be built already.

        Raises:
            ConfigError: see `TOASampler`.
        """
        return TOASampler(
            agents,
            reward_model,
            search,
            budget,
            search_params,
            self.seed,
            self.plays_in_flight,
            self.prompts_in_flight,
            self.sampling,  # type: ignore[arg-type]  # a mapping since __post_init__
            self.task,
            limits,
            self.patience_s,
        )


@dataclass
class SynthesisArguments(SamplingArguments):
    """A run: prompts in, rollouts and data sets out."""

    search: str = field(
        default="toa", metadata={"help": "best_of_n, parallel, prs, sequential, moa or toa."}
    )
    search_params: str = structured("{}", "Of the search; of toa: {width, alpha, tau, top_k}.")
    budget: int = field(default=160, metadata={"help": "Scored plays per prompt (the paper: 160)."})
    limits: str = structured(
        "{}", "Of the run, which ends in order at one: {max_tokens, max_flops, max_cost}."
    )
    sft: str = structured("{}", "How SFT rows are made: {top_k, keep_truncated}.")
    preference: str = structured(
        "{}",
        "How pairs are made: {policy: rank | worst | margin | same_parent | cross_agent, rejected_rank, margin, "
        "keep_truncated}.",
    )
    decontaminate: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files of evaluation sets, JSONL, JSON or parquet: what overlaps with one gives no SFT row, no pair."
        },
    )
    card: str = structured(
        "{}", "Of the data set card: {license, language}; both as the Hub writes them."
    )
    output_dir: str = field(default="", metadata={"help": "Folder of the run."})
    push_to_hub: str = field(
        default="", metadata={"help": "Name on the Hub that the data set is pushed to at the end."}
    )
    hub_private_repo: Optional[bool] = field(  # noqa: UP045
        default=None,
        metadata={"help": "Whether a new data set there is private. Default: as its owner has it."},
    )
    runner: str = field(
        default="local", metadata={"help": "local: this process; ray: shards over a Ray cluster."}
    )
    num_shards: int | None = field(
        default=None, metadata={"help": "Of --runner ray. Default: as many as fit."}
    )
    num_cpus: float = field(
        default=1.0, metadata={"help": "Of --runner ray: what each shard occupies."}
    )
    num_gpus: float = field(
        default=0.0, metadata={"help": "Of --runner ray: what each shard occupies."}
    )
    ray_address: str | None = field(
        default=None, metadata={"help": "Of --runner ray: host:port of the cluster."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("search_params", "limits", "sft", "preference"):
            setattr(self, key, structure(key, getattr(self, key)))
        _read_structures(self, card=dict)
        check_keys("card", self.card, ("license", "language"))
        choose("--runner", "runner", dict.fromkeys(("local", "ray")), self.runner)
        if not self.output_dir:
            raise ConfigError(
                "output_dir: the key is missing; name the folder that the run is written to"
            )
        # over no rollouts: a mistake shall show before the sampling, not after it
        construct("sft", sft_rows, [], params=self.sft)  # type: ignore[arg-type]
        construct("preference", preference_rows, [], params=self.preference)  # type: ignore[arg-type]
        if self.decontaminate:
            Index(self.decontaminate)

    def new_sampler(self, shard: int = 0, num_shards: int = 1) -> TOASampler:
        """The sampler of the run, or of one of its shards, which has an equal share of the limits.

        Raises:
            ConfigError: see `TOASampler`.
        """
        limits: Any = self.limits  # a mapping since __post_init__
        if isinstance(limits, Mapping) and num_shards > 1:
            limits = {
                key: value / num_shards if isinstance(value, int | float) else value
                for key, value in limits.items()
            }
        return self.sampler(
            self.agents, self.reward, self.search, self.budget, self.search_params, limits
        )


def make_verifier(value: Any, task: Task, prompts: Sequence[Prompt]) -> RewardModel | None:
    """What says whether a response is right.

    Args:
        value: package.module:name of a TRL reward function, an entry {kind, ...}, or "": the task's own verifier, where it
            has one and the prompts have the column that it needs.
        task: of the prompts.
        prompts: to be judged.

    Raises:
        ConfigError: no such function or kind, or only some of the prompts have the column.
    """
    value = structure("verifier", value)
    if value:
        return make_reward(
            {"kind": "function", "function": value} if isinstance(value, str) else value
        )
    without = [
        prompt for prompt in prompts if prompt.metadata.get(task.verifier_column) in (None, "")
    ]
    if task.verifier is None or len(without) == len(prompts):
        return None
    if without:
        there = ", ".join(without[0].metadata) or "none"
        raise ConfigError(
            f"{len(without)} of {len(prompts)} prompts have no {task.verifier_column!r} to be judged by, the first is "
            f"{without[0].id!r}, with: {there}; add it, leave them out, or name a verifier"
        )
    return make_reward(task.verifier)
