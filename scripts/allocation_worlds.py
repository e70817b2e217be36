"""The worlds of bench_allocation.py: plays recorded once with real models, and scripted ones.

    python scripts/allocation_worlds.py --runs RUNS [--only likelihood-choose-0-anytime]

records every world with the bundled models into RUNS/<world>-<split>-<seed>-<search>; a folder that
is complete is skipped, an interrupted one is resumed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from toa_trl.agents import Agent
from toa_trl.demo.world import DATA, accuracy_reward, verify
from toa_trl.rewards import make_reward
from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.types import Prompt, as_messages

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
WEIGHTS = ROOT / "toa_trl/demo/weights"
AGENTS = ("add", "subtract", "multiply", "generalist")
MAX_PLAYS = 96
SPLITS = {"choose": ("validation", "compare"), "heldout": ("heldout",), "costs": ("heldout",)}
# search_params of toa: "anytime" is recorded once and read at every number of plays; the width N/3
# of the paper depends on the budget, so that each budget is a run of its own
SEARCHES: dict[str, tuple[int, dict[str, Any]]] = {
    "anytime": (MAX_PLAYS, {"width": "anytime"}),
    "width32": (32, {}),
    "width48": (48, {}),
    "plays": (48, {"width": "anytime"}),
    "flops": (48, {"width": "anytime", "cost": "flops"}),
}


@dataclass(frozen=True)
class Setting:
    """One reward of the bundled world."""

    reward: Any  # an entry, or a function in TRL's signature
    tau: float
    dear: str | None = None  # the agent that is a large one


SETTINGS = {
    "likelihood": Setting(
        {
            "kind": "likelihood",
            "model": str(WEIGHTS / "base"),
            "aggregate": "sum",
            "floor": -4.0,
        },
        5.0,
    ),
    "hackable": Setting({"kind": "classifier", "model": str(WEIGHTS / "reward_hackable")}, 0.1),
    "verifiable": Setting(accuracy_reward, 0.1),
}
# It, with the specialists. The allrounder is four times as large; of the generalist, four times the
# FLOPs are counted: made twice as wide without training, it would write exactly the same.
DEAR = {"allrounder": 1.0, "generalist": 4.0}
for name in DEAR:
    SETTINGS[f"dear_{name}"] = replace(SETTINGS["likelihood"], dear=name)


@dataclass(frozen=True)
class World:
    """Recorded plays of many prompts, in order of play index; -1 where there is no parent."""

    rewards: np.ndarray  # (prompts, plays), raw
    flops: np.ndarray  # (prompts, plays), of the agents
    parents: np.ndarray  # (prompts, plays), play index of the draft that was refined, or -1
    depths: np.ndarray  # (prompts, plays)
    right: np.ndarray  # (prompts, plays), whether the verifier accepts the response


def prompts_of(split: str) -> list[dict[str, Any]]:
    """Return the problems of a split of SPLITS."""
    files = [(DATA / f"{name}.jsonl").read_text(encoding="utf-8") for name in SPLITS[split]]
    rows = [json.loads(line) for text in files for line in text.splitlines()]
    return rows[:240] if split == "costs" else rows


@cache
def agent_of(name: str, folder: Path, times: float = 1.0) -> Agent:
    """Return an agent, loaded once: it remembers from one recording to the next."""
    from scripts.allocation_engine import MemoAgent  # imports torch

    return MemoAgent(name, str(folder), times)


def agents_of(dear: str | None) -> list[Agent]:
    """Return the agents of a world.

    Args:
        dear: agent that is four times as large as the others, in place of the last.
    """
    agents = [agent_of(name, WEIGHTS / name) for name in AGENTS]
    if dear is not None:
        trained = WEIGHTS if dear in AGENTS else ROOT / "runs"  # by train_allrounder.py
        agents[-1] = agent_of(dear, trained / dear, DEAR[dear])
    return agents


@cache
def reward_of(world: str) -> Any:
    """Return the reward of a world."""
    from scripts.allocation_engine import MemoReward  # imports torch

    reward = SETTINGS[world].reward
    return reward if callable(reward) else MemoReward(make_reward(reward), reward)


def sampler_of(world: str, seed: int, budget: int, **options: Any) -> TOASampler:
    """Return a sampler over the bundled agents."""
    params = {"alpha": 0.05, "tau": SETTINGS[world].tau, **options.pop("search_params", {})}
    return TOASampler(
        agents_of(SETTINGS[world].dear),
        reward_of(world),
        search="toa",
        budget=budget,
        search_params=params,
        seed=seed,
        prompts_in_flight=512,
        sampling={"max_tokens": 64},
        task=str(ROOT / "toa_trl/demo/templates"),
        progress=False,
        **options,
    )


def record(runs: Path, world: str, split: str, seed: int, search: str) -> Path:
    """Sample a world into its folder, unless that is done, and return the folder."""
    folder = runs / f"{world}-{split}-{seed}-{search}"
    if not (folder / "plays.npz").exists():
        budget, params = SEARCHES[search]
        begin = time.perf_counter()
        sampler = sampler_of(world, seed, budget, search_params=params)
        rollouts = sampler.sample(prompts_of(split), folder, export=False)
        save(folder / "plays.npz", rollouts, budget)
        seconds = time.perf_counter() - begin
        print(f"{time.strftime('%H:%M:%S')} {folder.name}: {seconds:.0f} s", file=sys.stderr)
    return folder


def save(path: Path, rollouts: Rollouts, num_plays: int) -> None:
    """Write the arrays of a `World`."""
    columns: dict[str, list[list[float]]] = {name: [] for name in World.__annotations__}
    for rollout in rollouts:
        plays = rollout.scored[:num_plays]
        at = {play.index: number for number, play in enumerate(plays)}
        columns["rewards"].append([float(play.reward or 0) for play in plays])
        columns["flops"].append([float(done.flops or 0) for p in plays if (done := p.completion)])
        refs = [play.action.refs[0] if play.action.refs else -1 for play in plays]
        columns["parents"].append([at.get(ref, -1) for ref in refs])
        columns["depths"].append([play.action.depth for play in plays])
        answer = str(rollout.prompt.metadata.get("answer", ""))
        texts = [done.text for play in plays if (done := play.completion)]
        columns["right"].append([verify(text, answer) for text in texts])
    arrays = {name: np.array(rows, dtype=np.float64) for name, rows in columns.items()}
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, allow_pickle=False, **arrays)
    os.replace(part, path)


def load(folder: Path) -> World:
    """Read a recorded world."""
    with np.load(folder / "plays.npz") as arrays:
        whole = {name: arrays[name].astype(np.int64) for name in ("parents", "depths")}
        return World(
            rewards=arrays["rewards"], flops=arrays["flops"], right=arrays["right"] > 0, **whole
        )


def independent(rewards: np.ndarray) -> World:
    """Return a world of answers: every play costs the same, and none refines another."""
    ones = np.ones(rewards.shape)
    answers = np.zeros(rewards.shape, dtype=np.int64)
    return World(rewards, ones, answers - 1, answers, rewards >= 1)


def scripted(num_prompts: int = 1920, num_plays: int = 64) -> Iterator[tuple[str, World]]:
    """Yield worlds whose rewards are drawn, with their names."""
    rng, shape = np.random.default_rng(0), (num_prompts, num_plays)
    each = (num_prompts, 1)
    solvable = rng.random(each) < 0.8
    quality = rng.standard_normal(each)
    normal = rng.standard_normal(shape)
    worlds = {
        "constant": np.full(shape, 0.1),
        "pure noise": normal,
        "heavy-tailed": rng.standard_t(3, shape),
        "heavy-tailed, qualities": rng.standard_t(3, shape) + quality,
        "binary, 2 %": (rng.random(shape) < 0.02).astype(float),
        "binary, a fifth unsolvable": (solvable & (rng.random(shape) < 0.15)).astype(float),
        "a fifth stays low": np.where(solvable, np.minimum(normal + quality, 1), 0.3 * normal - 3),
    }
    for name, rewards in worlds.items():
        yield name, independent(rewards)
    drafts = normal + quality
    for play in range(4, num_plays):  # a refinement of the best so far, a little better on average
        drafts[:, play] = drafts[:, :play].max(axis=1) + 0.5 * normal[:, play] - 0.5
    yield "refined, no ceiling", independent(drafts)
    yield "refined, ceiling 2", independent(np.minimum(drafts, 2))


def translations(folder: Path) -> World:
    """Return chrF of the recorded outputs of several systems; a play is the next system's."""
    reward = make_reward({"kind": "chrf"})
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jsonl"))]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]

    async def score() -> list[list[float]]:
        return [
            await reward.score(
                Prompt(row["id"], as_messages(row["source"]), {"reference": row["reference"]}),
                list(row["outputs"].values()),
            )
            for row in rows
        ]

    return independent(np.array(asyncio.run(score())))


def recordings() -> Iterator[tuple[str, str, int, str]]:
    """Yield every recording, in the order in which they are needed."""
    worlds = [world for world, setting in SETTINGS.items() if setting.dear is None]
    for split, seeds in (("choose", (0,)), ("heldout", (0, 1, 2))):
        for seed in seeds:
            for world in worlds:
                yield world, split, seed, "anytime"
            if split == "heldout":
                for world in worlds:
                    yield world, split, seed, "width32"
                    yield world, split, seed, "width48"
    for world in [world for world in SETTINGS if world not in worlds]:
        for seed in (0, 1):
            yield world, "costs", seed, "plays"
            yield world, "costs", seed, "flops"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/allocation")
    parser.add_argument("--only", default="", help="part of the names of the recordings")
    args = parser.parse_args()
    for world, split, seed, search in recordings():
        if args.only in f"{world}-{split}-{seed}-{search}":
            record(args.runs, world, split, seed, search)


if __name__ == "__main__":
    main()
