"""Anybody's own scorer behind one documented JSON contract.

    POST url   {"inputs": [{"prompt": [{"role": ..., "content": ...}, ...], "response": "...", "metadata": {...}}, ...]}
    200        {"scores": [1.25, -0.5, ...]}

One raw score, a finite number, per input and in its order. `metadata` holds the further columns of the prompts file. null
says that this input could not be scored. `scripts/serve_reward.py` is a server in 20 lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from toa_trl.errors import RewardError
from toa_trl.models.batching import Batcher
from toa_trl.models.endpoints import Endpoints, RequestError
from toa_trl.rewards.base import RewardModel, is_finite
from toa_trl.types import Prompt, as_dicts
from toa_trl.utils.registry import check_whole

Input = Mapping[str, Any]


class HTTPReward(RewardModel):
    """Scores in batches over all prompts in flight.

    A score that is missing, NaN or infinite is asked for again, by itself; a wrong number of scores, the whole batch.

    Args:
        url: where to POST, or a list of such: the one with the fewest outstanding requests is asked.
        name: of the scorer, for the data set card. A run goes on only under the name it was begun with, at whatever URL.
        api_key_env: environment variable that holds the key; the key itself is never written anywhere.
        max_batch_size: responses in one request at most.
        max_concurrency: requests in flight at most, over all URLs.
        max_attempts: of one score, the first included.
        timeout_s: of one attempt.
        wait_s: how long a score waits while none of the servers answers; then the run stops.

    Raises:
        ConfigError: a URL without http:// or https://, or a number out of range.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        name: str = "",
        api_key_env: str = "REWARD_API_KEY",
        max_batch_size: int = 32,
        max_concurrency: int = 16,
        max_attempts: int = 5,
        timeout_s: float = 600.0,
        wait_s: float = 900.0,
    ) -> None:
        check_whole("reward 'http': max_batch_size", max_batch_size, at_least=1)
        self._endpoints = Endpoints(
            "reward 'http'",
            url,
            probe="",
            api_key_env=api_key_env,
            max_concurrency=max_concurrency,
            max_attempts=max_attempts,
            timeout_s=timeout_s,
            wait_s=wait_s,
        )
        self._max_attempts = max_attempts
        self._queue: Batcher[Input, float | None] = Batcher(
            self._send, length=lambda given: 0, max_size=max_batch_size, num_running=max_concurrency
        )

    async def check(self) -> None:
        """Raises:
        ConfigError: a URL cannot be reached, or refuses the key.
        """
        await self._endpoints.check()

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`.

        Raises:
            Unavailable: none of its servers answers.
        """
        asked, metadata = as_dicts(prompt.messages), dict(prompt.metadata)
        inputs = (
            {"prompt": asked, "response": response, "metadata": metadata} for response in responses
        )
        return list(await asyncio.gather(*map(self._score, inputs)))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoints.aclose()

    async def _score(self, given: Input) -> float:
        for _ in range(self._max_attempts):
            score = await self._queue.submit(given)
            if is_finite(score):
                return float(score)
        raise RewardError(
            f"reward 'http': a finite number was needed, not {score!r} ({self._max_attempts} attempts)"
        )

    async def _send(self, inputs: list[Input]) -> list[float | None]:
        def scores(answer: Any) -> list[float | None]:
            found = answer.get("scores") if isinstance(answer, Mapping) else None
            if not isinstance(found, list) or len(found) != len(inputs):
                raise ValueError(f'{{"scores": [...]}} with {len(inputs)} numbers was needed')
            return found

        try:
            return await self._endpoints.post("", {"inputs": inputs}, scores)
        except RequestError as error:
            raise RewardError(f"reward 'http': {error}") from error
