"""Read chat completion requests, and write responses and errors, as the OpenAI API has them."""

import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from toa_trl.errors import ConfigError
from toa_trl.search import SEARCHES
from toa_trl.systems.search_model import SearchModel, SearchResult, SearchSettings
from toa_trl.types import MESSAGE_KEYS, Play, Prompt, Sampling
from toa_trl.utils.config import Config, PositiveInt, validate
from toa_trl.utils.config_errors import nearest

CHUNK = 40  # characters of a text in one event of a stream
# The search decides how its agents sample; the others do not change a response.
IGNORED = {"temperature", "top_p", "user", "metadata", "store", "service_tier"}
IGNORED |= {"safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
NEUTRAL = {"response_format": {"type": "text"}, "tool_choice": "none", "modalities": ["text"]}


class ApiError(Exception):
    """An error that a client is sent.

    Args:
        status: HTTP status.
        message: what is wrong.
        param: the field of the request, if one is wrong.
        code: word for programs.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The error as the OpenAI API writes it."""
        kinds = {429: "rate_limit_error", 401: "authentication_error"}
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = kinds.get(self.status, default)
        fields = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}


class StreamOptions(Config):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False  # chunks have no padding


class ChatRequest(Config):
    """The fields of a request that are used."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    model: str
    n: PositiveInt = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    search: str | None = None
    budget: PositiveInt | None = None
    tree: bool = False


@dataclass(frozen=True)
class Question:
    """A request that is valid for a model."""

    request: ChatRequest
    prompt: Prompt
    settings: SearchSettings
    sampling: Sampling


def read_request(body: object, model: SearchModel, name: str, max_budget: int) -> Question:
    """Return the question that the JSON value of a request asks.

    Raises:
        ApiError: the request is invalid, or names another model.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    given = {key: value for key, value in body.items() if value is not None}
    for key in given.keys() - ChatRequest.model_fields.keys() - IGNORED:
        if given[key] and given[key] != NEUTRAL.get(key):
            known = nearest(key, ChatRequest.model_fields)
            message = f"{key}: not supported by a search, whose responses are texts{known}"
            raise ApiError(400, message, key, "unsupported_parameter")
    try:
        used = {key: given[key] for key in given if key in ChatRequest.model_fields}
        request: ChatRequest = validate(ChatRequest, used)
        if request.model != name:
            message = f"model: {request.model!r} does not exist; this server has {name!r}"
            raise ApiError(404, message, "model", "model_not_found")
        settings = _settings(request, model, max_budget)
        model.check_search(settings)
        prompt = model.read([_message(i, entry) for i, entry in enumerate(request.messages)])
        return Question(request, prompt, settings, model.sampling_of(_changes(request)))
    except ConfigError as error:
        param = str(error).partition(":")[0].partition("[")[0].partition(".")[0]
        named = param if param in ChatRequest.model_fields else None
        raise ApiError(400, str(error), named, "invalid_value") from error


def _settings(request: ChatRequest, model: SearchModel, max_budget: int) -> SearchSettings:
    settings = model.settings
    if request.search is not None and request.search != settings.search:
        if request.search not in SEARCHES:  # a module path would import code
            raise ConfigError(
                f"search: must be one of {', '.join(SEARCHES.targets)}, not {request.search!r}"
                f"{nearest(request.search, SEARCHES.targets)}"
            )
        settings = replace(settings, search=request.search, params=None)
    if request.budget is not None:
        settings = replace(settings, budget=request.budget)
    if settings.budget > max_budget:
        raise ConfigError(f"budget: must be <= {max_budget} on this server, not {settings.budget}")
    if request.n > settings.budget:
        raise ConfigError(f"n: must be <= the budget of {settings.budget}, not {request.n}")
    return settings if request.seed is None else replace(settings, seed=request.seed)


def _changes(request: ChatRequest) -> dict[str, Any]:
    max_tokens = request.max_completion_tokens or request.max_tokens
    changes = {"max_tokens": max_tokens, "stop": request.stop}
    return {key: value for key, value in changes.items() if value}


def _message(index: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    message = {key: entry[key] for key in MESSAGE_KEYS if key in entry}
    if message.get("role") == "developer":
        message["role"] = "system"
    if isinstance(content := message.get("content"), list):
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"messages[{index}].content: a part is not a text")
        message["content"] = "".join(map(str, texts))
    return message


def completion_of(question: Question, result: SearchResult, name: str) -> dict[str, Any]:
    """Return the response to a request that does not stream: the n best plays."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "finish_reason": reason,
            "logprobs": None,
        }
        for index, (text, reason) in enumerate(_best(question, result))
    ]
    body = {**_head("chat.completion", name), "choices": choices, "usage": _usage(result)}
    return {**body, "toa": _tree(result)} if question.request.tree else body


def chunks_of(question: Question, result: SearchResult, name: str) -> Iterator[dict[str, Any]]:
    """Yield the events of a request that streams."""
    head, request = _head("chat.completion.chunk", name), question.request
    if request.stream_options.include_usage:
        head["usage"] = None

    def chunk(index: int, delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**head, "choices": [choice]}

    last: dict[str, Any] = {}
    for index, (text, reason) in enumerate(_best(question, result)):
        if last:
            yield last
        yield chunk(index, {"role": "assistant", "content": ""})
        for start in range(0, len(text), CHUNK):
            yield chunk(index, {"content": text[start : start + CHUNK]})
        last = chunk(index, {}, reason)
    yield {**last, "toa": _tree(result)} if request.tree else last
    if request.stream_options.include_usage:
        yield {**head, "choices": [], "usage": _usage(result)}


def _best(question: Question, result: SearchResult) -> Iterator[tuple[str, str]]:
    for play in result.rollout.ranked[: question.request.n]:
        assert play.completion is not None
        yield play.completion.text, play.completion.finish_reason


def _head(kind: str, name: str) -> dict[str, Any]:
    completion_id = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": completion_id, "object": kind, "created": int(time.time()), "model": name}


def _usage(result: SearchResult) -> dict[str, int]:
    asked, answered = result.prompt_tokens, result.completion_tokens
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def _tree(result: SearchResult) -> dict[str, Any]:
    return {
        "search": result.settings.search,
        "budget": result.settings.budget,
        "seed": result.settings.seed,
        "limit": result.limit,
        "reward_tokens": result.reward.tokens,
        "plays": [_play(play) for play in result.rollout.plays],
    }


def _play(play: Play) -> dict[str, Any]:
    done = play.completion
    return {
        "index": play.index,
        **asdict(play.action),
        "text": done.text if done else None,
        "finish_reason": done.finish_reason if done else None,
        "prompt_tokens": done.prompt_tokens if done else 0,
        "completion_tokens": done.completion_tokens if done else 0,
        "reward": play.reward,
        "error": play.error,
        "seed": play.seed,
    }
