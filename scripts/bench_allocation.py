"""Measure the adaptive allocation: each figure beside its baseline and its goal.

    python scripts/allocation_worlds.py --runs runs/allocation     # records the plays; hours
    python scripts/bench_allocation.py --runs runs/allocation [--compare | --costs] [--wmt FOLDER]

The decisions are those of `toa_trl.sampling.allocation.waves`, replayed over recorded plays: a
search that is anytime plays the same, whoever decides when. Plays are real, FLOPs are those of the
agents. Intervals: 95 %, bootstrap over prompts, paired, with the decisions as they were.

saving      FLOPs of the adaptive run until its mean best reward reaches that of uniform toa with
            the paper's width N/3, in proportion to the FLOPs of that one.
hard tail   Accuracy of the selected response, on the tenth of the prompts with the lowest mean
            reward over all recorded plays, at the FLOPs of 16 uniform plays.
scripted    Mean best reward of scripted worlds at 16 plays per prompt, less that of uniform.
compare     The same for every estimator, on the validation split.
costs       Saving, against 16 and 32 uniform plays, in worlds where one agent is four times as
            large as the others: costs weighed by the search, by the allocation, by both.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toa_trl.sampling.allocation.gain import GainEstimator
from toa_trl.sampling.allocation.history import History, Objective, state
from toa_trl.sampling.allocation.waves import Waves

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from scripts.allocation_estimators import ESTIMATORS, five_features  # noqa: E402
from scripts.allocation_worlds import World, load, scripted, translations  # noqa: E402

GOALS = {("likelihood", 32): 0.35, ("likelihood", 48): 0.30, ("verifiable", 32): 0.25}
GOALS |= {("hackable", 32): 0.72, ("hackable", 48): 0.64}
NUM_RESAMPLES = 1000
MIN_PLAYS, WAVE = 4, 2


@dataclass(frozen=True)
class Curve:
    """What a run has reached at each point of its spending; every array is (points, prompts)."""

    plays: np.ndarray
    best: np.ndarray
    flops: np.ndarray
    right: np.ndarray  # whether the response with the best reward is right

    def upto(self, point: int) -> Curve:
        """Return the curve that ends there."""
        end = point + 1
        return Curve(self.plays[:end], self.best[:end], self.flops[:end], self.right[:end])

    def last(self, num_flops: float) -> int:
        """Return the last point that needs no more than these mean FLOPs."""
        means = self.flops.mean(axis=1)
        return max(0, int(np.searchsorted(means, num_flops, "right")) - 1)


def replay(
    world: World,
    estimator: GainEstimator,
    budget: int,
    *,
    stop_reward: float | None = None,
    min_plays: int = MIN_PLAYS,
    wave: int = WAVE,
    by_flops: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the plays granted to each prompt, after every round; shape (prompts,)."""
    num_prompts, most = world.rewards.shape
    waves = Waves(
        num_prompts=num_prompts,
        budget=budget,
        min_plays=min_plays,
        max_plays=most,
        wave=wave,
        objective=Objective("best"),
        stop_reward=stop_reward,
        estimator=estimator,
        # as many numbers as the estimator knows; those of five features are slow to find
        state=state if type(estimator) is GainEstimator else five_features,
    )
    rewards = world.rewards.tolist()
    costs = (world.flops if by_flops else np.ones_like(world.flops)).cumsum(axis=1)
    while (grants := waves.decide()) is not None:
        for grant in grants:
            p, n = grant.prompt, grant.plays
            waves.complete(p, History(rewards[p][:n], float(costs[p, n - 1])))
        yield waves.granted.copy()


def curve_of(world: World, points: Iterator[np.ndarray]) -> Curve:
    """Return the curve of a run from the plays of each prompt at each point."""
    plays = np.array([point for point in points if (point > 0).all()])
    best = np.maximum.accumulate(world.rewards, axis=1)
    first = np.argmax(world.rewards[:, None, :] == best[:, :, None], axis=2)
    right = np.take_along_axis(world.right, first, axis=1)
    at = np.arange(plays.shape[1]), plays - 1
    return Curve(plays, best[at], world.flops.cumsum(axis=1)[at], right[at])


def uniform_of(world: World, numbers: list[int]) -> Curve:
    """Return the curve of a uniform allocation, at these numbers of plays."""
    num_prompts = len(world.rewards)
    return curve_of(world, iter(np.full(num_prompts, number) for number in numbers))


def saving(adaptive: Curve, uniform: Curve) -> tuple[float, float, float]:
    """Return the share of FLOPs at equal mean best reward, and its interval; NaN: not reached."""
    num_prompts = adaptive.best.shape[1]
    rng = np.random.default_rng(0)
    draws = rng.multinomial(num_prompts, [1 / num_prompts] * num_prompts, size=NUM_RESAMPLES)
    weights = np.concatenate([np.ones((1, num_prompts)), draws])
    reached = weights @ adaptive.best.T >= (weights @ uniform.best[-1])[:, None] - 1e-9
    first = reached.argmax(axis=1)
    spent = np.take_along_axis(weights @ adaptive.flops.T, first[:, None], axis=1)[:, 0]
    shares = np.where(reached.any(axis=1), spent / (weights @ uniform.flops[-1]), np.inf)
    low, high = np.quantile(shares[1:], [0.025, 0.975], method="nearest")
    return float(shares[0]), float(low), float(high)


def mean_interval(differences: np.ndarray) -> str:
    """Return the mean of paired differences with its interval."""
    rng = np.random.default_rng(0)
    draws = rng.choice(differences, (NUM_RESAMPLES, len(differences))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{differences.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def joined(curves: list[Curve]) -> Curve:
    """Return one curve over seeds: the mean of every prompt over them, at equal plays."""
    length = min(len(curve.plays) for curve in curves)
    names = ("plays", "best", "flops", "right")
    arrays = [np.mean([getattr(c, name)[:length] for c in curves], axis=0) for name in names]
    return Curve(*arrays)


def judge(runs: Path, reward: str, split: str, make: Callable[[], GainEstimator]) -> Iterator[str]:
    """Yield the lines of the table of one recorded world."""
    folders = sorted(runs.glob(f"{reward}-{split}-*-anytime/plays.npz"))
    if not folders:
        return
    worlds = [load(path.parent) for path in folders]
    most = min(world.rewards.shape[1] for world in worlds)
    stop = 1.0 if reward == "verifiable" else None
    budget = min(most, 44) if stop is None else most
    adaptive = joined(
        [curve_of(world, replay(world, make(), budget, stop_reward=stop)) for world in worlds]
    )
    seeds = f"{len(worlds)} seed(s), {most} plays recorded"
    for number in (16, 24, 32, 48):
        for width in ("anytime", f"width{number}"):
            names = [
                path.parent.name.replace("anytime", width)
                for path in folders
                if (runs / path.parent.name.replace("anytime", width) / "plays.npz").exists()
            ]
            own = [load(runs / name) for name in names]
            if len(own) < len(worlds) or own[0].rewards.shape[1] < number:
                continue
            uniform = joined([uniform_of(world, [number]) for world in own])
            share, low, high = saving(adaptive, uniform)
            goal = GOALS.get((reward, number), None) if split == "heldout" else None
            yield (
                f"{reward:10} uniform toa({number}), {width:8} best {uniform.best.mean():.3f}  "
                f"FLOPs at equal best {share:.3f} [{low:.3f}, {high:.3f}]"
                f"{'' if goal is None else f'  goal <= {goal}'}  ({seeds})"
            )
    means = np.mean([world.rewards.mean(axis=1) for world in worlds], axis=0)
    hard = np.argsort(means, kind="stable")[: len(means) // 10]
    at_16 = joined([uniform_of(world, [min(16, most)]) for world in worlds])
    right = adaptive.right[adaptive.last(float(at_16.flops.mean()))]
    yield (
        f"{reward:10} hardest tenth: accuracy {right[hard].mean():.3f}, uniform 16 plays "
        f"{at_16.right[0, hard].mean():.3f}, difference "
        f"{mean_interval(right[hard] - at_16.right[0, hard])}"
    )


def judge_scripted(make: Callable[[], GainEstimator], budget: int = 16) -> Iterator[str]:
    """Yield the lines of the scripted worlds."""
    for name, world in scripted():
        *_, granted = replay(world, make(), budget)
        adaptive = curve_of(world, iter([granted]))
        uniform = uniform_of(world, [budget])
        difference = mean_interval(adaptive.best[0] - uniform.best[0])
        yield f"{name:24} best less uniform's {uniform.best.mean():.3f}: {difference}"


def judge_translations(folder: Path, make: Callable[[], GainEstimator]) -> Iterator[str]:
    """Yield the lines of recorded outputs of six systems, one of which is a play."""
    world = translations(folder)
    for budget in (2, 3, 4):
        *_, granted = replay(world, make(), budget, min_plays=1, wave=1)
        adaptive = curve_of(world, iter([granted]))
        uniform = uniform_of(world, [budget])
        difference = mean_interval(adaptive.best[0] - uniform.best[0])
        baseline = f"less uniform's {uniform.best.mean():.2f}"
        yield f"wmt22, {budget} plays: best chrF {baseline}: {difference}"


def compare(runs: Path) -> Iterator[str]:
    """Yield what every estimator reaches on the validation split."""
    for reward in ("likelihood", "hackable"):
        for path in sorted(runs.glob(f"{reward}-choose-*-anytime/plays.npz")):
            world = load(path.parent)
            numbers = [8, 10, 12, 16, 20]
            means = uniform_of(world, numbers).best.mean(axis=1)
            yield f"{reward:10} {'plays per prompt':28}" + "".join(f"{n:8}" for n in numbers)
            yield f"{reward:10} {'uniform':28}" + "".join(f"{mean:8.3f}" for mean in means)
            for name, make in ESTIMATORS.items():
                curve = curve_of(world, replay(world, make(), numbers[-1]))
                plays, best = curve.plays.mean(axis=1), curve.best.mean(axis=1)
                cells = [best[max(0, np.searchsorted(plays, n, "right") - 1)] for n in numbers]
                yield f"{reward:10} {name:28}" + "".join(f"{cell:8.3f}" for cell in cells)


def judge_costs(runs: Path, make: Callable[[], GainEstimator]) -> Iterator[str]:
    """Yield what weighing costs saves in the worlds with one dear agent."""
    names = sorted({path.parent.name for path in runs.glob("dear_*-costs-*-plays/plays.npz")})
    for world in sorted({name.partition("-")[0] for name in names}):
        own = [name for name in names if name.startswith(f"{world}-")]
        recorded = {
            by: [load(runs / name.replace("-plays", f"-{by}")) for name in own]
            for by in ("plays", "flops")
        }
        numbers = list(range(MIN_PLAYS, recorded["plays"][0].rewards.shape[1] + 1))
        budget = min(44, numbers[-1])
        curves = {}
        for toa, worlds in recorded.items():
            curves["uniform", toa] = joined([uniform_of(each, numbers) for each in worlds])
            for by in ("plays", "flops"):
                curves[f"adaptive by {by}", toa] = joined(
                    [curve_of(w, replay(w, make(), budget, by_flops=by == "flops")) for w in worlds]
                )
        base = curves["uniform", "plays"]
        for (label, toa), curve in curves.items():
            mean = (curve.flops[-1] / curve.plays[-1]).mean()
            line = f"{world} {label}, toa by {toa}: FLOPs of a play {mean:.3g}, FLOPs at equal best"
            for number in (16, 32):
                share, low, high = saving(curve, base.upto(number - MIN_PLAYS))
                line += f" of {number} plays {share:.3f} [{low:.3f}, {high:.3f}]"
            yield f"{line}  ({len(own)} seed(s))"
        other = curves["uniform", "flops"]
        for spent in (8, 16, 32):
            point = spent - MIN_PLAYS
            last = other.last(float(base.flops[point].mean()))
            difference = mean_interval(other.best[last] - base.best[point])
            yield f"{world} at the FLOPs of {spent} plays by plays: best reward {difference}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/allocation")
    parser.add_argument("--compare", action="store_true", help="compare the estimators instead")
    parser.add_argument("--costs", action="store_true", help="judge the weighing of costs instead")
    parser.add_argument("--wmt", type=Path, help="folder of JSONL files with six systems' outputs")
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default=next(iter(ESTIMATORS)))
    args = parser.parse_args()
    make = ESTIMATORS[args.estimator]

    def lines() -> Iterator[str]:
        if args.compare:
            yield from compare(args.runs)
            return
        if args.costs:
            yield from judge_costs(args.runs, make)
            return
        for reward in ("likelihood", "hackable", "verifiable"):
            yield from judge(args.runs, reward, "heldout", make)
        yield from judge_scripted(make)
        if args.wmt is not None:
            yield from judge_translations(args.wmt, make)

    for line in lines():
        print(time.strftime("%H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    main()
