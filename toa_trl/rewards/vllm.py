"""Reward models served by `vllm serve MODEL --runner pooling`, asked by POST /classify."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toa_trl.agents.base import Price, PriceEntry
from toa_trl.agents.completions import read_usage
from toa_trl.agents.openai import as_openai
from toa_trl.errors import ConfigError, RewardError
from toa_trl.models.batching import without_padding
from toa_trl.models.chat import ChatTemplate, fold_system
from toa_trl.models.endpoints import Endpoints, RequestError
from toa_trl.models.loading import load_tokenizer, trained_padding
from toa_trl.rewards.base import RewardModel
from toa_trl.rewards.scoring import chat_template
from toa_trl.rewards.spending import estimated_conversation, spend
from toa_trl.types import Prompt, as_dicts, is_finite
from toa_trl.utils.config import NonNegativeFloat, PositiveFloat, PositiveInt, validate

logger = logging.getLogger(__name__)


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
            that is a folder here, else the model that the server lists.
        max_attempts: maximum number of attempts per score, the first included.
        timeout_s: timeout of one attempt.
        wait_s: how long a score waits while no server answers, before the run stops.
        price: {prompt: ...}, the price per million tokens. Tokens are counted by the server, else
            by the tokenizer if it is known; else they are estimated.

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
        price: PriceEntry | None = None,
    ) -> None:
        self._price = validate(Price | None, price, "reward.price")
        # /classify is not part of the OpenAI API under /v1.
        given = [base_url] if isinstance(base_url, str) else base_url
        urls = [url.rstrip("/").removesuffix("/v1") for url in given]
        self._endpoints = Endpoints(
            "reward 'vllm'",
            urls,
            probe="v1/models",
            api_key_env=api_key_env,
            max_concurrency=max_concurrency,
            max_attempts=max_attempts,
            timeout_s=timeout_s,
            wait_s=wait_s,
        )
        self._model = model
        is_here = (Path(model) / "tokenizer_config.json").is_file()
        source = tokenizer or (model if is_here else None)
        self._source: str | None = None  # of the tokenizer, once it is known
        self._template: ChatTemplate | None = None
        if source is not None:
            self._read_tokenizer(source, template=tokenizer is not None)

    def _read_tokenizer(self, source: str, template: bool) -> None:
        loaded = load_tokenizer("reward 'vllm'", source, template=template)
        self._pad = trained_padding("reward 'vllm'", source, loaded)
        self._template = chat_template(loaded) if loaded.chat_template else None
        self._source = source

    @property
    def prices(self) -> tuple[tuple[str, Price | None], ...]:
        """See `RewardModel`."""
        return (("vllm", self._price),)

    async def check(self) -> None:
        """Check the servers, and find the tokenizer of the model that they list."""
        answer = await self._endpoints.check()
        if self._source is not None:
            return
        root = _root_of(answer, self._model)
        if root is not None and (not Path(root).is_absolute() or Path(root).is_dir()):
            try:
                self._read_tokenizer(root, template=False)
                return
            except ConfigError as error:
                logger.debug("%s", error)
        logger.warning(
            "reward 'vllm': the tokenizer of %r is not known: neither that name nor the model that "
            "the server lists is a folder here or a name on the Hub. A model that was trained with "
            "eos as padding token (foreign ones of Llama-3 or Mistral) is read at the wrong token "
            "then; name the folder or the Hub name of its tokenizer with `tokenizer`",
            self._model,
        )

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        try:
            return await asyncio.gather(*(self._score(prompt, text) for text in responses))
        except RequestError as error:
            raise RewardError(f"reward 'vllm': {error}") from error

    async def _score(self, prompt: Prompt, response: str) -> float:
        text, num_tokens = self._text(prompt, response)
        body = {"model": self._model, **text, "use_activation": False}
        logit, num_counted = await self._endpoints.post("classify", body, _logit)
        known = num_counted or num_tokens
        num_spent = known or estimated_conversation(prompt.messages, response)
        spend(num_spent, price=self._price, is_estimated=not known)
        return logit

    def _text(self, prompt: Prompt, response: str) -> tuple[dict[str, Any], int]:
        """Return the text to be read, with its number of tokens, 0 if that is unknown.

        Messages, or token ids where the last token is not the one to be read.
        """
        messages = [*as_openai(prompt.messages), {"role": "assistant", "content": response}]
        if self._template is None:
            return {"messages": messages}, 0
        if not self._template.takes_system:
            messages = fold_system(messages)
        ids = self._template.render(as_dicts(prompt.messages), response)
        read = without_padding(ids, self._pad)
        if len(read) == len(ids):
            return {"messages": messages}, len(ids)
        return {"input": read}, len(read)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoints.aclose()


def _root_of(answer: Any, name: str) -> str | None:
    """Return the path or Hub name of a model in a server's list of models."""
    listed = answer.get("data") if isinstance(answer, dict) else None
    for model in listed if isinstance(listed, list) else []:
        if isinstance(model, dict) and model.get("id") == name:
            root = model.get("root")
            return root if isinstance(root, str) and root else None
    return None


def _logit(answer: Any) -> tuple[float, int]:
    """Return the logit, and the number of tokens that the server has read, 0 if it is unknown."""
    try:
        (result,) = answer["data"]
        (logit,) = result["probs"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("the answer must be one text with one logit") from error
    if not is_finite(logit):
        raise ValueError(f"the logit must be a finite number, not {logit!r}")
    return float(logit), read_usage(answer)[0]
