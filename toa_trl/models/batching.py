"""One queue per reward model or in-process model: what many prompts ask for becomes one batch.

Torch is imported when a batch is computed.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence, Sized
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar, cast

from toa_trl.errors import RewardError, Unavailable
from toa_trl.models.flops import known_flops
from toa_trl.types import Score
from toa_trl.utils.config import PositiveInt, validate

Given = ParamSpec("Given")
Item = TypeVar("Item")
Result = TypeVar("Result")


async def call_in_thread(thread: Executor, function: Callable[..., Result], *args: Any) -> Result:
    """Call a function in a thread, and raise whatever it raises.

    `run_in_executor` would wait for ever where the function raises StopIteration.
    """

    def call() -> tuple[Result | None, BaseException | None]:
        try:
            return function(*args), None
        except BaseException as error:
            return None, error

    result, error = await asyncio.get_running_loop().run_in_executor(thread, call)
    if error is not None:
        raise error
    return cast("Result", result)


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    length: int
    future: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Merges single requests into batches.

    A batch starts as soon as there is room for one, with what waits by then: the oldest request and
    those nearest to it in length, so that padding is short and nothing starves.

    Args:
        run: computes a batch, given shortest first; a coroutine function, or a function, which gets
            a thread of its own.
        length: of a request, in tokens; None: of no matter, first come, first served.
        max_size: requests in a batch at most.
        max_tokens: of a batch at most, padding included; a longer request runs alone. None: no
            limit.
        num_running: batches that run at once.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Result]] | Callable[[list[Item]], Awaitable[list[Result]]],
        *,
        length: Callable[[Item], int] | None = None,
        max_size: int,
        max_tokens: int | None = None,
        num_running: int = 1,
    ) -> None:
        self._run: Callable[[list[Item]], Any] = run
        self._thread = None if inspect.iscoroutinefunction(run) else ThreadPoolExecutor(1)
        self._length = length
        # a size of 0 would never take a request, and callers would wait forever
        self._max_size: int = validate(PositiveInt, max_size, "max_batch_size")
        self._max_tokens: int | None = validate(PositiveInt | None, max_tokens, "max_batch_tokens")
        self._num_running = num_running
        self._waiting: list[_Waiting[Item, Result]] = []
        self._workers: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # of the workers

    async def submit(self, item: Item) -> Result:
        """Return the result of one request.

        Where its batch fails, it is run again by itself, and what that raises is raised here.
        """
        loop = asyncio.get_running_loop()
        # measured here, so that a length that cannot be measured reaches its caller
        length = self._length(item) if self._length else 1
        waiting: _Waiting[Item, Result] = _Waiting(item, length, loop.create_future())
        if loop is not self._loop:  # workers of an earlier event loop have ended with it
            self._loop, self._workers = loop, set()
            # an answer cannot reach an event loop that is closed
            still = [each for each in self._waiting if not each.future.get_loop().is_closed()]
            self._waiting = still
        self._waiting.append(waiting)
        if len(self._workers) < self._num_running:
            self._start_worker(loop)
        return await waiting.future

    def _start_worker(self, loop: asyncio.AbstractEventLoop) -> None:
        worker = loop.create_task(self._work())
        self._workers.add(worker)
        worker.add_done_callback(self._replace)

    def _replace(self, worker: asyncio.Task[None]) -> None:
        """Replace a worker that was cancelled, perhaps before it began; others have left."""
        self._workers.discard(worker)
        # not one that failed, which would fail again at once, for ever
        if worker.cancelled() and not all(each.future.done() for each in self._waiting):
            self._start_worker(worker.get_loop())

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(0)  # so that whoever is ready to ask is in this batch
            # a request given up by its asker needs no answer
            self._waiting = [each for each in self._waiting if not each.future.done()]
            if not self._waiting:
                self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))
                return
            await self._compute(self._take())

    async def _compute(self, batch: list[_Waiting[Item, Result]]) -> None:
        """Give every request of a batch its result or the error: a caller waits for ever else."""
        items = [each.item for each in batch]
        try:
            if self._thread is None:
                results = list(await self._run(items))
            else:
                results = list(await call_in_thread(self._thread, self._run, items))
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} requests")
        except GeneratorExit:  # the event loop is closed, and nobody waits any more
            raise
        except asyncio.CancelledError:
            for each in batch:
                each.future.cancel()
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
        except BaseException as error:
            # one bad request must not fail the others
            alone = len(batch) == 1 or isinstance(error, Unavailable)
            if not alone and isinstance(error, Exception):
                await asyncio.gather(*(self._compute([each]) for each in batch))
                return
            for each in batch:
                if not each.future.done():
                    each.future.set_exception(error)
        else:
            for each, result in zip(batch, results, strict=True):
                if not each.future.done():
                    each.future.set_result(result)

    def _take(self) -> list[_Waiting[Item, Result]]:
        if self._length is None:
            taken, self._waiting = self._waiting[: self._max_size], self._waiting[self._max_size :]
            return taken
        oldest = self._waiting[0].length
        # the oldest stays first
        nearest = sorted(self._waiting, key=lambda each: abs(each.length - oldest))
        size, longest = 0, 0
        for each in nearest[: self._max_size]:
            longest = max(longest, each.length)
            if size and self._max_tokens is not None and longest * (size + 1) > self._max_tokens:
                break
            size += 1
        ids = {id(each) for each in nearest[:size]}
        self._waiting = [each for each in self._waiting if id(each) not in ids]
        return sorted(nearest[:size], key=lambda each: each.length)


class ScoringQueue(Batcher[Any, float]):
    """The queue of a reward model in this process, of texts whose lengths are numbers of tokens.

    Args:
        run: scores a batch.
        model: the model.
        max_batch_size: maximum number of texts in a batch.
        max_batch_tokens: maximum number of tokens in a batch; by default 32,768 on a GPU, and 2,048
            on a CPU, which gains nothing from larger batches.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], list[float]],
        model: Any,
        max_batch_size: int,
        max_batch_tokens: int | None,
    ) -> None:
        max_tokens = max_batch_tokens or (2_048 if model.device.type == "cpu" else 32_768)
        super().__init__(run, length=len, max_size=max_batch_size, max_tokens=max_tokens)
        config = model.config.get_text_config()
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        self._flops = known_flops(model.config)

    async def scores(self, texts: Sequence[Sized]) -> list[Score]:
        """Return the scores of texts, with their FLOPs where they are known.

        Raises:
            RewardError: a text is longer than the model's context, so that its score would be
                noise; the model failed; or a score is not a finite number.
        """
        longest = max(map(len, texts), default=0)
        if self._context and longest > self._context:
            raise RewardError(
                f"the text has {longest} tokens, the reward model's context holds {self._context}"
            )
        try:
            values = await asyncio.gather(*map(self.submit, texts))
        except RewardError:
            raise
        except Exception as error:  # torch and a model's code have no base of their own
            raise RewardError(f"the reward model failed: {error}") from error
        try:
            return [
                Score(value, self._flops(len(text)) if self._flops else None)
                for value, text in zip(values, texts, strict=True)
            ]
        except ValueError as error:
            raise RewardError(f"the reward model: {error}") from error


def without_gradients(run: Callable[Given, Result]) -> Callable[Given, Result]:
    """Run a method in torch's inference mode."""

    @wraps(run)
    def called(*args: Given.args, **options: Given.kwargs) -> Result:
        import torch

        with torch.inference_mode():
            return run(*args, **options)

    return called


def padded(texts: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Any, Any]:
    """Return token ids and attention mask [B, T], padded on the right."""
    import torch

    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[pad] * (width - len(text))] for text in texts], device=device)
    mask = torch.arange(width, device=device) < torch.tensor(
        [[len(text)] for text in texts], device=device
    )
    return ids, mask.long()


def without_padding(ids: Sequence[int], pad: int | None) -> list[int]:
    """Return a text up to the token that a classifier trained with this padding is read at."""
    end = len(ids)
    while end > 1 and ids[end - 1] == pad:
        end -= 1
    return list(ids[:end])


def spare_token(texts: Iterable[Sequence[int]], num_tokens: int) -> int | None:
    """Return a token of the vocabulary that occurs in none of the texts."""
    used = set().union(*texts)
    return next((token for token in range(num_tokens) if token not in used), None)
