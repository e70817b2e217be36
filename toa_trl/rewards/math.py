"""Is the final answer right? math-verify (Hugging Face's Math-Verify), in a process of its own.

math-verify hands what a model wrote to sympy, which for 10^(10^10) computes until memory or patience ends, and its own
timeouts are alarms, which exist in a main thread only and which a long operation in C does not hear. So a worker
process judges under a limit of processor time that the kernel enforces: whatever an answer does, it ends that worker and
nothing else, also after this process is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

from toa_trl.errors import RewardError
from toa_trl.rewards.answers import boxed, final_answer, judge
from toa_trl.rewards.base import RewardModel, column_of
from toa_trl.types import Prompt
from toa_trl.utils.registry import check_number

NUM_WORKERS = 2
MAX_BYTES = 4 << 30  # of a worker's address space
STALLED_S = 600.0  # a worker that is silent for so long gets no processor time at all


class MathReward(RewardModel):
    """1.0 where the response's final answer is the one in the prompt's column, 0.0 where it is not.

    The final answer is that of `final_answer`; without one, what math-verify finds in the last 10,000 characters. No
    answer, or one that cannot be parsed, is not right. One on which math-verify does not come to an end is not judged:
    that is a `RewardError`. Of the column's text the final answer is taken as well, so that the solutions of GSM8K and
    MATH can stand there as they are.

    Args:
        column: of the prompts file, which holds the right answer.
        timeout_s: processor time of one answer, > 0.

    Raises:
        ConfigError: timeout_s is no number > 0.
    """

    def __init__(self, column: str = "answer", timeout_s: float = 10.0) -> None:
        check_number("reward 'math': timeout_s", timeout_s, at_least=0, above=True)
        self._column, self._timeout_s = column, timeout_s
        self._threads = ThreadPoolExecutor(NUM_WORKERS)  # each waits for one worker
        self._idle: list[subprocess.Popen[bytes]] = []
        self._all: set[subprocess.Popen[bytes]] = set()

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        answer = str(column_of("reward 'math'", prompt, self._column))
        return [
            float(r)
            for r in await asyncio.gather(*(self._right(answer, each) for each in responses))
        ]

    @property
    def decides_equivalence(self) -> bool:
        """True."""
        return True

    async def equivalent(self, answer: str, other: str) -> bool:
        """Whether two final answers, as of `final_answer`, say the same; `answer` is the one to go by.

        Raises:
            RewardError: math-verify came to no end.
        """
        return await self._right(answer, boxed(other))

    async def aclose(self) -> None:
        """End the workers, whatever they do; the next score starts new ones."""
        threads, self._threads = self._threads, ThreadPoolExecutor(NUM_WORKERS)
        threads.shutdown(wait=False, cancel_futures=True)
        ending = asyncio.get_running_loop().run_in_executor(None, threads.shutdown)
        while self._all or not ending.done():  # a thread may just have started one
            for worker in list(self._all):
                self._end(worker)
            await asyncio.wait([ending], timeout=0.05)
        self._idle.clear()

    async def _right(self, answer: str, response: str) -> bool:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._ask, answer, response
        )

    def _ask(self, answer: str, response: str) -> bool:
        for _ in range(
            2
        ):  # a worker that something else ended, the kernel for want of memory, is replaced once
            worker = self._idle.pop() if self._idle else self._start()
            if line := self._tell(worker, json.dumps([answer, response]).encode()):
                self._idle.append(worker)
                return bool(json.loads(line))
            code = self._end(worker)
            if code == -signal.SIGPROF:
                break
        late = code == -signal.SIGPROF
        reason = (
            f"no end in {self._timeout_s:g} s of processor time"
            if late
            else f"its process ended with code {code}"
        )
        what = final_answer(response) or response[-80:]
        raise RewardError(f"reward 'math': math-verify on {what[:80]!r}: {reason}")

    def _tell(self, worker: subprocess.Popen[bytes], asked: bytes) -> bytes:
        assert worker.stdin
        assert worker.stdout
        with suppress(OSError, ValueError):  # it has ended, or its pipes are closed
            worker.stdin.write(asked + b"\n")
            worker.stdin.flush()
            if wait([worker.stdout.fileno()], STALLED_S):
                return worker.stdout.readline()
        return b""

    def _start(self) -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._timeout_s)],
            stdin=subprocess.PIPE,  # its end of file says that this process is gone
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],  # so that it is this very package
            start_new_session=True,  # Ctrl-C is for this process, which then ends its workers
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


def work(timeout_s: float) -> None:
    """The worker: a line [answer, response] in, 0 or 1 out, until its input ends or an answer takes too long."""
    import resource

    import math_verify  # noqa: F401  # before the clock runs

    logging.disable()
    with suppress(ValueError):  # less is allowed already
        resource.setrlimit(
            resource.RLIMIT_AS, (MAX_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1])
        )
    for line in sys.stdin.buffer:
        signal.setitimer(
            signal.ITIMER_PROF, timeout_s
        )  # nobody handles SIGPROF: it ends the process, C or not
        right = judge(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{int(right)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    work(float(sys.argv[1]))
