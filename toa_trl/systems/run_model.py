"""A run as a model of an evaluation: its selected responses, as they are in the journal."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from toa_trl.errors import ConfigError
from toa_trl.evaluation.outputs import Output, Outputs
from toa_trl.sampling.journal import open_journal
from toa_trl.systems.models import EvaluatedModel, Questions
from toa_trl.types import Message, Prompt, Rollout
from toa_trl.utils.config import PositiveInt
from toa_trl.utils.targets import check_has_journal

logger = logging.getLogger(__name__)


class RunModel(EvaluatedModel):
    """The selected responses of a run: of each prompt the one with the best reward.

    The run may still be sampling. Nothing is sampled here, so num_samples does not apply.

    Args:
        name: name of the model.
        path: folder of the run.
        budget: scored plays of a prompt among which the best is selected, the first ones; by
            default all. A list gives a model for each, called NAME@BUDGET.

    Raises:
        ConfigError: the folder has no run.
    """

    def __init__(
        self, name: str, path: str, budget: PositiveInt | list[PositiveInt] | None = None
    ) -> None:
        self._place, self._path = f"model {name!r}", Path(path)
        check_has_journal(self._path, self._place)
        if isinstance(budget, list):
            raise ConfigError(f"{self._place}: budget: must be an integer, not {budget}")
        self._budget = budget
        self._outputs: list[Outputs] = []

    async def check(self, questions: Questions) -> None:
        """Read the run once: it may grow while other models are asked.

        Raises:
            ConfigError: the run has a smaller budget, lacks a prompt, or has no scored play of one.
        """
        self._outputs = selected_outputs(self._place, self._path, questions.prompts, self._budget)

    def is_complete(self, questions: Questions) -> bool:
        """Nothing is asked."""
        return True

    async def outputs(self, questions: Questions) -> list[Outputs]:
        """Return the selected response to every prompt, as `check` has read them."""
        return self._outputs


def selected_outputs(
    place: str, path: Path, prompts: Sequence[Prompt], budget: int | None = None
) -> list[Outputs]:
    """Return the best response of a run to every prompt.

    A prompt is found by its messages; where several have the same, by its id too.

    Args:
        place: start of errors and warnings.
        path: folder of the run.
        prompts: whose responses are selected.
        budget: first scored plays of a prompt that count; by default all.

    Raises:
        ConfigError: the run has a smaller budget, lacks a prompt, or has no scored play of one.
    """
    wanted = {prompt.messages for prompt in prompts}
    found: dict[tuple[Message, ...], list[Rollout]] = defaultdict(list)
    with open_journal(path) as journal:
        whole = int(journal.identity.get("budget", 0))
        if budget is not None and budget > whole:
            raise ConfigError(f"{place}: budget: must be <= {whole}, that of the run, not {budget}")
        for rollout in journal.rollouts():
            if rollout.prompt.messages in wanted:
                found[rollout.prompt.messages].append(rollout.first(budget))
    rollouts = []
    for prompt in prompts:
        given = found[prompt.messages]
        same = [one for one in given if one.prompt.id == prompt.id or len(given) == 1]
        if not same:
            raise ConfigError(
                f"{place}: the run in {path} has no prompt like {prompt.id!r}; "
                "evaluate the prompts of the run, read by the same task"
            )
        rollouts.append(same[0])
    _check_scored(place, path, prompts, rollouts, budget or whole)
    return [Outputs(_selected(rollout)) for rollout in rollouts]


def _check_scored(
    place: str, path: Path, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], budget: int
) -> None:
    pairs = zip(prompts, rollouts, strict=True)
    without = [prompt.id for prompt, rollout in pairs if not rollout.plays]
    if without:
        raise ConfigError(
            f"{place}: the run in {path} has no scored play of {len(without)} of "
            f"{len(prompts)} prompts, the first {without[0]!r}; resume the run, or evaluate "
            "other prompts"
        )
    num_short = sum(len(rollout.plays) < budget for rollout in rollouts)
    if num_short:
        logger.warning(
            "%s: %d of %d prompts have fewer than %d scored plays in %s; the best of those is "
            "selected",
            *(place, num_short, len(prompts), budget, path),
        )


def _selected(rollout: Rollout) -> Output:
    completion = rollout.ranked[0].completion
    assert completion is not None
    return Output(completion.text, completion.finish_reason)
