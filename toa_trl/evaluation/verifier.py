"""The verifier of an evaluation: the user's own, or that of the task."""

from collections.abc import Sequence
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.tasks import Task
from toa_trl.types import Prompt


def make_verifier(value: Any, task: Task, prompts: Sequence[Prompt]) -> RewardModel | None:
    """Return what decides whether a response is correct, or None if nothing does.

    Args:
        value: package.module:name of a TRL reward function, an entry {kind, ...}, or "": the task's
            own verifier, if it has one and the prompts have the column that it needs.
        task: of the prompts.
        prompts: to be judged.

    Raises:
        ConfigError: no such function or kind, or only some of the prompts have the column.
    """
    if isinstance(value, str) and value:
        return make_reward({"kind": "function", "function": value})
    if value:
        return make_reward(value)
    column = task.verifier_column
    without = [prompt for prompt in prompts if prompt.metadata.get(column) in (None, "")]
    if task.verifier is None or len(without) == len(prompts):
        return None
    if without:
        columns = ", ".join(without[0].metadata) or "none"
        raise ConfigError(
            f"prompts: {len(without)} of {len(prompts)} have no {column!r}, which the verifier "
            "needs; "
            f"the first is {without[0].id!r}, with the columns: {columns}; add it, leave these "
            "prompts out, or name a verifier"
        )
    return make_reward(task.verifier)
