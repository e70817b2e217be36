"""Quality of one model's responses: by a verifier, a reward model and translation metrics."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from statistics import mean
from typing import Any

from toa_trl.errors import RewardError
from toa_trl.evaluation.intervals import bootstrap, wilson
from toa_trl.evaluation.outputs import Output, Outputs, closing_all
from toa_trl.evaluation.votes import majority
from toa_trl.rewards import RewardModel
from toa_trl.rewards.overlap import bleu_tokenizer
from toa_trl.rewards.scoring import check_scores
from toa_trl.tasks import Task
from toa_trl.types import Prompt
from toa_trl.utils.results import interval_key
from toa_trl.utils.stage import stage

Interval = tuple[float, float]
_Judged = tuple[list[float | None], dict[str, Any]]
PLACES = {"verifier": "the verifier", "mean_reward": "the reward model", "comet": "COMET"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """Figures of one model on one set of problems; None: not measured.

    Shares are in [0, 1], intervals are 95 %. The greedy response is the one at temperature 0; all
    figures but those of samples are about it.
    """

    accuracy: float | None = None  # by a verifier that returns 0 or 1
    interval: Interval | None = None  # of the accuracy; Wilson
    mean_verifier_score: float | None = None  # of a graded verifier
    mean_reward: float | None = None  # raw
    mean_reward_interval: Interval | None = None  # bootstrap over problems, like all that follow
    chrf: float | None = None  # 0 to 100, of the corpus, by sacrebleu
    bleu: float | None = None  # 0 to 100, of the corpus, by sacrebleu
    comet: float | None = None  # mean, by a server
    comet_interval: Interval | None = None
    k: int | None = None  # samples per problem
    sampled_accuracy: float | None = None  # mean over problems of the mean over samples: pass@1
    sampled_interval: Interval | None = None
    pass_at_k: float | None = None  # share of problems with a right sample among k
    pass_at_k_interval: Interval | None = None
    maj_at_k: float | None = None  # share of problems whose most frequent answer is right
    maj_at_k_interval: Interval | None = None
    mean_length: float | None = None  # words
    num_problems: int = 0
    num_truncated: int = 0  # greedy responses that max_tokens cut short
    num_unjudged: int = 0  # greedy responses without a score, left out of the means
    num_unjudged_samples: int | None = None  # samples without a score, left out of the means

    def as_json(self) -> dict[str, Any]:
        """Return the figures that were measured."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Scores:
    """Scores of greedy responses, in the order of the prompts; None where scoring failed."""

    verifier: Sequence[float | None] = ()
    reward: Sequence[float | None] = ()


async def measure_model(
    prompts: Sequence[Prompt],
    outputs: Sequence[Outputs],
    task: Task,
    *,
    verifier: RewardModel | None = None,
    reward_model: RewardModel | None = None,
    comet: RewardModel | None = None,
) -> tuple[Measurement, Scores]:
    """Return what a verifier, a reward model and the task's metrics say about a model's outputs.

    Args:
        prompts: the problems, with what the verifier needs in their metadata.
        outputs: of the model, in the order of the prompts; equally many samples for each.
        task: of the prompts.
        verifier: 1 for a right response, 0 for a wrong one; or another score. With one that
            decides equivalence, such as `MathReward`, maj@k is measured too.
        reward_model: raw rewards.
        comet: a scorer of translations, see scripts/serve_comet.py.

    Raises:
        RewardError: no response could be judged.
    """
    judges = {"verifier": verifier, "mean_reward": reward_model, "comet": comet}
    judged = {
        name: await _judged(name, judge, prompts, outputs, task) for name, judge in judges.items()
    }
    return _measurement(prompts, outputs, judged)


async def measure_models(
    prompts: Sequence[Prompt],
    outputs: Mapping[str, Sequence[Outputs]],
    task: Task,
    *,
    verifier: RewardModel | None = None,
    reward_model: RewardModel | None = None,
    comet: RewardModel | None = None,
) -> dict[str, tuple[Measurement, Scores]]:
    """Return what `measure_model` does of several models, by name.

    One judge scores the outputs of all models and is closed before the next is asked: a GPU may
    hold only one of them.

    Raises:
        RewardError: no response of a model could be judged.
    """
    judges = {"verifier": verifier, "mean_reward": reward_model, "comet": comet}
    judged: dict[str, dict[str, _Judged]] = {model: {} for model in outputs}
    for name, judge in judges.items():
        async with closing_all(judge):
            for model, said in outputs.items():
                judged[model][name] = await _judged(name, judge, prompts, said, task)
    return {model: _measurement(prompts, said, judged[model]) for model, said in outputs.items()}


async def _judged(
    name: str,
    judge: RewardModel | None,
    prompts: Sequence[Prompt],
    outputs: Sequence[Outputs],
    task: Task,
) -> _Judged:
    """Return the scores of one judge, and the figures of a `Measurement` that come from them."""
    scores = await _score(PLACES[name], judge, task, prompts, [said.greedy for said in outputs])
    values = _available(scores)
    figures: dict[str, Any] = {}
    if name != "verifier":
        if values:
            figures = {name: mean(values), interval_key(name): bootstrap(values)}
    elif values and set(values) <= {0.0, 1.0} and judge and not judge.graded:
        figures = {"accuracy": mean(values), "interval": wilson(sum(values), len(values))}
        figures |= await _sample_figures(prompts, outputs, task, judge)
    elif values:
        figures = {"mean_verifier_score": mean(values)}
    return scores, figures


def _measurement(
    prompts: Sequence[Prompt], outputs: Sequence[Outputs], judged: Mapping[str, _Judged]
) -> tuple[Measurement, Scores]:
    greedy = [output.greedy for output in outputs]
    figures: dict[str, Any] = dict(corpus_scores(prompts, [output.text for output in greedy]))
    for _, by_judge in judged.values():
        figures |= by_judge
    taken = [scores for scores, _ in judged.values() if scores]
    measurement = Measurement(
        **figures,
        mean_length=mean(output.num_words for output in greedy),
        num_problems=len(prompts),
        num_truncated=sum(output.finish_reason == "length" for output in greedy),
        num_unjudged=sum(None in scores for scores in zip(*taken, strict=True)),
    )
    return measurement, Scores(judged["verifier"][0], judged["mean_reward"][0])


def corpus_scores(prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, float]:
    """Return chrF and BLEU of a corpus by sacrebleu, 0 to 100.

    Empty unless all prompts have a `reference` (a text, or a list of them). No BLEU where their
    `target_language`s need different tokenizers.
    """
    import sacrebleu

    references: list[list[str]] = []
    for prompt in prompts:
        reference = prompt.metadata.get("reference")
        if isinstance(reference, str):
            reference = [reference]
        if not isinstance(reference, list) or not reference:
            return {}
        references.append(reference)
    # as sacrebleu wants them: a list of all first references, a list of all second ones, ...
    streams = list(map(list, zip_longest(*references)))
    scores = {"chrf": sacrebleu.corpus_chrf(list(texts), streams).score}
    by_language: dict[str, list[str]] = {}
    for prompt, texts_of_prompt in zip(prompts, references, strict=True):
        language = str(prompt.metadata.get("target_language", ""))
        by_language.setdefault(language, []).extend(filter(None, texts_of_prompt))
    tokenizers = {bleu_tokenizer(language, found) for language, found in by_language.items()}
    if len(tokenizers) == 1:
        bleu = sacrebleu.corpus_bleu(list(texts), streams, tokenize=tokenizers.pop())
        scores["bleu"] = bleu.score
    return scores


async def _sample_figures(
    prompts: Sequence[Prompt], outputs: Sequence[Outputs], task: Task, verifier: RewardModel
) -> dict[str, Any]:
    """Return the figures of the samples; those without a score are left out and counted."""
    k = len(outputs[0].samples)
    if not k:
        return {}
    repeated = [prompt for prompt in prompts for _ in range(k)]
    samples = list(chain.from_iterable(output.samples for output in outputs))
    scores = await _score("the verifier", verifier, task, repeated, samples)
    right = [scores[start : start + k] for start in range(0, len(scores), k)]
    judged = [values for values in map(_available, right) if values]
    shares = {
        "sampled_accuracy": [mean(values) for values in judged],
        "pass_at_k": [max(values) for values in judged],
    }
    if verifier.decides_equivalence:
        texts = [[sample.text for sample in output.samples] for output in outputs]
        chosen = await asyncio.gather(*(majority(group, verifier.equivalent) for group in texts))
        votes = [
            0.0 if index is None else values[index]
            for values, index in zip(right, chosen, strict=True)
        ]
        shares["maj_at_k"] = _available(votes)
    figures: dict[str, Any] = {"k": k, "num_unjudged_samples": scores.count(None)}
    for name, values in shares.items():
        figures[name] = mean(values)
        figures[interval_key(name)] = bootstrap(values)
    return figures


def _available(scores: Sequence[float | None]) -> list[float]:
    return [score for score in scores if score is not None]


async def _score(
    place: str,
    model: RewardModel | None,
    task: Task,
    prompts: Sequence[Prompt],
    outputs: Sequence[Output],
) -> list[float | None]:
    """Return a score for every response, None where scoring failed; empty without a model."""
    if model is None:
        return []
    failures = Counter[str]()

    async def score_one(prompt: Prompt, output: Output) -> float | None:
        try:
            scores = await model.score(task.judged(prompt), [output.text])
            return check_scores(place, scores, 1)[0]
        except RewardError as error:
            failures[str(error)] += 1
            return None
        finally:
            advance()

    with stage(f"{place}: scores", len(outputs)) as advance:
        scores = await asyncio.gather(*map(score_one, prompts, outputs))
    if failures:
        reason, _ = failures.most_common(1)[0]
        message = (
            f"{place} failed on {failures.total()} of {len(scores)} responses, "
            f"most often with: {reason}"
        )
        if failures.total() == len(scores):
            raise RewardError(message)
        logger.warning("%s", message)
    return scores
