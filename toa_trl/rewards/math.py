"""Correctness of a final answer, judged by math-verify (Hugging Face's Math-Verify) in workers.

math-verify passes what a model wrote to sympy, which computes without end for 10^(10^10). Its own
timeouts are alarms, which work only in the main thread and cannot interrupt a long operation in C.
So worker processes judge under a limit of processor time that the kernel enforces: an answer can
end only its worker, even after this process was killed. A process pool (multiprocessing, pebble)
cannot guarantee this: it measures wall-clock time in the parent, imports the user's main module
again (spawn) or copies a process with threads (fork).
"""

import asyncio
import json
import logging
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import wait
from numbers import Real
from pathlib import Path
from typing import Any

from toa_trl.errors import RewardError
from toa_trl.rewards.answers import LONGEST, boxed, final_answer, judge
from toa_trl.rewards.base import RewardModel, column_of
from toa_trl.rewards.notation import normalise
from toa_trl.types import Prompt
from toa_trl.utils.config import PositiveFloat

NUM_WORKERS = 2
MAX_BYTES = 4 << 30  # limit of a worker's address space
STALLED_S = 600.0  # wall-clock limit, for a worker that gets no processor time


class MathReward(RewardModel):
    """1.0 if the response's final answer equals the one in the prompt's column, else 0.0.

    The final answer is that of `final_answer`, else that of `stated_answer`. A missing answer is
    wrong; one that cannot be parsed is compared as text. An answer on which the comparison does
    not finish is a `RewardError`. The column may hold a number, a whole solution, as in GSM8K and
    MATH, or a list of all solutions.

    Args:
        column: column of the prompts file with the correct answer.
        timeout_s: processor time per answer.
    """

    def __init__(self, column: str = "answer", timeout_s: PositiveFloat = 10.0) -> None:
        self._column, self._timeout_s = column, timeout_s
        self._threads = ThreadPoolExecutor(NUM_WORKERS)  # one per worker
        self._idle: list[subprocess.Popen[bytes]] = []
        self._all: set[subprocess.Popen[bytes]] = set()

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        answer = _correct_answer(column_of("reward 'math'", prompt, self._column), prompt.id)
        right = await asyncio.gather(*(self._right(answer, text) for text in responses))
        return [float(value) for value in right]

    @property
    def decides_equivalence(self) -> bool:
        """Always true."""
        return True

    async def equivalent(self, answer: str, other: str) -> bool:
        """Return whether two final answers are equal; `answer` is the reference.

        Raises:
            RewardError: math-verify did not finish.
        """
        return await self._right(answer, boxed(other))

    async def aclose(self) -> None:
        """Kill the workers; the next score starts new ones."""
        threads, self._threads = self._threads, ThreadPoolExecutor(NUM_WORKERS)
        threads.shutdown(wait=False, cancel_futures=True)
        ending = asyncio.get_running_loop().run_in_executor(None, threads.shutdown)
        while self._all or not ending.done():  # a thread may have just started a worker
            for worker in list(self._all):
                self._end(worker)
            await asyncio.wait([ending], timeout=0.05)
        self._idle.clear()

    async def _right(self, answer: str, response: str) -> bool:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._ask, answer, response
        )

    def _ask(self, answer: str, response: str) -> bool:
        for _ in range(2):  # replace once a worker that was killed, for example by the OOM killer
            worker = self._idle.pop() if self._idle else self._start()
            line = self._exchange(worker, json.dumps([answer, response]).encode())
            if line:
                self._idle.append(worker)
                return bool(json.loads(line))
            code = self._end(worker)
            if code == -signal.SIGPROF:
                break
        reason = f"its process ended with code {code}"
        if code == -signal.SIGPROF:
            reason = f"did not finish in {self._timeout_s:g} s of processor time"
        judged = final_answer(response) or response[-80:]
        raise RewardError(f"reward 'math': math-verify on {judged[:80]!r}: {reason}")

    def _exchange(self, worker: subprocess.Popen[bytes], asked: bytes) -> bytes:
        assert worker.stdin
        assert worker.stdout
        with suppress(OSError, ValueError):  # the worker ended, or its pipes are closed
            worker.stdin.write(asked + b"\n")
            worker.stdin.flush()
            if wait([worker.stdout.fileno()], STALLED_S):
                return worker.stdout.readline()
        return b""

    def _start(self) -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._timeout_s)],
            stdin=subprocess.PIPE,  # end of file when this process ends
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],  # to import this same package
            start_new_session=True,  # Ctrl-C reaches only this process, which ends its workers
        )
        self._all.add(worker)
        return worker

    def _end(self, worker: subprocess.Popen[bytes]) -> int:
        self._all.discard(worker)
        worker.kill()
        code = worker.wait()
        for pipe in filter(None, (worker.stdin, worker.stdout)):
            with suppress(OSError):
                pipe.close()
        return code


def _correct_answer(value: Any, prompt_id: str) -> str:
    """Return what a column holds as an answer; a list holds all solutions.

    Raises:
        RewardError: it holds nothing that an answer can be compared with.
    """
    items = list(value) if isinstance(value, list | tuple) else [value]
    texts = [final_answer(str(item)) or str(item) for item in items]
    for item, text in zip(items, texts, strict=True):
        is_number = isinstance(item, Real) and math.isfinite(item)
        if not (is_number or isinstance(item, str)) or not normalise(text) or len(text) > LONGEST:
            raise RewardError(
                f"reward 'math': prompt {prompt_id!r}: a number, a text with a final answer or a "
                f"list of them is needed, not {item!r:.80}"
            )
    return str(value) if items == [value] else ", ".join(texts)


def work(timeout_s: float) -> None:
    """Run a worker: read lines [answer, response] and write 0 or 1 until the input ends."""
    import resource

    import toa_trl.rewards.equality  # noqa: F401  # before the timer starts

    logging.disable()
    hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    with suppress(ValueError):  # the hard limit is lower
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, hard_limit))
    for line in sys.stdin.buffer:
        # SIGPROF has no handler: it ends the process even during a long operation in C.
        signal.setitimer(signal.ITIMER_PROF, timeout_s)
        right = judge(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{int(right)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    work(float(sys.argv[1]))
