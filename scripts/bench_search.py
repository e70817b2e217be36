"""Measure what a search itself costs per play, beside treequest's ABMCTSA, in one run.

python scripts/bench_search.py

CPU time, so that other processes disturb it less. treequest comes with the extra `test`; its 2,000
plays take minutes.
"""

import random
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median

from toa_trl.search import SEARCHES, make_search

AGENTS = ["a", "b", "c", "d", "e"]


def reward(rng: random.Random, parent: float | None) -> float:
    """As ArmoRM's rewards look: about 0.1, a refinement somewhat above its draft."""
    return rng.gauss(0.1 if parent is None else parent + 0.01, 0.05)


def run_ours(name: str, budget: int, seed: int) -> float:
    """Microseconds per play."""
    rng, rewards = random.Random(seed), dict[int, float]()
    search, spent = make_search(name, AGENTS, budget, seed), 0.0
    while not search.done:
        begin = time.process_time()
        ((play, action),) = search.ask()
        spent += time.process_time() - begin
        rewards[play] = reward(rng, rewards[action.refs[0]] if action.refs else None)
        begin = time.process_time()
        search.tell(play, rewards[play])
        spent += time.process_time() - begin
    return spent / budget * 1e6


def run_treequest(budget: int, seed: int) -> float:
    """Microseconds per play. Its scores must lie in [0, 1]."""
    from treequest import ABMCTSA

    rng = random.Random(seed)
    algorithm, spent = ABMCTSA(), 0.0
    state = algorithm.init_tree()
    for _ in range(budget):
        begin = time.process_time()
        state, trial = algorithm.ask(state, AGENTS)
        spent += time.process_time() - begin
        score = min(max(reward(rng, None), 0.0), 1.0)
        begin = time.process_time()
        state = algorithm.tell(state, trial.trial_id, ("response", score))
        spent += time.process_time() - begin
    return spent / budget * 1e6


def median_of_ours(name: str, budget: int) -> float:
    """The median over seeds of one of our searches."""
    return middle(partial(run_ours, name, budget), 7 if budget < 1000 else 3)


def middle(run: Callable[[int], float], repeats: int) -> float:
    """The median over seeds."""
    return median(run(seed) for seed in range(repeats))


def main() -> None:
    print("microseconds per play (median over seeds, 5 agents, one play at a time)\n")
    print(f"{'':24}{'160 plays':>12}{'2,000 plays':>14}")
    ours = {}
    for name in SEARCHES.built_in:
        ours[name] = [median_of_ours(name, budget) for budget in (160, 2000)]
        print(f"{name:24}{ours[name][0]:12.1f}{ours[name][1]:14.1f}")
    if find_spec("treequest") is None:
        print("treequest is not installed: pip install 'toa_trl[test]'")
        return
    theirs = [middle(partial(run_treequest, 160), 3)]
    print(f"{'treequest ABMCTSA':24}{theirs[0]:12.1f}", end="", flush=True)
    theirs.append(run_treequest(2000, 0))
    print(f"{theirs[1]:14.1f}")
    for name in ("toa", "ab_mcts"):
        ratios = [theirs[at] / ours[name][at] for at in range(2)]
        print(f"{f'  times that of {name}':24}{ratios[0]:12.0f}{ratios[1]:14.0f}")


if __name__ == "__main__":
    main()
