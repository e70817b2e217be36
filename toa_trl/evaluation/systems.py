"""A run as a model of an evaluation: its selected responses, as they are in the journal."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from toa_trl.agents import ENGINES, make_agent
from toa_trl.agents.base import AgentOptions
from toa_trl.errors import ConfigError
from toa_trl.evaluation.outputs import Output, Outputs, closing_all, respond
from toa_trl.sampling.journal import Journal
from toa_trl.tasks import Task
from toa_trl.types import Message, Prompt, Rollout, Sampling
from toa_trl.utils.config import PositiveInt
from toa_trl.utils.registry import Registry
from toa_trl.utils.targets import check_has_journal

MODELS: Registry[Any] = Registry(
    key="engine",
    built_in={"run": "toa_trl.evaluation.systems:RunModel"},
    group="toa_trl.evaluation",
    common=AgentOptions,
    base=ENGINES,
)
logger = logging.getLogger(__name__)


class RunModel:
    """The selected responses of a run: of each prompt the one with the best reward.

    The run may still be sampling. Nothing is sampled here, so num_samples does not apply.

    Args:
        name: name of the model.
        path: folder of the run.
        budget: scored plays of a prompt among which the best is selected, the first ones; by
            default all. A list gives a model for each, called NAME@BUDGET.

    Raises:
        ConfigError: the folder has no run, or the run has a smaller budget.
    """

    def __init__(
        self, name: str, path: str, budget: PositiveInt | list[PositiveInt] | None = None
    ) -> None:
        self._place, self._path = f"model {name!r}", Path(path)
        check_has_journal(self._path, self._place)
        if isinstance(budget, list):
            raise ConfigError(f"{self._place}: budget: must be an integer, not {budget}")
        self._budget = budget

    def outputs(self, prompts: Sequence[Prompt]) -> list[Outputs]:
        """Return the selected response to every prompt.

        A prompt is found by its messages; where several have the same, by its id too.

        Raises:
            ConfigError: the run lacks a prompt, or has no scored play of one.
        """
        wanted = {prompt.messages for prompt in prompts}
        found: dict[tuple[Message, ...], list[Rollout]] = defaultdict(list)
        with closing(Journal(self._path / "journal.sqlite", lock=False)) as journal:
            budget = int(journal.identity.get("budget", 0))
            if self._budget is not None and self._budget > budget:
                raise ConfigError(
                    f"{self._place}: budget: must be <= {budget}, that of the run, not "
                    f"{self._budget}"
                )
            for rollout in journal.rollouts():
                if rollout.prompt.messages in wanted:
                    found[rollout.prompt.messages].append(rollout.first(self._budget))
        rollouts = [self._rollout_of(prompt, found[prompt.messages]) for prompt in prompts]
        self._check_scored(prompts, rollouts, self._budget or budget)
        return [Outputs(_selected(rollout)) for rollout in rollouts]

    def _rollout_of(self, prompt: Prompt, found: Sequence[Rollout]) -> Rollout:
        same = [one for one in found if one.prompt.id == prompt.id or len(found) == 1]
        if not same:
            raise ConfigError(
                f"{self._place}: the run in {self._path} has no prompt like {prompt.id!r}; "
                "evaluate the prompts of the run, read by the same task"
            )
        return same[0]

    def _check_scored(
        self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], budget: int
    ) -> None:
        pairs = zip(prompts, rollouts, strict=True)
        without = [prompt.id for prompt, rollout in pairs if not rollout.plays]
        if without:
            raise ConfigError(
                f"{self._place}: the run in {self._path} has no scored play of {len(without)} of "
                f"{len(prompts)} prompts, the first {without[0]!r}; resume the run, or evaluate "
                "other prompts"
            )
        num_short = sum(len(rollout.plays) < budget for rollout in rollouts)
        if num_short:
            logger.warning(
                "%s: %d of %d prompts have fewer than %d scored plays in %s; the best of those is "
                "selected",
                *(self._place, num_short, len(prompts), budget, self._path),
            )


def _selected(rollout: Rollout) -> Output:
    completion = rollout.ranked[0].completion
    assert completion is not None
    return Output(completion.text, completion.finish_reason)


def check_runs(entries: Sequence[Mapping[str, Any]], prompts: Sequence[Prompt]) -> None:
    """Check before any model is asked that the runs among the models have all prompts.

    Raises:
        ConfigError: see `RunModel`.
    """
    for entry in entries:
        if entry["engine"] == "run":
            _make_run(entry).outputs(prompts)


async def outputs_of(
    entry: Mapping[str, Any],
    prompts: Sequence[Prompt],
    task: Task,
    sampling: Sampling,
    **options: Any,
) -> list[Outputs]:
    """Return the responses of a model: those of a run are selected, another model is asked.

    Args:
        entry: of the model, see `MODELS`.
        prompts: what is asked.
        task: see `respond`.
        sampling: see `respond`.
        options: further arguments of `respond`.

    Raises:
        ConfigError: the entry is invalid, see `RunModel` and `make_agent`.
        AgentError: see `respond`.
    """
    if entry["engine"] == "run":
        return _make_run(entry).outputs(prompts)
    async with closing_all(make_agent(entry)) as (agent,):
        return await respond(agent, prompts, task, sampling, **options)


def _make_run(entry: Mapping[str, Any]) -> RunModel:
    run: RunModel = MODELS.build(f"model {entry['name']!r}", entry)
    return run
