"""toa-algorithm.md, section TOA, written down straight.

Dictionaries, and a walk over the whole tree wherever it counts.

python -m tests.search.oracle     writes tests/golden/toa_small.json again
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden" / "toa_small.json"
CONFIGS: list[dict[str, Any]] = [
    {"num_agents": 3, "budget": 30, "width": 10, "alpha": 0.01, "tau": 0.1, "top_k": 1},
    {"num_agents": 1, "budget": 20, "width": 4, "alpha": 0.05, "tau": 1.0, "top_k": 1},
    {"num_agents": 2, "budget": 40, "width": 6, "alpha": 1.0, "tau": 0.5, "top_k": 2},
    {"num_agents": 4, "budget": 40, "width": 4, "alpha": 0.3, "tau": 0.02, "top_k": 3},
]
Choice = tuple[int, int | None, int | None, int]  # agent, refined play, parent in the tree, depth


def squash(reward: float, tau: float) -> float:
    """1 / (1 + exp(-r / tau)), without overflow."""
    try:
        return 1 / (1 + math.exp(-reward / tau))
    except OverflowError:
        return 0.0


def oracle(
    reward_of: Callable[[int], float],
    *,
    num_agents: int,
    budget: int,
    width: int,
    alpha: float,
    tau: float,
    top_k: int,
) -> list[Choice]:
    """Every choice of TOA, one play at a time, where play i gets reward_of(i)."""

    def arm(agent: int, above: Any, depth: int) -> dict[str, Any]:
        return {
            "is": "arm", "agent": agent, "above": above, "depth": depth, "fresh": False,
            "visits": 1, "n": 0, "total": 0.0, "children": [],
        }  # fmt: skip

    root: dict[str, Any] = {
        "is": "root",
        "visits": 1,
        "n": 0,
        "total": 0.0,
        "above": None,
        "s": -math.inf,
    }
    root["children"] = [arm(agent, root, 0) for agent in range(num_agents)]

    def responses(node: dict[str, Any]) -> list[dict[str, Any]]:
        below = [found for child in node["children"] for found in responses(child)]
        return [node, *below] if node["is"] == "response" else below

    def full(node: dict[str, Any]) -> bool:
        if node["is"] != "arm":
            return True
        if sum(r["above"]["depth"] == node["depth"] for r in responses(root)) < width:
            return False
        return node["above"] is root or any(r["s"] > node["above"]["s"] for r in node["children"])

    chosen: list[Choice] = []
    for play in range(budget):
        t = play + 1
        node = root
        while True:
            if node["is"] == "response" and node["visits"] == 1:
                for first in root["children"]:
                    fresh = arm(first["agent"], node, node["above"]["depth"] + 1)
                    fresh |= {
                        "fresh": True,
                        "visits": first["visits"],
                        "n": first["n"],
                        "total": first["total"],
                    }
                    node["children"].append(fresh)
            if not full(node):
                break
            candidates = node["children"]
            if node["is"] == "arm":  # of equal ones the latest: see toa_trl/search/toa.py
                candidates = sorted(candidates, key=lambda r: (r["s"], r["play"]), reverse=True)[
                    :top_k
                ]
            best, best_ucb = None, -math.inf
            for child in candidates:
                ucb = math.inf
                if child["n"]:
                    ucb = child["total"] / child["n"] + alpha * math.sqrt(
                        2 * math.log(t) / child["visits"]
                    )
                if best is None or ucb > best_ucb:
                    best, best_ucb = child, ucb
            assert best is not None
            node = best
        parent = None if node["above"] is root else node["above"]["play"]
        chosen.append((node["agent"], None if node["fresh"] else parent, parent, node["depth"]))
        s = squash(reward_of(play), tau)
        response: dict[str, Any] = {
            "is": "response", "above": node, "play": play, "s": s, "visits": 1, "n": 0,
            "total": 0.0,
        }  # fmt: skip
        response["children"] = [
            arm(agent, response, node["depth"] + 1) for agent in range(num_agents)
        ]
        node["children"].append(response)
        while node is not None:
            node["visits"] += 1
            node["n"] += 1
            node["total"] += s
            node = node["above"]
    return chosen


def golden() -> list[dict[str, Any]]:
    """The small golden traces, in the form of the large ones."""
    traces = []
    for seed, config in enumerate(CONFIGS):
        rng = random.Random(seed)
        rewards = [round(rng.gauss(0, 0.3), 6) for _ in range(config["budget"])]
        plays = oracle(rewards.__getitem__, **config)
        traces.append(
            {
                "config": config,
                "plays": [
                    {"agent": agent, "parent": refined, "depth": depth, "reward": reward}
                    for (agent, refined, _, depth), reward in zip(plays, rewards, strict=True)
                ],
            }
        )
    return traces


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(trace) for trace in golden())
    GOLDEN.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
