"""The selected responses of compared searches: a second reward, and win rates over a baseline."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from statistics import mean
from typing import Any

from toa_trl.errors import RewardError
from toa_trl.evaluation.comparison import Run, SearchResult
from toa_trl.evaluation.winrate import Judge, by_judge, by_scores, win_rate_of
from toa_trl.tasks import Task
from toa_trl.types import Prompt, Score


async def add_second_rewards(
    results: Mapping[Run, SearchResult], prompts: Mapping[str, Prompt], task: Task, model: Any
) -> None:
    """Score every selected response with a reward model that no search has seen.

    Adds "second_reward" to the rows; a response that cannot be scored gets none.

    Args:
        results: of every run.
        prompts: by id.
        task: decides what the model sees of a prompt.
        model: the reward model.
    """

    async def add(result: SearchResult, prompt_id: str) -> None:
        response = result.selected[prompt_id].text
        with suppress(RewardError):
            (score,) = await model.score(task.judged(prompts[prompt_id]), [response])
            result.rows[prompt_id]["second_reward"] = score

    for result in results.values():
        await asyncio.gather(*(add(result, prompt_id) for prompt_id in result.rows))


async def selected_win_rates(
    results: Mapping[Run, SearchResult],
    prompts: Mapping[str, Prompt],
    task: Task,
    baseline: str,
    baseline_budget: int | None,
    judge: Judge | None,
) -> list[dict[str, Any]]:
    """Return how often the selected responses of every search beat those of the baseline.

    Args:
        results: of every run; the baseline has the same seeds as the others.
        prompts: by id.
        task: decides what the judge sees of a prompt.
        baseline: label of the search that the others are compared with.
        baseline_budget: budget of the baseline; None: that of the search compared with it.
        judge: compares pairs of responses; None: only second rewards are compared.

    Returns:
        {"name", "baseline", "budget", "baseline_budget", "by": "second_reward" or "judge", and the
        fields of `WinRate`}. Of several seeds, a prompt counts with the mean of its outcomes.
    """
    rows = []
    for search, budget in dict.fromkeys((run.search, run.budget) for run in results):
        against = budget if baseline_budget is None else baseline_budget
        if (search, budget) == (baseline, against):
            continue
        seeds = [run.seed for run in results if (run.search, run.budget) == (search, budget)]
        pairs = [
            (results[Run(search, budget, seed)], results[Run(baseline, against, seed)])
            for seed in seeds
        ]
        common = set(prompts)
        for ours, theirs in pairs:
            common &= ours.rows.keys() & theirs.rows.keys()
        shared = [prompt_id for prompt_id in prompts if prompt_id in common]
        outcomes: dict[str, list[list[Score | None]]] = {}
        for ours, theirs in pairs:
            scores = [ours.rows[prompt_id].get("second_reward") for prompt_id in shared]
            their_scores = [theirs.rows[prompt_id].get("second_reward") for prompt_id in shared]
            if any(score is not None for score in scores):
                outcomes.setdefault("second_reward", []).append(by_scores(scores, their_scores))
            if judge is not None:
                asked = [task.judged(prompts[prompt_id]) for prompt_id in shared]
                texts = [ours.selected[prompt_id].text for prompt_id in shared]
                their_texts = [theirs.selected[prompt_id].text for prompt_id in shared]
                judged = await by_judge(judge, asked, texts, their_texts)
                outcomes.setdefault("judge", []).append(judged)
        lengths = [_mean_words(given, shared) for given in zip(*pairs, strict=True)]
        for by, of_seeds in outcomes.items():
            rate = win_rate_of([_mean(given) for given in zip(*of_seeds, strict=True)], *lengths)
            row = {"name": search, "baseline": baseline, "budget": budget}
            rows.append({**row, "baseline_budget": against, "by": by, **rate.as_json()})
    return rows


def with_win_rates(
    rows: Sequence[Mapping[str, Any]], rates: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return rows of searches with their win rates: by the judge or else by the second reward."""
    found = {}
    for rate in rates:  # the judge's come last
        found[rate["name"], rate["budget"]] = {
            "win_rate": rate["win_rate"],
            "win_rate_interval": rate["interval"],
        }
    return [{**row, **found.get((row["name"], row["budget"]), {})} for row in rows]


def _mean_words(results: Sequence[SearchResult], prompt_ids: Sequence[str]) -> list[float]:
    """Return the number of words of each prompt's selected response, the mean over seeds."""
    selected = [result.selected for result in results]
    return [mean(given[prompt_id].num_words for given in selected) for prompt_id in prompt_ids]


def _mean(outcomes: Sequence[Score | None]) -> Score | None:
    """Return the outcome of a prompt over seeds; those that failed are left out."""
    known = [outcome for outcome in outcomes if outcome is not None]
    if not known:
        return None
    weight = sum(outcome.weight for outcome in known)
    value = sum(outcome.value * outcome.weight for outcome in known) / weight
    return Score(value, weight=weight / len(known))
