"""A model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, TGI, hosted ones): chat completions over HTTP.

The client is aiohttp: 64 requests in flight against a server that answers at once cost the openai SDK and httpx about
ten times its CPU time per call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import aiohttp

from toa_trl.agents.base import make_sampling, with_system
from toa_trl.errors import AgentError, ConfigError
from toa_trl.flops import Flops
from toa_trl.types import Completion, Message, Sampling, as_dicts

logger = logging.getLogger(__name__)

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}  # what a later attempt may mend


class OpenAIAgent:
    """One model behind one or several base URLs, asked in turn.

    Args:
        name: of the agent.
        model: as the server calls it.
        base_url: e.g. "http://localhost:8000/v1", or a list of them.
        system_prompt: put in front of every conversation.
        sampling: what this agent does otherwise than the run, e.g. {temperature: 1.0}.
        extra_body: further fields of the request, e.g. {top_k: 20}.
        api_key_env: environment variable that holds the key; the key itself is never written anywhere.
        config: folder or Hub name whose configuration gives the FLOPs per token; without it FLOPs are not known.
        max_concurrency: requests in flight at most.
        max_attempts: of one play, the first included.
        timeout_s: of one attempt.

    Raises:
        ConfigError: a URL without http:// or https://, or a config that cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        model: str,
        base_url: str | Sequence[str],
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        config: str | None = None,
        max_concurrency: int = 64,
        max_attempts: int = 5,
        timeout_s: float = 600.0,
    ) -> None:
        self.name = name
        self._model = model
        self._urls = [base_url] if isinstance(base_url, str) else list(base_url)
        if not self._urls or not all(str(url).startswith(("http://", "https://")) for url in self._urls):
            raise ConfigError(f"agent {name!r}: base_url must begin with http:// or https://, not {base_url!r}")
        self._turn = count()
        self._system_prompt = system_prompt
        self._sampling = dict(sampling or {})
        make_sampling(f"agent {name!r}: sampling", Sampling(), self._sampling)
        self._extra_body = dict(extra_body or {})
        self._api_key_env = api_key_env
        self._flops = _flops(name, config) if config else None
        self._max_concurrency = max_concurrency
        self._max_attempts = max_attempts
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def generate(self, messages: Sequence[Message], *, sampling: Sampling, seed: int) -> Completion:
        """See `Agent`. Connection errors, timeouts, 429 and 5xx are tried again with exponential backoff and jitter."""
        sampling = make_sampling(f"agent {self.name!r}", sampling, self._sampling)
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
        reason = ""
        for attempt in range(self._max_attempts):
            if attempt:
                await asyncio.sleep(min(30.0, 0.5 * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5))
            url = self._urls[next(self._turn) % len(self._urls)].rstrip("/") + "/chat/completions"
            try:
                async with self._open_session().post(url, json=body) as response:
                    if response.status == 200:
                        return self._completion(await response.json(content_type=None))
                    reason = f"{url} answered {response.status}: {(await response.text())[:300]}"
                    if response.status not in RETRIED:
                        break
            except (TimeoutError, aiohttp.ClientError, ValueError) as error:  # ValueError: a body that is not JSON
                reason = f"{url}: {type(error).__name__}: {error}"
            logger.debug("agent %s, attempt %d: %s", self.name, attempt + 1, reason)
        raise AgentError(f"agent {self.name!r}: {reason}")

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            key = os.environ.get(self._api_key_env)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_concurrency),
                headers={"Authorization": f"Bearer {key}"} if key else None,
                # a request that waits for a free connection has not begun: only its own time counts
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=self._timeout_s),
            )
        return self._session

    def _completion(self, answer: Any) -> Completion:
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            text, finish_reason = choice["message"]["content"], choice.get("finish_reason") or "stop"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"not a chat completion: {str(answer)[:300]}") from error
        if not isinstance(text, str) or not text.strip():
            raise AgentError(f"agent {self.name!r}: an empty response (finish_reason {finish_reason})")
        num_prompt, num_completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
        flops = self._flops(num_prompt + num_completion) if self._flops and num_completion else None
        return Completion(text, finish_reason, num_prompt, num_completion, flops)


def _flops(name: str, config: str) -> Flops:
    from transformers import AutoConfig

    try:
        return Flops.from_config(AutoConfig.from_pretrained(config))
    except (OSError, ValueError) as error:
        raise ConfigError(f"agent {name!r}: no configuration could be loaded from {config!r}: {error}") from error
