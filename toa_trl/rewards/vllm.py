"""Reward models served by `vllm serve MODEL --runner pooling`, asked by POST /classify."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from toa_trl.errors import RewardError
from toa_trl.models.endpoints import Endpoints, RequestError
from toa_trl.rewards.base import RewardModel, is_finite
from toa_trl.types import Prompt, as_openai
from toa_trl.utils.config import NonNegativeFloat, PositiveFloat, PositiveInt


class VLLMReward(RewardModel):
    """The raw logit of [prompt messages + response].

    `use_activation` is false, because vLLM applies a sigmoid by default. vLLM batches what is in
    flight, so every response is a separate request.

    Args:
        model: name on the server; a sequence classifier with one label and a chat template.
        base_url: e.g. "http://localhost:8010/v1", or a list; the server with the fewest requests
            is used.
        api_key_env: environment variable that holds the key; the key itself is never stored.
        max_concurrency: maximum number of requests in flight, over all base URLs.
        max_attempts: maximum number of attempts per score, the first included.
        timeout_s: timeout of one attempt.
        wait_s: how long a score waits while no server answers, before the run stops.

    Raises:
        ConfigError: a URL without http:// or https://.
    """

    def __init__(
        self,
        model: str,
        base_url: str | Sequence[str],
        api_key_env: str = "OPENAI_API_KEY",
        max_concurrency: PositiveInt = 256,
        max_attempts: PositiveInt = 5,
        timeout_s: PositiveFloat = 600.0,
        wait_s: NonNegativeFloat = 900.0,
    ) -> None:
        # /classify is not part of the OpenAI API under /v1.
        given = [base_url] if isinstance(base_url, str) else base_url
        urls = [url.rstrip("/").removesuffix("/v1") for url in given]
        self._endpoints = Endpoints(
            "reward 'vllm'",
            urls,
            probe="health",
            api_key_env=api_key_env,
            max_concurrency=max_concurrency,
            max_attempts=max_attempts,
            timeout_s=timeout_s,
            wait_s=wait_s,
        )
        self._model = model

    async def check(self) -> None:
        """See `RewardModel`."""
        await self._endpoints.check()

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        asked = as_openai(prompt.messages)
        requests = []
        for response in responses:
            messages = [*asked, {"role": "assistant", "content": response}]
            body = {"model": self._model, "messages": messages, "use_activation": False}
            requests.append(self._endpoints.post("classify", body, _logit))
        try:
            return await asyncio.gather(*requests)
        except RequestError as error:
            raise RewardError(f"reward 'vllm': {error}") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoints.aclose()


def _logit(answer: Any) -> float:
    try:
        (result,) = answer["data"]
        (logit,) = result["probs"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("the answer must be one text with one logit") from error
    if not is_finite(logit):
        raise ValueError(f"the logit must be a finite number, not {logit!r}")
    return float(logit)
