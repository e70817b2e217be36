"""Any TRL reward function as a reward model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from pydantic.json_schema import SkipJsonSchema

from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards.base import RewardModel, check_scores
from toa_trl.types import Message, Prompt, as_dicts
from toa_trl.utils.registry import load_object


class FunctionReward(RewardModel):
    """A function in TRL's signature: f(prompts, completions, **columns) -> list[float | None].

    As in TRL's trainers, prompts and completions are conversational (lists of messages), every
    further column of the prompts file is a keyword argument with a list of values, and the
    function may be a coroutine function. None, TRL's "does not apply", is a failure here: a
    search needs a number.

    Args:
        function: "package.module:name" (modules in the working directory are found too), or the
            function itself.

    Raises:
        ConfigError: the function cannot be imported or called.
    """

    def __init__(self, function: str | SkipJsonSchema[Callable[..., Any]]) -> None:
        if isinstance(function, str):
            self._name = function
            self._function = load_object("reward.function", function)
        else:
            self._name = getattr(function, "__name__", "function")
            self._function = function
        self.__wrapped__ = self._function  # whose source a run's identity covers
        if not callable(self._function):
            raise ConfigError(f"reward.function: must be a function, not {self._function!r}")

    @property
    def identity(self) -> Any:
        """The name of the function."""
        return getattr(self._function, "__qualname__", type(self._function).__qualname__)

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        count = len(responses)
        columns = {column: [value] * count for column, value in prompt.metadata.items()}
        try:
            rewards = self._function(
                prompts=[as_dicts(prompt.messages) for _ in responses],
                completions=[as_dicts([Message("assistant", text)]) for text in responses],
                **columns,
            )
            if inspect.isawaitable(rewards):
                rewards = await rewards
        except Exception as error:  # the user's own code may raise anything
            raise RewardError(f"{self._name}: {type(error).__name__}: {error}") from error
        return check_scores(self._name, rewards, count)


def length_reward(completions: list[list[dict[str, str]]], **columns: Any) -> list[float]:
    """Return the number of words / 100: for dry runs, and as an example of TRL's signature."""
    return [len(completion[0]["content"].split()) / 100 for completion in completions]
