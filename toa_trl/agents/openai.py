"""A model behind OpenAI-compatible servers: vLLM, SGLang, llama.cpp, TGI, hosted ones."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from toa_trl.agents.base import NEUTRAL, Agent, SamplingEntry
from toa_trl.agents.completions import (
    SamplingOf,
    estimated_tokens,
    read_usage,
    storable,
    with_system,
    without_reasoning,
)
from toa_trl.agents.refusals import advice_on, refuses_system
from toa_trl.agents.replies import MALFORMED, Reply, reply_of_parts
from toa_trl.errors import AgentError, ConfigError
from toa_trl.models.chat import fold_system
from toa_trl.models.endpoints import Endpoints, RequestError
from toa_trl.models.flops import flops_of
from toa_trl.types import Completion, Flops, Message, Sampling, as_dicts, finish_of
from toa_trl.utils.config import PositiveFloat, PositiveInt, Text

logger = logging.getLogger(__name__)

MAX_SHOWN = 200  # characters of a refusal that an error shows
BASE_URL = "OPENAI_BASE_URL"


class OpenAIAgent(Agent):
    """Ask one model behind one or several base URLs; `toa_trl.models.endpoints` handles faults.

    Neutral values of top_k, min_p and repetition_penalty are sent, because servers would take them
    from the model's generation_config.json; they are left out for a server that refuses them. Where
    a server's chat template refuses system messages (Gemma's), they go into the first user message.

    Args:
        name: name of the agent.
        model: name of the model on the server.
        base_url: URL such as "http://localhost:8000/v1", or a list of URLs; requests go to the one
            with the fewest outstanding requests. A query string is kept. Default: the environment
            variable OPENAI_BASE_URL.
        system_prompt: system prompt that is put in front of every conversation.
        sampling: sampling parameters that differ from the run's, such as {temperature: 1.0}.
        extra_body: further fields of the request, such as {top_k: 20}; null leaves a field out.
        fields: names of fields that the server takes under another name, or null for those that it
            refuses, such as {max_tokens: max_completion_tokens, seed: null}. Without the seed a run
            cannot be repeated.
        keep_reasoning: keep the reasoning in the text, so that it is scored, shown to other agents
            and trained on; otherwise it is stored apart, in `Completion.reasoning`.
        api_key_env: environment variable that holds the key; the key itself is never stored.
        config: folder or Hub name of the model whose configuration gives the FLOPs per token, and
            whose tokenizer counts the tokens where the server does not; without it FLOPs are
            unknown, and such tokens are estimated.
        max_concurrency: maximum number of requests in flight, over all base URLs.
        max_attempts: maximum number of attempts of one play, the first included.
        timeout_s: timeout of one attempt in seconds.

    Raises:
        ConfigError: a URL or a number is invalid, or `config` cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        model: Text,
        base_url: str | Sequence[str] | None = None,
        system_prompt: str | None = None,
        sampling: SamplingEntry | None = None,
        extra_body: Mapping[str, Any] | None = None,
        fields: Mapping[str, str | None] | None = None,
        keep_reasoning: bool = False,
        api_key_env: str = "OPENAI_API_KEY",
        config: str | None = None,
        max_concurrency: PositiveInt = 256,
        max_attempts: PositiveInt = 5,
        timeout_s: PositiveFloat = 600.0,
    ) -> None:
        self.name = name
        self._place = f"agent {name!r}"
        self._model = model
        base_url = base_url or os.environ.get(BASE_URL)
        if not base_url:
            raise ConfigError(f"{self._place}: base_url is missing, and {BASE_URL} is not set")
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
        self._fields = dict(fields or {})
        self._tokenizer = _Tokenizer(self._place, config) if config else None
        self._neutral: dict[str, Any] = NEUTRAL
        self._folds_system = False
        self._keep_reasoning = keep_reasoning
        self._flops = _flops(self._place, config) if config else None

    @property
    def away(self) -> str | None:
        """See `Agent`."""
        return self._endpoints.away

    @property
    def can_be_away(self) -> bool:
        """See `Agent`."""
        return True

    async def check(self) -> None:
        """Check that every base URL can be reached and accepts the key.

        Raises:
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
        asked = as_openai(with_system(messages, self._system_prompt))
        sampling = self._sampling(sampling)
        neutral, folds_system = self._neutral, self._folds_system
        read = partial(self._completion, asked)
        while True:
            sent = fold_system(asked) if folds_system else asked
            body = self._body(sent, sampling, seed, neutral)
            try:
                done = await self._endpoints.post("chat/completions", body, read)
            except RequestError as error:
                said = str(error)
                if neutral and any(name in said for name in NEUTRAL):
                    neutral = {}
                elif not folds_system and refuses_system(said, asked):
                    folds_system = True
                else:
                    advice = advice_on(said, body) if error.status in (400, 422) else ""
                    raise AgentError(f"{self._place}: {said}{advice}") from error
            else:
                self._remember(neutral, folds_system)
                return done

    def _body(
        self,
        messages: list[dict[str, Any]],
        sampling: Sampling,
        seed: int,
        neutral: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return the fields of a request."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        body |= neutral
        if self._fields:
            renamed = {self._fields.get(name, name): value for name, value in body.items()}
            body = {name: value for name, value in renamed.items() if name is not None}
        for name, value in self._extra_body.items():
            body.pop(name, None)
            if value is not None:
                body[name] = value
        return body

    def _remember(self, neutral: dict[str, Any], folds_system: bool) -> None:
        """Ask later plays in the way that has worked; only the first play warns."""
        if self._neutral and not neutral:
            names = ", ".join(NEUTRAL)
            logger.warning("%s: the server refuses %s; its own apply", self._place, names)
            self._neutral = neutral
        if folds_system and not self._folds_system:
            logger.warning(
                "%s: the chat template has no system role; system messages go into the first user "
                "message",
                self._place,
            )
            self._folds_system = True

    def _count(self, text: str) -> int:
        return self._tokenizer(text) if self._tokenizer else estimated_tokens(text)

    @property
    def compute(self) -> Flops | None:
        """See `Agent`."""
        return self._flops

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoints.aclose()

    def _completion(self, asked: Sequence[Mapping[str, Any]], answer: Any) -> Completion:
        """Return the completion of a server's reply to messages.

        Raises:
            ValueError: the reply is malformed, so that another attempt may help.
            AgentError: it is no answer; what was paid for is in the error.
        """
        reply = read_reply(answer)
        written = f"{reply.reasoning}{reply.text}{reply.refusal}"
        num_prompt, num_completion = read_usage(answer)
        is_estimated = not num_prompt or (not num_completion and bool(written))
        if is_estimated:
            said = "\n".join(str(message.get("content") or "") for message in asked)
            num_prompt = num_prompt or self._count(said)
            num_completion = num_completion or self._count(written)
            is_estimated = self._tokenizer is None or not self._tokenizer.is_known
        flops = self._flops(num_prompt + num_completion) if self._flops else None
        text, reasoning = reply.text, reply.reasoning or None
        if self._keep_reasoning and reasoning and text.strip():
            text, reasoning = f"<think>\n{reasoning}\n</think>\n\n{text}", None
        finish_reason = finish_of(reply.finish_reason)
        done = Completion(
            text,
            finish_reason,
            num_prompt,
            num_completion,
            flops,
            reasoning,
            tokens_estimated=is_estimated,
        )
        problem = reply.problem
        if reply.refusal.strip():
            problem = f"the model refused: {reply.refusal.strip()[:MAX_SHOWN]!r}"
        elif reasoning and not text.strip() and finish_reason == "stop":
            problem = (
                "the server's reasoning parser took the whole response for reasoning "
                "(reasoning_content); serve the model without --reasoning-parser, or set "
                "extra_body: {chat_template_kwargs: {enable_thinking: false}}"
            )
        if problem:
            raise AgentError(f"{self._place}: no answer: {problem}", storable(done))
        return without_reasoning(self._place, done, self._keep_reasoning)


def as_openai(messages: Sequence[Message | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as dicts, as OpenAI-compatible servers take them.

    Arguments of tool calls are JSON text, and every call has an id, which its answer names.
    """
    dicts, unanswered, num_calls = as_dicts(messages), list[str](), 0
    for entry in dicts:
        calls = []
        for call in entry.get("tool_calls", ()):
            num_calls += 1
            function = call["function"]
            arguments = json.dumps(function["arguments"], ensure_ascii=False)
            call = {"id": f"call_{num_calls}", **call}
            calls.append({**call, "function": {**function, "arguments": arguments}})
            unanswered.append(call["id"])
        if calls:
            entry["tool_calls"] = calls
        if entry["role"] == "tool" and unanswered:
            answered = entry.setdefault("tool_call_id", unanswered[0])
            unanswered = [call_id for call_id in unanswered if call_id != answered]
    return dicts


def read_reply(answer: Any) -> Reply:
    """Return the first choice of a chat completion.

    Raises:
        ValueError: it is malformed, so that another attempt may help.
    """
    try:
        choice = answer["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        content = message.get("content")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        calls = message.get("tool_calls") or message.get("function_call")
        refusal = message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(MALFORMED) from error
    if not isinstance(finish_reason or "", str) or not isinstance(refusal or "", str):
        raise ValueError(f"{MALFORMED}: something in it has another type")
    if isinstance(content, str) and not (reasoning or calls or refusal):  # most replies
        return Reply(content, "", "", "", finish_reason)
    return reply_of_parts(content, reasoning, refusal, calls, finish_reason)


def _flops(place: str, config: str) -> Flops:
    from transformers import AutoConfig

    try:
        return flops_of(AutoConfig.from_pretrained(config))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{place}: no configuration could be loaded from {config!r}: {error}"
        ) from error


class _Tokenizer:
    """Counts tokens with a model's tokenizer, loaded when it is needed."""

    def __init__(self, place: str, model: str) -> None:
        self._place, self._model = place, model

    @cached_property
    def _loaded(self) -> Any:
        from toa_trl.models.loading import load_tokenizer

        try:
            return load_tokenizer(self._place, self._model)
        except ConfigError as error:
            logger.warning("%s: tokens are estimated: %s", self._place, error)
            return None

    @property
    def is_known(self) -> bool:
        """Whether it could be loaded; else tokens are estimated."""
        return self._loaded is not None

    def __call__(self, text: str) -> int:
        if not self.is_known:
            return estimated_tokens(text)
        return len(self._loaded(text, add_special_tokens=False)["input_ids"])
