"""Reward models served by `vllm serve MODEL --runner pooling`, asked by POST /classify."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toa_trl.errors import RewardError
from toa_trl.models.chat import fold_system, takes_system
from toa_trl.models.endpoints import Endpoints, RequestError
from toa_trl.models.loading import load_tokenizer, trained_padding
from toa_trl.rewards.base import RewardModel, is_finite
from toa_trl.rewards.heads import conversation, render, without_padding
from toa_trl.types import Prompt, as_openai
from toa_trl.utils.config import NonNegativeFloat, PositiveFloat, PositiveInt


class VLLMReward(RewardModel):
    """The raw logit of [prompt messages + response].

    `use_activation` is false, because vLLM applies a sigmoid by default. vLLM batches what is in
    flight, so every response is a separate request.

    vLLM reads the last token. A model that was trained with eos as padding token (TRL's default for
    Llama-3 and Mistral; `toa-trl reward` trains none) is read before it: where its tokenizer is
    known, such a text is sent as token ids up to there.

    Args:
        model: name on the server; a sequence classifier with one label and a chat template.
        base_url: e.g. "http://localhost:8010/v1", or a list; the server with the fewest requests
            is used.
        api_key_env: environment variable that holds the key; the key itself is never stored.
        max_concurrency: maximum number of requests in flight, over all base URLs.
        tokenizer: folder or Hub name of the model's tokenizer and configuration, which tell the
            token that is read, and whether the template has a system role. Default: `model`, if
            that is a folder here.
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
        tokenizer: str | None = None,
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
        is_here = (Path(model) / "tokenizer_config.json").is_file()
        source = tokenizer or (model if is_here else None)
        self._tokenizer: Any = None
        if source is not None:
            loaded = load_tokenizer("reward 'vllm'", source, template=tokenizer is not None)
            self._pad = trained_padding("reward 'vllm'", source, loaded)
            self._tokenizer = loaded if loaded.chat_template else None

    async def check(self) -> None:
        """See `RewardModel`."""
        await self._endpoints.check()

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        requests = []
        for response in responses:
            body = {"model": self._model, **self._text(prompt, response), "use_activation": False}
            requests.append(self._endpoints.post("classify", body, _logit))
        try:
            return await asyncio.gather(*requests)
        except RequestError as error:
            raise RewardError(f"reward 'vllm': {error}") from error

    def _text(self, prompt: Prompt, response: str) -> dict[str, Any]:
        """Return the messages, or the token ids where the last token is not the one to be read."""
        messages = [*as_openai(prompt.messages), {"role": "assistant", "content": response}]
        if self._tokenizer is None:
            return {"messages": messages}
        if not takes_system(self._tokenizer):
            messages = fold_system(messages)
        ids = render(self._tokenizer, conversation(prompt, response))
        read = without_padding(ids, self._pad)
        return {"messages": messages} if len(read) == len(ids) else {"input": read}

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
