"""Any TRL reward function as a reward model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards.base import RewardModel, check_scores
from toa_trl.types import Prompt, as_dicts
from toa_trl.utils.registry import load_object


class FunctionReward(RewardModel):
    """A function in TRL's signature: f(prompts, completions, **columns) -> list[float | None].

    As in TRL's trainers, prompts and completions are conversational (lists of messages), every further column of the
    prompts file is a keyword argument with a list of values, and the function may be a coroutine function. None, TRL's
    "does not apply", is a failure here: a search needs a number.

    Args:
        function: the function itself, or "package.module:name"; a module in the working directory is found too.

    Raises:
        ConfigError: no such function.
    """

    def __init__(self, function: str | Callable[..., Any]) -> None:
        self._function = (
            load_object("reward 'function'", function) if isinstance(function, str) else function
        )
        if not callable(self._function):
            raise ConfigError(f"reward 'function': {function!r} cannot be called")
        self._name = (
            function if isinstance(function, str) else getattr(function, "__name__", "function")
        )

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        count = len(responses)
        try:
            rewards = self._function(
                prompts=[as_dicts(prompt.messages) for _ in responses],
                completions=[
                    [{"role": "assistant", "content": response}] for response in responses
                ],
                **{column: [value] * count for column, value in prompt.metadata.items()},
            )
            if inspect.isawaitable(rewards):
                rewards = await rewards
        except (
            Exception
        ) as error:  # the user's own code: whatever it raises is a failure of these responses
            raise RewardError(f"{self._name}: {type(error).__name__}: {error}") from error
        return check_scores(self._name, rewards, count)


def length_reward(completions: list[list[dict[str, str]]], **columns: Any) -> list[float]:
    """Words of a response, divided by 100: for dry runs, and as an example of TRL's signature."""
    return [len(completion[0]["content"].split()) / 100 for completion in completions]
