"""A scorer of the user's own behind a documented JSON contract.

    POST url   {"inputs": [{"prompt": [{"role": ..., "content": ...}, ...],
                            "response": "...", "metadata": {...}}, ...]}
    200        {"scores": [1.25, -0.5, ...]}

One raw score, a finite number, per input, in the same order; null means that the input could not
be scored. `metadata` holds the further columns of the prompts file. `scripts/serve_reward.py` is
a server in 20 lines.

The tokens of a request count towards the limits of a run. They are estimated, unless the answer has
"usage": {"prompt_tokens": 123}; 0 for a scorer without a model.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from toa_trl.agents.base import Price, PriceEntry
from toa_trl.agents.completions import read_usage
from toa_trl.errors import RewardError
from toa_trl.models.batching import Batcher
from toa_trl.models.endpoints import Endpoints, RequestError
from toa_trl.rewards.base import RewardModel
from toa_trl.rewards.spending import estimated_conversation, spend
from toa_trl.types import Prompt, as_dicts, is_finite
from toa_trl.utils.config import NonNegativeFloat, PositiveFloat, PositiveInt, validate
from toa_trl.utils.files import without_nan

Input = Mapping[str, Any]


class HTTPReward(RewardModel):
    """Score responses in batches over all prompts in flight.

    A score that is missing, NaN or infinite is requested again alone; if the number of scores is
    wrong, the whole batch is requested again.

    Args:
        url: URL of the scorer, or a list of URLs; the one with the fewest requests is used.
        name: name of the scorer for the dataset card. It is part of the run's identity, the URL
            is not.
        api_key_env: environment variable that holds the key; the key itself is never stored.
        max_batch_size: maximum number of responses in a request.
        max_concurrency: maximum number of requests in flight, over all URLs.
        max_attempts: maximum number of attempts per score, the first included.
        timeout_s: timeout of one attempt.
        wait_s: how long a score waits while no server answers, before the run stops.
        price: {prompt: ..., completion: ...}, the price per million tokens.

    Raises:
        ConfigError: a URL without http:// or https://.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        name: str = "",
        api_key_env: str = "REWARD_API_KEY",
        max_batch_size: PositiveInt = 32,
        max_concurrency: PositiveInt = 16,
        max_attempts: PositiveInt = 5,
        timeout_s: PositiveFloat = 600.0,
        wait_s: NonNegativeFloat = 900.0,
        price: PriceEntry | None = None,
    ) -> None:
        self._price = validate(Price | None, price, "reward.price")
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
            self._send, max_size=max_batch_size, num_running=max_concurrency
        )

    @property
    def prices(self) -> tuple[tuple[str, Price | None], ...]:
        """See `RewardModel`."""
        return (("http", self._price),)

    async def check(self) -> None:
        """See `RewardModel`."""
        await self._endpoints.check()

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        asked, metadata = as_dicts(prompt.messages), without_nan(prompt.metadata)
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
            f"reward 'http': the score must be a finite number, not {score!r} "
            f"({self._max_attempts} attempts)"
        )

    async def _send(self, inputs: list[Input]) -> list[float | None]:
        def scores(answer: Any) -> tuple[list[float | None], Any]:
            values = answer.get("scores") if isinstance(answer, Mapping) else None
            if not isinstance(values, list) or len(values) != len(inputs):
                raise ValueError(
                    f'the answer must be {{"scores": [...]}} with {len(inputs)} numbers'
                )
            return values, answer.get("usage")

        try:
            values, usage = await self._endpoints.post("", {"inputs": inputs}, scores)
        except RequestError as error:
            raise RewardError(f"reward 'http': {error}") from error
        num_prompt, num_completion = read_usage({"usage": usage})
        is_known = num_prompt > 0 or usage == {"prompt_tokens": 0}
        if not is_known:
            num_prompt = sum(estimated_conversation(i["prompt"], i["response"]) for i in inputs)
        spend(num_prompt, num_completion, self._price, is_estimated=not is_known)
        return values
