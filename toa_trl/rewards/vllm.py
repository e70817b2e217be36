"""A reward model behind vLLM's pooling server: `vllm serve MODEL --runner pooling`, asked through POST /classify."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from toa_trl.errors import RewardError
from toa_trl.models.endpoints import Endpoints, RequestError
from toa_trl.rewards.base import RewardModel, is_finite
from toa_trl.types import Prompt, as_dicts


class VLLMReward(RewardModel):
    """The raw logit of [prompt messages + response]: `use_activation` is false, since vLLM's default is its sigmoid.

    vLLM makes its own batches of what is in flight, so a response is a request.

    Args:
        model: as the server calls it; a sequence classifier with one label and a chat template.
        base_url: e.g. "http://localhost:8010/v1", or a list of them: the one with the fewest outstanding requests is asked.
        api_key_env: environment variable that holds the key; the key itself is never written anywhere.
        max_concurrency: requests in flight at most, over all base URLs.
        max_attempts: of one score, the first included.
        timeout_s: of one attempt.
        wait_s: how long a score waits while none of the servers answers; then the run stops.

    Raises:
        ConfigError: a URL without http:// or https://, or a number out of range.
    """

    def __init__(
        self,
        model: str,
        base_url: str | Sequence[str],
        api_key_env: str = "OPENAI_API_KEY",
        max_concurrency: int = 256,
        max_attempts: int = 5,
        timeout_s: float = 600.0,
        wait_s: float = 900.0,
    ) -> None:
        urls = [base_url] if isinstance(base_url, str) else base_url
        if isinstance(urls, list | tuple):
            urls = [
                str(url).rstrip("/").removesuffix("/v1") for url in urls
            ]  # /classify is not part of the OpenAI API
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
        """Raises:
        ConfigError: a base URL cannot be reached, or refuses the key.
        """
        await self._endpoints.check()

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`.

        Raises:
            Unavailable: none of its servers answers.
        """
        asked = as_dicts(prompt.messages)
        bodies = [
            {
                "model": self._model,
                "messages": [*asked, {"role": "assistant", "content": response}],
                "use_activation": False,
            }
            for response in responses
        ]
        try:
            return list(
                await asyncio.gather(
                    *(self._endpoints.post("classify", body, _logit) for body in bodies)
                )
            )
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
        raise ValueError("one text with one logit was needed") from error
    if not is_finite(logit):
        raise ValueError(f"a finite number was needed, not {logit!r}")
    return float(logit)
