"""A reward model as a reward function of TRL's GRPOTrainer and RLOOTrainer."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Self

from toa_trl.agents.completions import split_reasoning, whole_text
from toa_trl.errors import AgentError, ConfigError, RewardError
from toa_trl.hub.dataset_card import reward_name
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.rewards.recorded import recorded_reward
from toa_trl.rewards.scoring import as_details
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.identity import digest_of_values
from toa_trl.sampling.run_file import FILE
from toa_trl.tasks import Task, make_task
from toa_trl.tasks.recorded import recorded_task
from toa_trl.training.prompts import run_of
from toa_trl.types import Prompt, Score, as_dicts, as_messages
from toa_trl.utils.aio import LoopThread, gather_or_cancel
from toa_trl.utils.config import validate
from toa_trl.utils.files import read_value

logger = logging.getLogger(__name__)
Failures = Literal["raise", "skip"]
# arguments of TRL's trainers that are no columns of the data set
NO_COLUMNS = ("prompt", "completion_ids", "trainer_state", "environments")
IDS = ("prompt_id", "id")


class RewardFunc:
    """Scores completions with a reward model, as a run of `TOASampler` scores responses.

    The reward model sees the prompt as the task shows it (without the text of its `answer.txt`)
    and the response that the task reads from the completion, without its reasoning. Every other
    column of the data set is metadata of the prompt: `kind: math` finds its `answer` there. A
    column `metadata` with a JSON object, as in the `rollouts` of a run, holds further ones.

    A completion without a response (nothing but reasoning, nothing at all, or nothing that the
    task can read) has no reward: the result is None, and TRL leaves the completion out.

    Args:
        model: the reward model.
        task: of the prompts; None: they are judged as they are.
        name: under which TRL logs the rewards.
        failures: "raise": a completion that cannot be scored ends the training, which can be
            resumed from its last checkpoint. "skip": it has no reward; a batch in which the
            reward model fails on every completion is an error all the same.
        description: of the reward model, for the model card.
    """

    def __init__(
        self,
        model: RewardModel,
        task: Task | None = None,
        name: str = "reward",
        failures: str = "raise",
        description: str = "",
    ) -> None:
        self.__name__ = name  # TRL's name of the function
        self.description = description or name
        self._model, self._task = model, task
        self._skip = validate(Failures, failures, "reward_failures") == "skip"
        self._warned = False
        self._loop = LoopThread(name=f"reward {name}")
        try:
            self._loop.run(self._model.check())
        except BaseException:
            self.close()
            raise

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return a reward per completion, or None for one without a response.

        Args:
            prompts: texts or conversations, one per completion.
            completions: texts, or conversations that end with the assistant's response.
            log_metric: TRL's; gets the share of completions without a reward, and the mean of a
                second, held-out reward.
            log_extra: TRL's; not used.
            columns: further columns of the data set, one value per completion, and others of
                TRL's arguments.

        Raises:
            RewardError: a completion could not be scored (with `failures="skip"`: none could).
            Unavailable: no server of the reward model answers.
            ConfigError: a prompt or completion is neither a text nor a conversation.
        """
        rows = _rows(columns, len(completions))
        asked = [_prompt(*pair) for pair in zip(prompts, rows, strict=True)]
        texts = [_text(completion) for completion in completions]
        pairs = zip(asked, texts, strict=True)
        results = self._loop.run(gather_or_cancel(self._score(*pair) for pair in pairs))
        failed = [result for result in results if isinstance(result, RewardError)]
        if failed and not any(isinstance(result, Score) for result in results):
            raise failed[0]
        if failed and not self._warned:
            logger.warning("%s; such completions are left out", failed[0])
            self._warned = True
        scores = [result if isinstance(result, Score) else None for result in results]
        if log_metric is not None and scores:
            self._log(log_metric, scores)
        return [None if score is None else score.value for score in scores]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Release connections, processes and memory of the reward model."""
        try:
            self._loop.run(self._model.aclose())
        finally:
            self._loop.close()

    async def _score(self, prompt: Prompt, text: str) -> Score | RewardError | None:
        """Return the score of a completion, the failure that is skipped, or None."""
        _, response = split_reasoning(whole_text(text))
        judged = prompt
        if self._task is not None:
            try:
                response = self._task.parse(prompt, response)
            except AgentError:
                return None
            judged = self._task.judged(prompt)
        if not response.strip():
            return None
        try:
            scores = await self._model.score_details(judged, [response])
            (score,) = as_details(self.__name__, scores, 1)
        except RewardError as error:
            start = prompt.messages[-1].content[:80]
            failure = RewardError(
                f"reward {self.__name__!r} on {response[:80]!r} ({start!r}): {error}"
            )
            if not self._skip:
                raise failure from error
            return failure
        return score

    def _log(
        self, log_metric: Callable[[str, float], None], scores: Sequence[Score | None]
    ) -> None:
        log_metric(f"rewards/{self.__name__}/missing", fmean(score is None for score in scores))
        seconds = [score.second for score in scores if score and score.second is not None]
        if seconds:
            log_metric(f"rewards/{self.__name__}/held_out", fmean(seconds))


def reward_func(
    reward: Any,
    *,
    task: str | Mapping[str, Any] | Task | None = None,
    name: str | None = None,
    failures: str = "raise",
    trust: bool = False,
) -> RewardFunc:
    """Return a reward function for `reward_funcs` of TRL's GRPOTrainer and RLOOTrainer.

    Args:
        reward: an entry {kind, ...}; an object with `score`; a function in TRL's reward signature;
            or the folder of a run, whose run.yaml names the reward model and the task.
        task: entry of the task, or the task; by default that of the run, or none.
        name: under which TRL logs the rewards; by default the kind, or the name of the class.
        failures: what a completion that cannot be scored is: an error ("raise"), or a completion
            without a reward ("skip").
        trust: run code that the run.yaml of a run's folder names.

    Raises:
        ConfigError: see `toa_trl.rewards.make_reward`; the folder is not a run's, or its run.yaml
            names code and `trust` is not set; a server cannot be reached, or refuses the key.
    """
    known = None if task is None else make_task(task)
    if isinstance(reward, str | Path):
        run = Rollouts.load(reward)
        recorded, place = run.configuration, f"{reward}/{FILE}"
        reward = recorded_reward(recorded, trust, place)
        known = known or recorded_task(recorded, run.identity, trust, place)
    model = make_reward(reward)
    if isinstance(reward, Mapping):
        found, description = str(reward["kind"]), reward_name(reward)
    else:
        found = str(getattr(reward, "__name__", type(reward).__name__))
        description = found
    return RewardFunc(model, known, name or found, failures, description)


def _rows(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the metadata of each completion."""
    kept = {
        key: values
        for key, values in columns.items()
        if key not in NO_COLUMNS and isinstance(values, Sequence) and len(values) == count
    }
    return [
        _with_metadata({key: values[at] for key, values in kept.items()}) for at in range(count)
    ]


def _with_metadata(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the columns that its column `metadata` holds as a JSON object."""
    held = row.get("metadata")
    if isinstance(held, str) and held.lstrip().startswith("{"):
        try:
            held = json.loads(held)
        except ValueError:
            return row
    if not isinstance(held, Mapping):
        return row
    return {**held, **{key: value for key, value in row.items() if key != "metadata"}}


def _prompt(asked: Any, row: Mapping[str, Any]) -> Prompt:
    try:
        messages = as_messages(asked)
    except TypeError as error:
        raise ConfigError(f"reward_func: a prompt is invalid: {error}") from error
    known = next((row[key] for key in IDS if row.get(key) is not None), None)
    name = digest_of_values(as_dicts(messages)) if known is None else str(known)
    return Prompt(name, messages, {key: row[key] for key in row if key not in IDS})


def _text(completion: Any) -> str:
    """Return the text of a completion: of a conversation, that of its last message."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and completion:
        last = completion[-1]
        content = last.get("content") if isinstance(last, Mapping) else None
        if isinstance(content, str):
            return content
        if content is None and isinstance(last, Mapping) and "role" in last:
            return ""  # such as a call of a tool
        if isinstance(content, list):
            return "".join(
                str(part.get("text", "")) for part in content if isinstance(part, Mapping)
            )
    raise ConfigError(
        f"reward_func: a completion must be a text or a list of messages, not {completion!r:.80}"
    )


def rewards_of(
    given: Any, datasets: Sequence[str], failures: str = "raise", trust: bool = False
) -> list[RewardFunc]:
    """Return the reward functions of a training.

    Args:
        given: an entry {kind, ...}, a list of them, their YAML, or the folder of a run; None: the
            reward model of the run that the prompts come from.
        datasets: names of the data sets with the prompts.
        failures: see `reward_func`.
        trust: see `reward_func`.

    Raises:
        ConfigError: see `reward_func`; or no reward is given, and the prompts come from no run, or
            from several.
    """
    runs = list(dict.fromkeys(filter(None, map(run_of, datasets))))
    if isinstance(given, str):
        given = read_value("reward", given)
    if given is None or given == "":
        if len(runs) != 1:
            several = f"{len(runs)} runs" if runs else "no run"
            raise ConfigError(
                f"reward: the key is missing, and the prompts come from {several}; give the entry "
                "of a reward model, such as {kind: classifier, model: ...}, or a run's folder"
            )
        return [reward_func(runs[0], failures=failures, trust=trust)]
    task = None
    if len(runs) == 1 and not isinstance(given, str):
        run = Rollouts.load(runs[0])
        task = recorded_task(run.configuration, run.identity, trust, f"{runs[0]}/{FILE}")
    functions = list[RewardFunc]()
    try:
        for entry in given if isinstance(given, list) else [given]:
            functions.append(reward_func(entry, task=task, failures=failures, trust=trust))
    except BaseException:
        for function in functions:
            function.close()
        raise
    names = [function.__name__ for function in functions]
    for number, function in enumerate(functions, 1):
        if names.count(function.__name__) > 1:  # TRL logs them by name
            function.__name__ += f"_{number}"
    return functions
