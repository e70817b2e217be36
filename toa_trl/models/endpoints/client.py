"""HTTP requests to equivalent servers, and the rule for every kind of fault.

Connection refused, unknown host: the endpoint is away at once and is probed; the request moves to
    another endpoint without a pause.
5xx, timeout, connection reset within a body, malformed response: retried after a pause, up to
    `max_attempts` attempts. A timeout also halves the concurrency, and after FAULTS_IN_A_ROW
    consecutive faults the endpoint is away.
429: halves the concurrency. The request is repeated after Retry-After or the growing pause, for up
    to `patience_s`; this does not count as an attempt. A quota that is used up fails at once.
Any other status (400 for a context that is too long, 401, ...), a redirect to another host, and a
    response of more than MAX_BYTES: `RequestError` with the reason, without a retry.
All endpoints away: `Unavailable`, after `wait_s`.

The client is aiohttp: with 64 requests in flight against `tests/server.py`, aiohttp 3.14 made 9,200
calls per CPU second, the openai SDK 3.54 made 690 and httpx 0.28 made 380, measured in one run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from toa_trl.errors import ConfigError, ToaError
from toa_trl.models.endpoints.pool import Endpoint, Pool, SharedTimeout
from toa_trl.models.endpoints.session import CONNECT_S, call_at_end_of_loop, new_session
from toa_trl.models.endpoints.throttling import is_out_of_quota, retry_after_s
from toa_trl.models.endpoints.urls import (
    check_key_name,
    join,
    parse_url,
    proxy_of,
    same_server,
    shown,
)
from toa_trl.utils.config import PositiveFloat, PositiveInt, validate
from toa_trl.utils.files import parse_json

T = TypeVar("T")
logger = logging.getLogger(__name__)

FAULTS_IN_A_ROW = 16
RETRIED = {408, 409, 425, 500, 502, 503, 504, 529}
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
FIRST_PROBE_S, LONGEST_PROBE_S = 1.0, 30.0
MAX_BYTES = 64 * 2**20  # of a response
MAX_REDIRECTS = 5
REDIRECTS = {301, 302, 303, 307, 308}
ENCODER = json.JSONEncoder(default=str)  # dates in a prompt's metadata


class RequestError(ToaError):
    """A request failed and is not retried; the message names the URL and the reason.

    Args:
        message: URL and reason.
        status: the server's HTTP status; 0 without a response.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Endpoints:
    """Send requests to one or several base URLs.

    Args:
        place: prefix of messages, such as "agent 'llama'".
        urls: a URL or a list of URLs; each begins with http:// or https://.
        probe: path under a URL that answers while the server is alive, such as "models".
        api_key_env: environment variable that may hold the key; the key itself is never stored.
        max_concurrency: maximum number of requests in flight, over all endpoints.
        max_attempts: maximum number of attempts of a request, the first included.
        timeout_s: timeout of one attempt.
        wait_s: how long a request waits while all endpoints are away.
        patience_s: how long a request is repeated after 429s.

    Raises:
        ConfigError: a URL is invalid or holds a password, there is none, or a number is invalid.
    """

    def __init__(
        self,
        place: str,
        urls: str | Sequence[str],
        *,
        probe: str,
        api_key_env: str = "OPENAI_API_KEY",
        max_concurrency: int = 256,
        max_attempts: int = 5,
        timeout_s: float = 600.0,
        wait_s: float = 0.0,
        patience_s: float = 900.0,
    ) -> None:
        given = [urls] if isinstance(urls, str) else urls
        if not isinstance(given, list | tuple) or not given:
            raise ConfigError(f"{place}: base_url must be a URL or a list of URLs, not {urls!r}")
        check_key_name(place, api_key_env)
        parsed = [parse_url(place, url, api_key_env) for url in given]
        validate(PositiveInt, max_concurrency, f"{place}.max_concurrency")
        validate(PositiveInt, max_attempts, f"{place}.max_attempts")
        validate(PositiveFloat, timeout_s, f"{place}.timeout_s")
        self._place = place
        self._pool = Pool(place, parsed, max_concurrency, wait_s)
        self._probe = probe
        self._api_key_env = api_key_env
        self._max_attempts = max_attempts
        self._timeout_s = timeout_s
        self._timeout = SharedTimeout(timeout_s)
        self._patience_s = patience_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    @property
    def away(self) -> str | None:
        """Why no request can be sent now; None while an endpoint is available."""
        return self._pool.away

    async def post(self, path: str, body: dict[str, Any], parse: Callable[[Any], T]) -> T:
        """POST `body` as JSON and return the parsed response.

        Args:
            path: path under the base URL, such as "chat/completions".
            body: JSON values.
            parse: converts the JSON response; its ValueError means malformed, and is retried.

        Raises:
            RequestError: all attempts failed, or a retry cannot help.
            Unavailable: all endpoints are away.
        """
        loop = asyncio.get_running_loop()
        data, began_s = ENCODER.encode(body).encode(), loop.time()
        attempt = 0
        while True:
            endpoint = await self._pool.acquire()
            sent_s, text = loop.time(), b""
            try:
                url = join(endpoint.url, path)
                with self._timeout:
                    response = await self._post(url, data)
                    if response.status in REDIRECTS:
                        response = await self._redirected(endpoint, url, response, data)
                    async with response:
                        text = await self._read(endpoint, response)
                if response.status == 200:
                    answer = parse(json.loads(text))
                    self._pool.succeeded(endpoint)
                    return answer
                status, retry_after = response.status, response.headers.get("Retry-After")
                reason = self._reason(endpoint, f"answered {status}", text)
                if status == 429 and is_out_of_quota(text, retry_after):
                    raise RequestError(reason, status)
                if status == 429:
                    self._throttle(endpoint, sent_s, retry_after_s(retry_after))
                    if loop.time() - began_s < self._patience_s:
                        continue
                    raise RequestError(f"{reason} (for {self._patience_s:.0f} s)", status)
                if status not in RETRIED:
                    endpoint.faults = 0  # the server works: the request is at fault
                    raise RequestError(reason, status)
                self._fault(endpoint, reason)
            except aiohttp.ClientConnectorError as error:
                self._set_away(endpoint, self._reason(endpoint, str(error)))
                continue
            except TimeoutError:
                reason = self._reason(endpoint, f"no answer within {self._timeout_s:g} s")
                self._pool.cut(endpoint, sent_s)
                self._fault(endpoint, reason)
            except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
                # ValueError, RecursionError: a malformed response
                reason = self._reason(endpoint, f"{type(error).__name__}: {error}", text)
                self._fault(endpoint, reason)
            finally:
                self._pool.release(endpoint)
            logger.debug("%s, attempt %d: %s", self._place, attempt + 1, reason)
            attempt += 1
            if attempt >= self._max_attempts:
                raise RequestError(f"{reason} (attempt {attempt} of {self._max_attempts})")
            await asyncio.sleep(_pause_s(attempt - 1))

    async def check(self) -> Any:
        """Request the probe of every endpoint once.

        Returns:
            The first endpoint's response where it is JSON, else None.

        Raises:
            ConfigError: an endpoint cannot be reached, or refuses the key.
        """
        answers = await asyncio.gather(*map(self._ask_probe, self._pool.endpoints))
        for endpoint, (status, text) in zip(self._pool.endpoints, answers, strict=True):
            if status in (401, 403):
                raise ConfigError(
                    f"{self._place}: {shown(endpoint.url)} refuses the key ({status}); "
                    f"set {self._api_key_env} to a valid key"
                )
            if status == 0:
                raise ConfigError(
                    f"{self._place}: {shown(endpoint.url)} cannot be reached ({text}); "
                    "start the server, or correct base_url"
                )
        try:
            return parse_json(answers[0][1])
        except ValueError:
            return None

    async def aclose(self) -> None:
        """Close the connections, and forget which endpoints were away: the next run finds out.

        The end of the event loop does the same: an agent given as an object may serve several runs.
        """
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        if self._session is not None:
            await self._session.close()
            self._session = None
        self._pool.reset()

    async def _redirected(
        self, endpoint: Endpoint, url: URL, response: aiohttp.ClientResponse, data: bytes
    ) -> aiohttp.ClientResponse:
        """Follow a redirect on the same host.

        Raises:
            RequestError: it redirects to another host, which would receive prompts and key.
        """
        for num_left in reversed(range(MAX_REDIRECTS)):
            target = response.headers.get("Location", "")
            if response.status not in REDIRECTS or not target:
                return response
            response.release()
            moved = url.join(URL(target))
            kept = response.status in (307, 308)  # method and body
            if not kept or not same_server(url, moved) or not num_left:
                break
            url = moved
            response = await self._post(url, data)
        reason = f"answered {response.status}, a redirect to {shown(moved)}; correct base_url"
        raise RequestError(self._reason(endpoint, reason), response.status)

    async def _read(self, endpoint: Endpoint, response: aiohttp.ClientResponse) -> bytes:
        """Return the body of a response.

        Raises:
            RequestError: it is longer than MAX_BYTES.
        """
        content, chunks, size = response.content, list[bytes](), 0
        while not content.at_eof():
            chunk = await content.readany()
            size += len(chunk)
            if size > MAX_BYTES:
                response.close()
                reason = self._reason(endpoint, f"a response of more than {MAX_BYTES:,} bytes")
                raise RequestError(reason, response.status)
            chunks.append(chunk)
        return b"".join(chunks)

    def _throttle(self, endpoint: Endpoint, sent_s: float, retry_after_s: float | None) -> None:
        cut = self._pool.cut(endpoint, sent_s)
        if retry_after_s:  # Retry-After: 0 carries no information
            self._pool.rest(endpoint, min(retry_after_s, self._patience_s))
        elif cut:  # otherwise it was sent before the current pause
            self._pool.rest(endpoint, _pause_s(endpoint.throttled))
            endpoint.throttled += 1

    def _fault(self, endpoint: Endpoint, reason: str) -> None:
        endpoint.faults += 1
        if endpoint.faults >= FAULTS_IN_A_ROW:
            self._set_away(endpoint, reason)

    def _set_away(self, endpoint: Endpoint, reason: str) -> None:
        if endpoint.away:
            return
        num_available, num = self._pool.set_away(endpoint, reason), len(self._pool.endpoints)
        state = f"{num_available} of {num} endpoints available"
        logger.warning("%s: endpoint away, %s: %s", self._place, state, reason)
        self._add_task(self._probe_until_back(endpoint))

    def _add_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probe_until_back(self, endpoint: Endpoint) -> None:
        # pauses grow for a server that answers its probe and nothing else
        pause_s = min(LONGEST_PROBE_S, FIRST_PROBE_S * 2.0 ** min(endpoint.outages - 1, 10))
        while True:
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            status, _ = await self._ask_probe(endpoint)
            if (0 < status < 500 and status != 429) or status == 501:  # 501: it knows POST alone
                logger.warning("%s: %s is back", self._place, shown(endpoint.url))
                self._pool.set_available(endpoint)
                return
            pause_s = min(LONGEST_PROBE_S, 2 * pause_s)

    async def _ask_probe(self, endpoint: Endpoint) -> tuple[int, str]:
        """Return status and text of the probe; status 0 means that no server answered."""
        timeout = aiohttp.ClientTimeout(total=CONNECT_S)
        try:
            url = join(endpoint.url, self._probe)
            async with self._open_session().get(
                url, timeout=timeout, allow_redirects=False, proxy=proxy_of(url)
            ) as response:
                text = await self._read(endpoint, response)
                return response.status, text.decode("utf-8", "replace")
        except RequestError as error:  # too long
            return error.status, str(error)
        except TimeoutError:  # before OSError, of which it is one
            return 0, f"no answer within {CONNECT_S:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return 0, f"{type(error).__name__}: {error}"

    def _post(self, url: URL, data: bytes) -> Awaitable[aiohttp.ClientResponse]:
        session = self._open_session()
        return session.post(url, data=data, allow_redirects=False, proxy=proxy_of(url))

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = session = new_session(self._key())

            async def close() -> None:
                await session.close()
                if self._session is session:  # its owner has not closed it
                    await self.aclose()

            self._add_task(call_at_end_of_loop(close))
        return self._session

    def _reason(self, endpoint: Endpoint, what: str, answer: bytes = b"") -> str:
        said = f"{shown(endpoint.url)}: {what}" + (
            f": {answer.decode('utf-8', 'replace')}" if answer else ""
        )
        key = self._key()
        return (said.replace(key, "***") if key else said)[:600]  # a server may quote the key back

    def _key(self) -> str:
        key = os.environ.get(self._api_key_env, "").strip()
        if not key.isprintable():
            raise ConfigError(
                f"{self._place}: the key in {self._api_key_env} holds a line break or another "
                "control sign"
            )
        return key


def _pause_s(num_before: int) -> float:
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(num_before, 10)) * random.uniform(
        0.5, 1.5
    )
