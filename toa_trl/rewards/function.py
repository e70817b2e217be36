"""Any TRL reward function as a reward model."""

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from pydantic.json_schema import SkipJsonSchema

from toa_trl.errors import ConfigError, RewardError
from toa_trl.models.batching import Batcher, call_in_thread
from toa_trl.rewards.base import DetailedReward
from toa_trl.rewards.scoring import as_scores, as_values
from toa_trl.types import Prompt, Score, as_dicts
from toa_trl.utils.config import PositiveInt
from toa_trl.utils.registry import load_object

NUM_RUNNING = 32  # calls of a coroutine function that may wait at once


class _Item(NamedTuple):
    prompt: Prompt
    response: str


class FunctionReward(DetailedReward):
    """A function in TRL's signature: f(prompts, completions, **columns) -> list[float | None].

    As in TRL's trainers, prompts and completions are conversational (lists of messages), every
    further column of the prompts file is a keyword argument with a list of values, and the
    function may be a coroutine function. None, TRL's "does not apply", is a failure here: a
    search needs a number.

    What is to be scored while the function runs becomes its next batch, over all prompts in flight.
    A function runs in one thread of its own, a coroutine function in the event loop, where up to 32
    of its calls may wait at once. Timeouts by signals need the main thread: TRL's accuracy_reward
    has none here, and `kind: math` does the same with them.

    Args:
        function: "package.module:name" (modules in the working directory are found too), or the
            function itself.
        max_batch_size: maximum number of completions in a call.

    Raises:
        ConfigError: the function cannot be imported or called.
    """

    def __init__(
        self,
        function: str | SkipJsonSchema[Callable[..., Any]],
        max_batch_size: PositiveInt = 64,
    ) -> None:
        if isinstance(function, str):
            self._name = function
            self._function = load_object("reward.function", function)
        else:
            self._name = getattr(function, "__name__", "function")
            self._function = function
        self.__wrapped__ = self._function  # whose source a run's identity covers
        if not callable(self._function):
            raise ConfigError(f"reward.function: must be a function, not {self._function!r}")
        functions = (self._function, getattr(self._function, "__call__", None))  # noqa: B004
        is_coroutine = any(map(inspect.iscoroutinefunction, functions))
        self._thread = None if is_coroutine else ThreadPoolExecutor(1)
        self._queue: Batcher[_Item, Any] = Batcher(
            self._run,
            max_size=max_batch_size,
            num_running=NUM_RUNNING if is_coroutine else 1,
        )

    @property
    def identity(self) -> Any:
        """The name of the function."""
        return getattr(self._function, "__qualname__", type(self._function).__qualname__)

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        items = [_Item(prompt, response) for response in responses]
        if len(items) == 1:  # a play: without the cost of a task
            rewards = [await self._queue.submit(items[0])]
        else:
            rewards = await asyncio.gather(*map(self._queue.submit, items))
        return as_scores(self._name, rewards, len(responses))

    async def _run(self, items: list[_Item]) -> list[Any]:
        """Call the function once for all items whose prompts have the same columns."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault(tuple(item.prompt.metadata), []).append(index)
        rewards: list[Any] = [None] * len(items)
        for columns, indices in groups.items():
            found = await self._call([items[index] for index in indices], columns)
            for index, reward in zip(indices, found, strict=True):
                rewards[index] = reward
        return rewards

    async def _call(self, items: Sequence[_Item], columns: Iterable[str]) -> list[Any]:
        arguments: dict[str, Any] = {
            "prompts": [as_dicts(item.prompt.messages) for item in items],
            "completions": [[{"role": "assistant", "content": item.response}] for item in items],
            **{column: [item.prompt.metadata[column] for item in items] for column in columns},
        }
        call = partial(self._function, **arguments)
        try:
            rewards = call() if self._thread is None else await call_in_thread(self._thread, call)
            if inspect.isawaitable(rewards):
                rewards = await rewards
        except (Exception, SystemExit) as error:  # the user's own code may raise anything
            raise RewardError(f"{self._name}: {type(error).__name__}: {error}") from error
        return as_values(self._name, rewards, len(items))


def length_reward(completions: list[list[dict[str, str]]], **columns: Any) -> list[float]:
    """Return the number of words / 100: for dry runs, and as an example of TRL's signature."""
    return [len(completion[0]["content"].split()) / 100 for completion in completions]
