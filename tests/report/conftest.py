"""Fake runs: real searches, a simulated reward, and responses with hostile markup."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.helpers import number
from toa_trl import TOASampler
from toa_trl.agents import Agent
from toa_trl.rewards import RewardModel
from toa_trl.search import make_search
from toa_trl.types import Completion, Prompt

HOSTILE = (
    "</script><script>document.title = 'hacked'; alert(1)</script>"
    "<img src=x onerror=alert(2)><!--<script>"
)
NASTY = (
    HOSTILE,
    "Zoë ⟦数学⟧ 🧮 \u202eright to left\u202c \x00 nul",
    "very long " * 2000,
    "",
    "{{ 7 * 7 }} ${alert(3)} see http://example.com/x",
)
SKILL = {"adder": 0.15, "taker": 0.0, "multiplier": 0.3, "generalist": -0.1}
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        *[
            (name, pa.string())
            for name in (
                "prompt_id",
                "metadata",
                "agent",
                "kind",
                "response",
                "finish_reason",
                "error",
            )
        ],
        *[
            (name, pa.int64())
            for name in ("play", "parent", "depth", "prompt_tokens", "completion_tokens", "seed")
        ],
        *[(name, pa.float64()) for name in ("reward", "flops", "reward_flops")],
        ("prompt", MESSAGES),
        ("refs", pa.list_(pa.int64())),
    ]
)
Rows = list[dict[str, Any]]


def play_prompt(
    rng: random.Random, prompt_id: str, search: str, agents: list[str], budget: int, failures: float
) -> Rows:
    """Every play of one prompt."""
    moves = make_search(
        search,
        agents,
        budget,
        seed=rng.randrange(10**6),
        **({"tau": 0.5} if search == "toa" else {}),
    )
    suits = rng.choice(agents)  # the agent that is worth a play here
    rows: Rows = []
    while not moves.done and len(rows) < 4 * budget:
        for index, action in moves.ask(1):
            drafts = [rows[ref]["reward"] for ref in action.refs]
            failed = rng.random() < failures
            skill = SKILL.get(action.agent, 0.0) + (0.5 if action.agent == suits else 0)
            reward = (
                None
                if failed
                else rng.gauss(skill, 0.4) * 0.6 + (0.5 * max(drafts) + 0.15 if drafts else 0)
            )
            words = rng.randint(8, 60)
            text = (
                rng.choice(NASTY)
                if rng.random() < 0.1
                else "So 16 + 8 = 24, 24 - 6 = 18. " * (words // 8)
            )
            rows.append(
                {
                    "prompt_id": prompt_id,
                    "prompt": [
                        {
                            "role": "user",
                            "content": f"Eva has {len(prompt_id)} coins. How many? {HOSTILE}",
                        }
                    ],
                    "metadata": json.dumps({"answer": "54", "source": HOSTILE}),
                    "play": index,
                    "agent": action.agent,
                    "kind": action.kind,
                    "refs": list(action.refs),
                    "parent": action.parent,
                    "depth": action.depth,
                    "response": None if failed else text,
                    "reward": reward,
                    "finish_reason": None if failed else "length" if words > 55 else "stop",
                    "prompt_tokens": None if failed else 30 + 40 * len(drafts),
                    "completion_tokens": None if failed else words,
                    "flops": None if failed else 2e9 * (30 + 40 * len(drafts) + words),
                    "reward_flops": None if failed else 5e8 * words,
                    "seed": rng.randrange(2**31),
                    "error": rng.choice(["HTTP 503 from <server> 0xdeadbeef", "timeout after 60 s"])
                    if failed
                    else None,
                }
            )
            moves.fail(index) if reward is None else moves.tell(index, reward)
    return rows


def write_run(
    folder: Path,
    *,
    search: str = "toa",
    agents: Mapping[str, float] | list[str] = SKILL,
    num_prompts: int = 40,
    budget: int = 24,
    failures: float = 0.02,
    dpo: bool = True,
    change: Callable[[dict[str, Any]], Any] = lambda row: None,
) -> Rows:
    """Write a run's folder and return the rows of its rollouts; `change` may edit each row."""
    rng = random.Random(0)
    names = list(agents)
    rows: Rows = []
    for i in range(num_prompts):
        rows += play_prompt(rng, f"synthesis-{i:03}", search, names, budget, failures)
    for row in rows:
        change(row)
    half = (
        next(
            (
                i
                for i, row in enumerate(rows)
                if row["prompt_id"] == rows[len(rows) // 2]["prompt_id"]
            ),
            0,
        )
        + 3
        if rows
        else 0
    )
    for part, chunk in enumerate(
        (rows[:half], rows[half:])
    ):  # a file may end in the middle of a prompt
        write_table(folder / f"rollouts/part-{part}.parquet", pa.Table.from_pylist(chunk, SCHEMA))
    if dpo:
        write_training(folder, rows)
    run = {
        "search": search,
        "search_params": {"tau": 0.5} if search == "toa" else {},
        "budget": budget,
        "seed": 0,
        "plays_in_flight": 1,
        "sampling": {"temperature": 0.7, "top_p": 1.0, "max_tokens": 64},
        "agents": [
            {
                "name": n,
                "engine": "openai",
                "model": f"org/{n}",
                "base_url": "http://host",
                "api_key": "sk-1",
            }
            for n in names
        ],
        "reward": {"kind": "likelihood", "model": "base"},
        "prompts": "prompts.jsonl",
        "output_dir": str(folder),
        "versions": {"toa_trl": "0.1.0", "torch": "2.13.0"},
        "fingerprint": "f00dfacecafe",
        "started": "2026-11-22T13:00:00",
        "finished": "2026-11-22T13:03:20",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    return rows


def write_training(folder: Path, rows: Rows) -> None:
    by_prompt: dict[str, Rows] = {}
    for row in rows:
        if row["reward"] is not None:
            by_prompt.setdefault(row["prompt_id"], []).append(row)
    sft, dpo = [], []
    for prompt_id, plays in by_prompt.items():
        ranked = sorted(plays, key=lambda row: (-row["reward"], row["play"]))
        best, rank = ranked[0], max(2, round(len(ranked) * 30 / 160))
        prompt = best["prompt"]
        sft.append(
            {
                "prompt": prompt,
                "completion": assistant(best),
                "prompt_id": prompt_id,
                "reward": best["reward"],
            }
        )
        if rank <= len(ranked):
            worse = ranked[rank - 1]
            ranks = {"chosen_rank": 1, "rejected_rank": rank}
            sides = {"chosen": assistant(best), "rejected": assistant(worse)}
            scores = {"chosen_reward": best["reward"], "rejected_reward": worse["reward"]}
            who = {"chosen_agent": best["agent"], "rejected_agent": worse["agent"]}
            who |= {"chosen_play": best["play"], "rejected_play": worse["play"]}
            dpo.append(
                {"prompt": prompt, "prompt_id": prompt_id, **sides, **scores, **who, **ranks}
            )
    for name, table in (("sft", sft), ("dpo", dpo)):
        if table:
            write_table(folder / name / "train.parquet", pa.Table.from_pylist(table))


def assistant(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": row["response"]}]


def write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def make_results() -> dict[str, Any]:
    """results.json, as scripts/demo writes it."""
    student = {}
    for name, accuracy in (("base", 0.31), ("sft", 0.642), ("dpo", 0.655)):
        student[name] = {
            "accuracy": accuracy,
            "interval": [accuracy - 0.05, accuracy + 0.05],
            "sampled_accuracy": accuracy - 0.04,
            "sampled_interval": [accuracy - 0.07, accuracy - 0.01],
            "mean_reward": accuracy - 0.4,
            "num_problems": 300,
        }
    searches = []
    for i, name in enumerate(("best_of_n", "parallel", "prs", "sequential", "moa", "toa")):
        for j, budget in enumerate((8, 16, 32)):
            accuracy, cost = 0.3 + 0.07 * i * (0.5 + j / 4) + 0.1 * j, budget * (1 + 0.2 * i)
            row = {
                "name": name,
                "budget": budget,
                "accuracy": accuracy,
                "interval": [accuracy - 0.07, accuracy + 0.07],
            }
            row |= {
                "oracle_accuracy": accuracy + 0.05,
                "mean_best_reward": -0.4 + 0.1 * i + 0.1 * j,
            }
            row |= {"mean_top10_reward": -0.9 + 0.15 * i + 0.1 * j, "tokens": 90 * cost}
            searches.append(row | {"flops": 6e8 * cost, "reward_flops": 1e8 * budget})
    return {"student": student, "searches": searches}


class NastyAgent(Agent):
    """Answers with hostile texts."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def generate(self, *_: Any, seed: int, **__: Any) -> Completion:
        return Completion(f"{seed} {NASTY[seed % len(NASTY)]}", "stop", 30, 8, 2e9)


class SpreadReward(RewardModel):
    """Prompts differ in how far their rewards are from 0, the best."""

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        return [-4 * number(prompt.id) * number(prompt.id, text) for text in responses]


@pytest.fixture(scope="session")
def adaptive_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run with an adaptive allocation and hostile texts."""
    folder = tmp_path_factory.mktemp("runs") / "an <adaptive> run & more"
    sampler = TOASampler(
        [
            NastyAgent("adder"),
            NastyAgent("a_very_long_name/Meta-Llama-3.1-8B-Instruct_of_somebody"),
        ],
        SpreadReward(),
        budget=12,
        progress=False,
        allocation={"kind": "adaptive", "wave": 2},
    )
    prompts = [{"id": f"{i} {HOSTILE}", "prompt": f"Question {i}? {HOSTILE}"} for i in range(64)]
    rollouts = sampler.sample(prompts, folder)
    assert rollouts.unfinished == 0
    rollouts.save(folder)
    rollouts._journal.close()
    return folder


@pytest.fixture(scope="session", name="write_run")
def _write_run() -> Callable[..., Rows]:
    return write_run


@pytest.fixture(scope="session", name="results")
def _results() -> dict[str, Any]:
    return make_results()
