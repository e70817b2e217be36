"""How often the outputs of one model beat a baseline's, by reward, verifier or judge.

The outcome of one prompt is 1 for a win, 0.5 for a tie, 0 for a loss, or a share between them where
a judge was asked in both orders; None where something failed, which is counted and left out.

At matched length: judges and reward models prefer long answers, so that a win rate may measure
length. AlpacaEval 2 estimates the rate at equal length with a logistic regression (Dubois et al.
2024, arXiv 2404.04475). Here it is the win rate over those pairs whose lengths differ by a factor
of MATCHED at most; those in which the model is longer weigh as much together as those in which it
is shorter. Nothing is fitted or extrapolated, swapping the models gives 1 - rate, a judge that only
looks at length gives one half, and no rate is given where such pairs are too few. Of 805 AlpacaEval
prompts and ten pairs of strong models, 33 to 49 % of the pairs were matched.
"""

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
from toa_trl.tasks import Task
from toa_trl.types import Prompt, Score, is_finite

Floats = NDArray[np.float64]
logger = logging.getLogger(__name__)

MATCHED = 1.2  # the longer response is at most this many times as long as the other
FEWEST_MATCHED = 10.0  # effective number of pairs, below which no rate is given
NUM_AT_ONCE = 128  # comparisons; the judge's agent limits its requests in flight


class Judge(Protocol):
    """Compares two responses, like `JudgeReward` with mode pairwise or arena."""

    async def compare(self, prompt: Prompt, a: str, b: str) -> Score:
        """Return the share for `a` in [0, 1], with the `weight` of the verdict.

        Raises:
            RewardError: the judge gave no verdict.
        """


@dataclass(frozen=True)
class WinRate:
    """Win rate of one model against a baseline.

    Rates are in [0, 1], ties count half; intervals are 95 %, over prompts.
    """

    win_rate: float | None  # None without any outcome; of arena verdicts Arena-Hard's figure
    interval: tuple[float, float] | None
    win_rate_matched_length: float | None  # None where `reason` says why
    interval_matched_length: tuple[float, float] | None
    num_matched: int  # pairs of matched length
    num_wins: int  # outcomes above one half
    num_ties: int
    num_losses: int
    num_failed: int
    mean_length: float | None  # words, of the responses that were compared
    baseline_mean_length: float | None
    reason: str | None  # why a rate is missing

    def as_json(self) -> dict[str, Any]:
        """Return all fields, so that the rows of several models have one shape."""
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
    """Compare the greedy responses of every model with the baseline's.

    Args:
        baseline: one of the models.
        prompts: what was asked.
        task: decides what the judge sees of a prompt.
        outputs: of each model, in the order of the prompts.
        scores: of each model's outputs.
        judge: asked for each pair, if there is one.
        progress: show a progress bar.

    Returns:
        {model, baseline, by: "reward" | "verifier" | "judge", and the fields of `WinRate`} for
        everything that was measured.

    Raises:
        Unavailable: none of the judge's servers answers.
    """
    theirs = [output.greedy for output in outputs[baseline]]
    their_texts = [output.text for output in theirs]
    their_lengths = [output.num_words for output in theirs]
    rows = []
    for name in outputs:
        if name == baseline:
            continue
        ours = [output.greedy for output in outputs[name]]
        outcomes = {
            "reward": by_scores(scores[name].reward, scores[baseline].reward),
            "verifier": by_scores(scores[name].verifier, scores[baseline].verifier),
        }
        if judge is not None:
            judged = [task.judged(prompt) for prompt in prompts]
            texts = [output.text for output in ours]
            outcomes["judge"] = await by_judge(judge, judged, texts, their_texts, progress)
        lengths = [output.num_words for output in ours]
        for by, values in outcomes.items():
            if values:  # empty where no such score was measured
                rate = win_rate_of(values, lengths, their_lengths)
                rows.append({"model": name, "baseline": baseline, "by": by, **rate.as_json()})
    return rows


def by_scores(
    scores: Sequence[float | None], baseline_scores: Sequence[float | None]
) -> list[Score | None]:
    """Return outcomes by two lists of scores of the same prompts; equal scores are a tie.

    Args:
        scores: by a reward model or a verifier; None where it failed.
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
    """Return outcomes by a judge, in the order of the prompts.

    An outcome is None where a response is missing or the judge gave no verdict.

    Args:
        judge: asked for each pair.
        prompts: what was asked.
        responses: the model's; None where there is none.
        baseline_responses: the baseline's.
        progress: show a progress bar.

    Raises:
        Unavailable: none of the judge's servers answers.
    """
    outcomes: list[Score | None] = [None] * len(prompts)
    pending = iter(enumerate(zip(prompts, responses, baseline_responses, strict=True)))
    failures = Counter[str]()
    bar = counting_bar(progress)
    task = bar.add_task("judge", total=len(prompts))

    async def work() -> None:
        for index, (prompt, response, against) in pending:
            try:
                if response is None or against is None:
                    raise RewardError("a response is missing")
                outcomes[index] = await judge.compare(prompt, response, against)
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
    """Return one model's win rate.

    Args:
        outcomes: one per prompt, as `by_scores` and `by_judge` return them.
        lengths: of the model's responses, in words; None only where there is no response.
        baseline_lengths: of the baseline's.
    """
    pairs = []
    for outcome, length, against in zip(outcomes, lengths, baseline_lengths, strict=True):
        if outcome is not None and length is not None and against is not None:
            pairs.append((outcome.value, outcome.weight, float(length), float(against)))
    pairs.sort()  # the bootstrap draws by index; the order of the prompts must not matter
    shares, weights, ours, theirs = np.array(pairs, dtype=np.float64).reshape(-1, 4).T
    matched = _matched(ours, theirs)
    # Kish's effective number of pairs, (sum w)^2 / sum w^2
    enough = matched.sum() ** 2 >= FEWEST_MATCHED * (matched**2).sum() > 0
    rate, interval = _rate(shares, weights) if pairs else (None, None)
    rate_matched, interval_matched = _rate(shares, weights * matched) if enough else (None, None)
    reason = None
    if not pairs:
        reason = "every outcome is missing"
    elif not enough:
        reason = (
            f"too few of {len(pairs)} pairs differ in length by a factor of {MATCHED:g} at most, "
            "in either direction"
        )
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
    """Return the weight of each pair at matched length.

    It is 0 for other pairs, 1 on average for matched ones, and equal in sum where the model's
    response is longer and where it is shorter.
    """
    inside = np.maximum(ours, theirs) <= MATCHED * np.minimum(ours, theirs)
    longer, shorter = inside & (ours > theirs), inside & (ours < theirs)
    weights: Floats = (inside & (ours == theirs)).astype(np.float64)
    if longer.any() and shorter.any():
        for side in (longer, shorter):
            weights[side] = (longer.sum() + shorter.sum()) / 2 / side.sum()
    return weights


def _rate(shares: Floats, weights: Floats) -> tuple[float, tuple[float, float]]:
    """Return sum(weight * share) / sum(weight), with the bootstrap interval of its linear part."""
    shares, weights = shares[weights > 0], weights[weights > 0]
    rate = float((weights * shares).sum() / weights.sum())
    low, high = bootstrap(list(rate + weights * (shares - rate) / weights.mean()))
    return rate, (max(0.0, low), min(1.0, high))
