"""How often the outputs of one model beat a baseline's, by reward, verifier or judge, plainly and at matched length.

An outcome is one prompt's: 1 a win, 0.5 a tie, 0 a loss, or a share between them where a judge was asked in both
orders; None where something failed, which is counted and left out, never guessed.

At matched length: judges and reward models like long answers, so that a win rate may be a measure of length.
AlpacaEval 2 asks what the rate would be at equal length, by a logistic regression (Dubois et al. 2024, arXiv
2404.04475). The question here is the same; the answer is the win rate over those pairs whose lengths differ by a
factor of MATCHED at most, where the pairs in which the model is the longer one weigh as much together as those in
which it is the shorter one. Nothing is fitted or extrapolated, swapping the models gives 1 - rate, a judge that only
looks at length gives one half, and where such pairs are too few, no rate is given. Of 805 AlpacaEval prompts and ten
pairs of strong models, 33 to 49 % of the pairs were such.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toa_trl.errors import RewardError
from toa_trl.evaluation.accuracy import Scores
from toa_trl.evaluation.intervals import bootstrap
from toa_trl.evaluation.outputs import Outputs, counting_bar
from toa_trl.rewards.base import is_finite
from toa_trl.tasks import Task
from toa_trl.types import Prompt, Score

Floats = NDArray[np.float64]
logger = logging.getLogger(__name__)

MATCHED = 1.2  # the longer of a pair is at most so many times as long as the other
FEWEST_MATCHED = 10.0  # effective number of pairs; below it no rate is given
NUM_AT_ONCE = 128  # comparisons; how many requests are in flight, the judge's agent decides


class Judge(Protocol):
    """Compares two responses; `toa_trl.rewards.judge.JudgeReward` does, with mode pairwise or arena."""

    async def compare(self, prompt: Prompt, a: str, b: str) -> Score:
        """The share for `a` in [0, 1]. One with a `weight` counts so many times.

        Raises:
            RewardError: no verdict.
        """


@dataclass(frozen=True)
class WinRate:
    """Of one model against a baseline. Rates are in [0, 1] with ties counted half; intervals are 95 %, over prompts."""

    win_rate: (
        float | None
    )  # None where every outcome is missing; of arena verdicts Arena-Hard's figure
    interval: tuple[float, float] | None
    win_rate_matched_length: float | None  # None where `reason` says why
    interval_matched_length: tuple[float, float] | None
    num_matched: int  # pairs that it rests on
    num_wins: int  # outcomes above one half
    num_ties: int
    num_losses: int
    num_failed: int
    mean_length: float | None  # words, of the responses that were compared
    baseline_mean_length: float | None
    reason: str | None  # why a rate is missing

    def as_json(self) -> dict[str, Any]:
        """All fields, so that rows of several models have one shape."""
        return asdict(self)


async def win_rates(
    baseline: str,
    prompts: Sequence[Prompt],
    task: Task,
    outputs: Mapping[str, Sequence[Outputs]],
    scores: Mapping[str, Scores],
    judge: Judge | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """The greedy responses of every model against the baseline's.

    Args:
        baseline: one of the models.
        prompts: what was asked.
        task: says what the judge sees of a prompt.
        outputs: of each model, in the order of the prompts.
        scores: of each model's outputs.
        judge: asked for each pair, if there is one.
        progress: show a progress bar.

    Returns:
        {model, baseline, by: "reward" | "verifier" | "judge", and the fields of `WinRate`}, as far as measured.

    Raises:
        Unavailable: none of the judge's servers answers any more.
    """
    rows = []
    for name in (name for name in outputs if name != baseline):
        ours, theirs = ([each.greedy for each in outputs[model]] for model in (name, baseline))
        outcomes = {
            "reward": by_scores(scores[name].reward, scores[baseline].reward),
            "verifier": by_scores(scores[name].verifier, scores[baseline].verifier),
        }
        if judge is not None:
            asked = [task.judged(prompt) for prompt in prompts]
            texts, against = ([output.text for output in side] for side in (ours, theirs))
            outcomes["judge"] = await by_judge(judge, asked, texts, against, progress)
        lengths = [[output.num_words for output in side] for side in (ours, theirs)]
        rows += [
            {
                "model": name,
                "baseline": baseline,
                "by": by,
                **win_rate_of(found, *lengths).as_json(),
            }
            for by, found in outcomes.items()
            if found  # nothing where no such score was taken
        ]
    return rows


def by_scores(
    scores: Sequence[float | None], baseline_scores: Sequence[float | None]
) -> list[Score | None]:
    """Outcomes by two lists of scores of the same prompts; equal scores are a tie.

    Args:
        scores: of a reward model or a verifier; None where there is none.
        baseline_scores: the baseline's, in the same order.
    """
    outcomes: list[Score | None] = []
    for ours, theirs in zip(scores, baseline_scores, strict=True):
        if is_finite(ours) and is_finite(theirs):
            outcomes.append(Score(1.0 if ours > theirs else 0.0 if ours < theirs else 0.5))
        else:
            outcomes.append(None)
    return outcomes


async def by_judge(
    judge: Judge,
    prompts: Sequence[Prompt],
    responses: Sequence[str | None],
    baseline_responses: Sequence[str | None],
    progress: bool = True,
) -> list[Score | None]:
    """Outcomes by a judge, in the order of the prompts; None where a response is missing or the judge gave no verdict.

    Args:
        judge: asked for each pair.
        prompts: what was asked.
        responses: the model's; None where there is none.
        baseline_responses: the baseline's.
        progress: show a progress bar.

    Raises:
        Unavailable: none of the judge's servers answers any more.
    """
    outcomes: list[Score | None] = [None] * len(prompts)
    left = iter(enumerate(zip(prompts, responses, baseline_responses, strict=True)))
    failures = Counter[str]()
    bar = counting_bar(progress)
    task = bar.add_task("judge", total=len(prompts))

    async def work() -> None:
        for at, (prompt, response, against) in left:
            try:
                if response is None or against is None:
                    raise RewardError("a response is missing")
                outcomes[at] = await judge.compare(prompt, response, against)
            except RewardError as error:
                failures[str(error)] += 1
            bar.advance(task)

    with bar:
        await asyncio.gather(*(work() for _ in range(min(NUM_AT_ONCE, len(prompts)))))
    if failures:
        reason = failures.most_common(1)[0][0]
        logger.warning(
            "%d of %d comparisons failed, most often: %s", failures.total(), len(prompts), reason
        )
    return outcomes


def win_rate_of(
    outcomes: Sequence[Score | None],
    lengths: Sequence[float | None],
    baseline_lengths: Sequence[float | None],
) -> WinRate:
    """One model's win rate.

    Args:
        outcomes: one per prompt, as `by_scores` and `by_judge` return them.
        lengths: of the model's responses, in words; None only where there is no response.
        baseline_lengths: of the baseline's.
    """
    pairs = [
        (outcome.value, outcome.weight, float(length), float(against))
        for outcome, length, against in zip(outcomes, lengths, baseline_lengths, strict=True)
        if outcome is not None and length is not None and against is not None
    ]
    pairs.sort()  # the bootstrap draws by place: so the order of the prompts does not matter
    shares, weights, ours, theirs = np.array(pairs, dtype=np.float64).reshape(-1, 4).T
    matched = _matched(ours, theirs)
    enough = (
        matched.sum() ** 2 >= FEWEST_MATCHED * (matched**2).sum() > 0
    )  # Kish's effective number
    rate, interval = _rate(shares, weights) if pairs else (None, None)
    rate_matched, interval_matched = _rate(shares, weights * matched) if enough else (None, None)
    reason = None
    if not pairs:
        reason = "every outcome is missing"
    elif not enough:
        reason = f"too few of {len(pairs)} pairs differ in length by a factor of {MATCHED:g} at most, in either direction"
    return WinRate(
        win_rate=rate,
        interval=interval,
        win_rate_matched_length=rate_matched,
        interval_matched_length=interval_matched,
        num_matched=int((matched > 0).sum()),
        num_wins=int((shares > 0.5).sum()),
        num_ties=int((shares == 0.5).sum()),
        num_losses=int((shares < 0.5).sum()),
        num_failed=len(outcomes) - len(pairs),
        mean_length=float(ours.mean()) if pairs else None,
        baseline_mean_length=float(theirs.mean()) if pairs else None,
        reason=reason,
    )


def _matched(ours: Floats, theirs: Floats) -> Floats:
    """The weight of each pair at matched length: 0 outside of it, 1 on average inside, half of it on either side."""
    inside = np.maximum(ours, theirs) <= MATCHED * np.minimum(ours, theirs)
    longer, shorter = inside & (ours > theirs), inside & (ours < theirs)
    weights: Floats = (inside & (ours == theirs)).astype(np.float64)
    if longer.any() and shorter.any():
        for side in (longer, shorter):
            weights[side] = (longer.sum() + shorter.sum()) / 2 / side.sum()
    return weights


def _rate(shares: Floats, weights: Floats) -> tuple[float, tuple[float, float]]:
    """sum(weight * share) / sum(weight), and the bootstrap of its linear part: the plain one where weights are 1."""
    shares, weights = shares[weights > 0], weights[weights > 0]
    rate = float((weights * shares).sum() / weights.sum())
    low, high = bootstrap(list(rate + weights * (shares - rate) / weights.mean()))
    return rate, (max(0.0, low), min(1.0, high))
