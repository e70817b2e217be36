"""A model behind OpenAI-compatible servers (vLLM, SGLang, llama.cpp, TGI, hosted ones): chat completions over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from toa_trl.agents.base import Agent, SamplingOf, with_system, without_reasoning
from toa_trl.errors import AgentError, ConfigError
from toa_trl.models.endpoints import Endpoints, RequestError
from toa_trl.models.flops import Flops
from toa_trl.types import Completion, Message, Sampling, as_dicts

logger = logging.getLogger(__name__)


class OpenAIAgent(Agent):
    """One model behind one or many base URLs; what happens when one of them fails: `toa_trl.models.endpoints`.

    Args:
        name: of the agent.
        model: as the server calls it.
        base_url: e.g. "http://localhost:8000/v1", or a list of them: the one with the fewest outstanding requests is asked.
        system_prompt: put in front of every conversation.
        sampling: what this agent does otherwise than the run, e.g. {temperature: 1.0}.
        extra_body: further fields of the request, e.g. {top_k: 20}.
        keep_reasoning: leave what a reasoning model thinks in the text, so that it is scored, shown to other agents and
            trained on. Otherwise it is kept apart, in `Completion.reasoning`.
        api_key_env: environment variable that holds the key; the key itself is never written anywhere.
        config: folder or Hub name whose configuration gives the FLOPs per token; without it FLOPs are not known.
        max_concurrency: requests in flight at most, over all base URLs.
        max_attempts: of one play, the first included.
        timeout_s: of one attempt.

    Raises:
        ConfigError: a URL without http:// or https://, a number out of range, or a config that cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        model: str,
        base_url: str | Sequence[str],
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        keep_reasoning: bool = False,
        api_key_env: str = "OPENAI_API_KEY",
        config: str | None = None,
        max_concurrency: int = 256,
        max_attempts: int = 5,
        timeout_s: float = 600.0,
    ) -> None:
        self.name = name
        self._place = f"agent {name!r}"
        if not isinstance(model, str) or not model:
            raise ConfigError(f"{self._place}: model must be a name, not {model!r}")
        self._model = model
        self._endpoints = Endpoints(
            self._place,
            base_url,
            probe="models",
            api_key_env=api_key_env,
            max_concurrency=max_concurrency,
            max_attempts=max_attempts,
            timeout_s=timeout_s,
        )
        self._system_prompt = system_prompt
        self._sampling = SamplingOf(self._place, sampling)
        self._extra_body = dict(extra_body or {})
        self._keep_reasoning = keep_reasoning
        self._flops = _flops(self._place, config) if config else None

    @property
    def away(self) -> str | None:
        """Why none of its servers can be asked now; None while one can."""
        return self._endpoints.away

    @property
    def can_be_away(self) -> bool:
        """True: its servers may go and come back."""
        return True

    async def check(self) -> None:
        """Raises:
        ConfigError: a base URL cannot be reached, or refuses the key.
        """
        answer = await self._endpoints.check()
        try:
            served = [model["id"] for model in answer["data"]]
        except (KeyError, TypeError):
            return  # not every server lists its models
        if served and self._model not in served:
            logger.warning(
                "%s: the server lists no model %r; it has %s", self._place, self._model, served[:5]
            )

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`.

        Raises:
            Unavailable: none of its servers answers.
        """
        sampling = self._sampling(sampling)
        body = {
            "model": self._model,
            "messages": as_dicts(with_system(messages, self._system_prompt)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed,
            **({"stop": list(sampling.stop)} if sampling.stop else {}),
            **self._extra_body,
        }
        try:
            return await self._endpoints.post("chat/completions", body, self._completion)
        except RequestError as error:
            raise AgentError(f"{self._place}: {error}") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoints.aclose()

    def _completion(self, answer: Any) -> Completion:
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            message, finish_reason = choice["message"], choice.get("finish_reason") or "stop"
            text, reasoning = (
                message["content"],
                message.get("reasoning_content") or message.get("reasoning"),
            )
            num_prompt, num_completion = (
                usage.get("prompt_tokens") or 0,
                usage.get("completion_tokens") or 0,
            )
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError("not a chat completion") from error
        texts, numbers = (finish_reason, reasoning or ""), (num_prompt, num_completion)
        if not all(isinstance(value, str) for value in texts) or not all(
            isinstance(value, int) for value in numbers
        ):
            raise ValueError("not a chat completion: something in it has another type")
        flops = self._flops(num_prompt + num_completion) if self._flops and num_completion else None
        text = text if isinstance(text, str) else ""
        if self._keep_reasoning and reasoning:
            text, reasoning = f"<think>\n{reasoning}\n</think>\n\n{text}", None
        done = Completion(text, finish_reason, num_prompt, num_completion, flops, reasoning)
        if not self._keep_reasoning:
            done = without_reasoning(self._place, done)
        if not done.text.strip():
            raise AgentError(
                f"{self._place}: an empty response (finish_reason {finish_reason})", done
            )
        return done


def _flops(place: str, config: str) -> Flops:
    from transformers import AutoConfig

    try:
        return Flops.from_config(AutoConfig.from_pretrained(config))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{place}: no configuration could be loaded from {config!r}: {error}"
        ) from error
