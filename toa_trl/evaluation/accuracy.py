"""How good one model's responses are: by a verifier, by a reward model, and by the metrics of translation."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from toa_trl.errors import RewardError
from toa_trl.evaluation.intervals import bootstrap, wilson
from toa_trl.evaluation.outputs import Output, Outputs
from toa_trl.evaluation.votes import majority
from toa_trl.rewards import RewardModel
from toa_trl.rewards.base import check_scores
from toa_trl.rewards.overlap import bleu_tokenizer
from toa_trl.tasks import Task
from toa_trl.types import Prompt

Interval = tuple[float, float]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """Of one model on one set of problems. Shares in [0, 1]; intervals are 95 %; None: not measured.

    "Greedy" is the response at temperature 0; all but the figures of samples are of it.
    """

    accuracy: float | None = None  # by a verifier that says 0 or 1
    interval: Interval | None = None  # of it; Wilson
    mean_verifier_score: float | None = None  # of a verifier with other numbers
    mean_reward: float | None = None  # raw
    mean_reward_interval: Interval | None = None  # bootstrap over problems, as all that follow
    chrf: float | None = None  # 0 to 100, of the corpus, by sacrebleu
    bleu: float | None = None  # likewise
    comet: float | None = None  # mean, by a server
    comet_interval: Interval | None = None
    k: int | None = None  # samples per problem
    sampled_accuracy: float | None = None  # mean over problems, of the mean over samples: pass@1
    sampled_interval: Interval | None = None
    pass_at_k: float | None = None  # any of k samples is right
    pass_at_k_interval: Interval | None = None
    maj_at_k: float | None = None  # the answer that most of k samples give is right
    maj_at_k_interval: Interval | None = None
    mean_length: float | None = None  # words
    num_problems: int = 0
    num_truncated: int = 0  # greedy responses that max_tokens cut short
    num_unjudged: int = (
        0  # greedy responses that verifier or reward model failed on; left out of their means
    )
    num_unjudged_samples: int | None = None  # likewise

    def as_json(self) -> dict[str, Any]:
        """Without what was not measured."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Scores:
    """Of one model's greedy responses, in the order of the prompts; None where there is none."""

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
    """What a verifier, a reward model and the task's metrics say of a model's outputs.

    Args:
        prompts: the problems, with what the verifier needs in their metadata.
        outputs: of the model, in the order of the prompts; as many samples for each.
        task: of the prompts.
        verifier: 1 for a right response, 0 for a wrong one; or another score. With one that has `equivalent`, as
            `MathReward`, there is maj@k, too.
        reward_model: raw rewards.
        comet: a scorer of translations, see scripts/serve_comet.py.

    Raises:
        RewardError: not one response could be judged.
    """
    greedy = [each.greedy for each in outputs]
    right = await _score("the verifier", verifier, task, prompts, greedy)
    rewards = await _score("the reward model", reward_model, task, prompts, greedy)
    comets = await _score("COMET", comet, task, prompts, greedy)
    found: dict[str, Any] = dict(corpus_scores(prompts, [output.text for output in greedy]))
    judged = [score for score in right if score is not None]
    if judged and set(judged) <= {0.0, 1.0} and verifier and not verifier.graded:
        found |= {"accuracy": mean(judged), "interval": wilson(sum(judged), len(judged))}
        found |= await _samples(prompts, outputs, task, verifier)
    elif judged:
        found |= {"mean_verifier_score": mean(judged)}
    for name, scores in {"mean_reward": rewards, "comet": comets}.items():
        if known := [score for score in scores if score is not None]:
            found |= {name: mean(known), f"{name}_interval": bootstrap(known)}
    measurement = Measurement(
        **found,
        mean_length=mean(output.num_words for output in greedy),
        num_problems=len(prompts),
        num_truncated=sum(output.finish_reason == "length" for output in greedy),
        num_unjudged=sum(
            None in each for each in zip(*filter(None, (right, rewards, comets)), strict=True)
        ),
    )
    return measurement, Scores(right, rewards)


def corpus_scores(prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, float]:
    """chrF and BLEU of a corpus by sacrebleu, 0 to 100, where the prompts have a `reference` (or a list); else nothing.

    No BLEU where the `target_language`s need different tokenizers.
    """
    import sacrebleu

    given = [prompt.metadata.get("reference") for prompt in prompts]
    references: list[Any] = [[each] if isinstance(each, str) else each for each in given]
    if not all(isinstance(each, list) and each for each in references):
        return {}
    num = max(
        map(len, references)
    )  # as sacrebleu wants them: a list of the first ones, a list of the second ones, ...
    streams = [[each[at] if at < len(each) else None for each in references] for at in range(num)]
    scores = {"chrf": sacrebleu.corpus_chrf(list(texts), streams).score}
    tokenizers = {bleu_tokenizer(prompt.metadata.get("target_language", "")) for prompt in prompts}
    if len(tokenizers) == 1:
        scores["bleu"] = sacrebleu.corpus_bleu(
            list(texts), streams, tokenize=tokenizers.pop()
        ).score
    return scores


async def _samples(
    prompts: Sequence[Prompt],
    outputs: Sequence[Outputs],
    task: Task,
    verifier: RewardModel | None,
) -> dict[str, Any]:
    """What nobody could judge is left out, and counted."""
    k = len(outputs[0].samples)
    if not k:
        return {}
    pairs = [
        (prompt, sample)
        for prompt, each in zip(prompts, outputs, strict=True)
        for sample in each.samples
    ]
    flat = await _score("the verifier", verifier, task, *map(list, zip(*pairs, strict=True)))
    right = [flat[at : at + k] for at in range(0, len(flat), k)]
    judged = [known for each in right if (known := [score for score in each if score is not None])]
    shares = {
        "sampled_accuracy": [mean(each) for each in judged],
        "pass_at_k": [max(each) for each in judged],
    }
    if verifier is not None and verifier.decides_equivalence:
        texts = ([sample.text for sample in each.samples] for each in outputs)
        chosen = await asyncio.gather(*(majority(each, verifier.equivalent) for each in texts))
        votes = [0.0 if at is None else each[at] for each, at in zip(right, chosen, strict=True)]
        shares["maj_at_k"] = [vote for vote in votes if vote is not None]
    found: dict[str, Any] = {"k": k, "num_unjudged_samples": flat.count(None)}
    for name, values in shares.items():
        found |= {
            name: mean(values),
            f"{name.removesuffix('_accuracy')}_interval": bootstrap(values),
        }
    return found


async def _score(
    place: str,
    model: RewardModel | None,
    task: Task,
    prompts: Sequence[Prompt],
    outputs: Sequence[Output],
) -> list[float | None]:
    """A score for every response, None where there is none; nothing without a model."""
    if model is None:
        return []
    failures = Counter[str]()

    async def one(prompt: Prompt, output: Output) -> float | None:
        try:
            return check_scores(place, await model.score(task.judged(prompt), [output.text]), 1)[0]
        except RewardError as error:
            failures[str(error)] += 1
            return None

    scores = await asyncio.gather(*map(one, prompts, outputs))
    if failures:
        reason, _ = failures.most_common(1)[0]
        message = f"{place} failed on {failures.total()} of {len(scores)} responses, most often with: {reason}"
        if failures.total() == len(scores):
            raise RewardError(message)
        logger.warning("%s", message)
    return scores
