"""Requests to servers that give the same answers, over HTTP, and what a fault means.

Every fault has its rule here and nowhere else:

    fault                                            rule
    connection refused, unknown host                 the endpoint is taken out at once and probed; the request goes on
                                                     to another one, without a pause
    5xx, timeout, connection reset in mid-body,      tried again after a pause, `max_attempts` times in all; a timeout
    malformed JSON, an answer that is none           also halves the endpoint's concurrency, and FAULTS_IN_A_ROW faults
                                                     without a success between them take it out
    429                                              halves the concurrency; waited for as long as Retry-After or the
                                                     growing pause says, not counted as an attempt, up to `patience_s`
    any other status (context-length 400, 401, ...)  given up at once: `RequestError` with the server's own words
    no endpoint left                                 `Unavailable`, at once or once `wait_s` have passed without one

The client is aiohttp, by measurement: with 64 requests in flight against `tests/server.py`, aiohttp 3.14 made 9,200 calls per
CPU second, the openai SDK 3.54 made 690 and httpx 0.28 made 380, on one machine and in one run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from functools import lru_cache
from time import time
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from toa_trl.errors import ConfigError, ToaError
from toa_trl.models.endpoints.pool import Endpoint, Pool
from toa_trl.utils.config import PositiveFloat, PositiveInt, validate

T = TypeVar("T")
logger = logging.getLogger(__name__)

FAULTS_IN_A_ROW = 16
RETRIED = {408, 409, 425, 500, 502, 503, 504, 529}
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
FIRST_PROBE_S, LONGEST_PROBE_S = 1.0, 30.0
CONNECT_S = 30.0
ENCODER = json.JSONEncoder(default=str)  # dates in a prompt's metadata


class RequestError(ToaError):
    """A request that is not tried again: the message says where it went, and why it failed."""


class Endpoints:
    """One or several base URLs.

    Args:
        place: what messages begin with, e.g. "agent 'llama'".
        urls: each begins with http:// or https://.
        probe: path under a URL that answers while a server is alive, e.g. "models".
        api_key_env: environment variable that holds the key, if there is one; the key itself is never written anywhere.
        max_concurrency: requests in flight at most, over all endpoints.
        max_attempts: of one request, the first included.
        timeout_s: of one attempt.
        wait_s: how long a request waits while no endpoint is left.
        patience_s: how long a request bears 429s.

    Raises:
        ConfigError: no URL, one of another kind or with a password in it, or a number out of range.
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
        if not isinstance(api_key_env, str):
            raise ConfigError(
                f"{place}: api_key_env must be the name of an environment variable, not {api_key_env!r}"
            )
        parsed = [_url(place, url, api_key_env) for url in given]
        validate(PositiveInt, max_concurrency, f"{place}.max_concurrency")
        validate(PositiveInt, max_attempts, f"{place}.max_attempts")
        validate(PositiveFloat, timeout_s, f"{place}.timeout_s")
        self._place = place
        self._pool = Pool(place, parsed, max_concurrency, wait_s)
        self._probe = probe
        self._api_key_env = api_key_env
        self._max_attempts = max_attempts
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._probes: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    @property
    def away(self) -> str | None:
        """Why no request can be made now; None while an endpoint is left."""
        return self._pool.away

    async def post(self, path: str, body: dict[str, Any], parse: Callable[[Any], T]) -> T:
        """POST `body` as JSON, and what `parse` makes of the JSON that comes back.

        Args:
            path: under the base URL, e.g. "chat/completions".
            body: JSON values.
            parse: raises ValueError for an answer that is none; it is tried again.

        Raises:
            RequestError: no answer after all attempts, or one that no further attempt can mend.
            Unavailable: no endpoint is left.
        """
        loop = asyncio.get_running_loop()
        data, began_s = ENCODER.encode(body).encode(), loop.time()
        attempt = 0
        while True:
            endpoint = await self._pool.acquire()
            sent_s, text = loop.time(), b""
            try:
                async with self._open_session().post(
                    _join(endpoint.url, path), data=data
                ) as response:
                    text = await response.read()
                    if response.status == 200:
                        answer = parse(json.loads(text))
                        self._pool.succeeded(endpoint)
                        return answer
                    status, retry_after = response.status, response.headers.get("Retry-After")
                reason = self._reason(endpoint, f"answered {status}", text)
                if status == 429:
                    self._throttle(endpoint, sent_s, _seconds(retry_after))
                    if loop.time() - began_s < self._patience_s:
                        continue
                    raise RequestError(f"{reason} (for {self._patience_s:.0f} s)")
                if status not in RETRIED:
                    endpoint.faults = 0  # it is alive, and said what it thinks of the request
                    raise RequestError(reason)
                self._fault(endpoint, reason)
            except aiohttp.ClientConnectorError as error:
                self._take_out(endpoint, self._reason(endpoint, str(error)))
                continue
            except TimeoutError:
                reason = self._reason(endpoint, f"no answer within {self._timeout_s:g} s")
                self._pool.cut(endpoint, sent_s)
                self._fault(endpoint, reason)
            except (
                aiohttp.ClientError,
                OSError,
                ValueError,
            ) as error:  # ValueError: not JSON, or not what was asked
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
        """Ask every endpoint's probe once, before the first request.

        Returns:
            What the first one answered, if that was JSON.

        Raises:
            ConfigError: one of them cannot be reached, or refuses the key; the message names its URL.
        """
        answers = await asyncio.gather(*map(self._ask_probe, self._pool.endpoints))
        for endpoint, (status, text) in zip(self._pool.endpoints, answers, strict=True):
            if status in (401, 403):
                raise ConfigError(
                    f"{self._place}: {endpoint.url} refuses the key ({status}); set {self._api_key_env} to one it takes"
                )
            if status == 0:
                raise ConfigError(
                    f"{self._place}: {endpoint.url} cannot be reached ({text}); start the server, or correct base_url "
                    "or take it out of the list"
                )
        try:
            return json.loads(answers[0][1])
        except ValueError:
            return None

    async def aclose(self) -> None:
        """Close the connections, and forget which endpoints were out: the next run looks for itself."""
        for probe in self._probes:
            probe.cancel()
        if self._session is not None:
            await self._session.close()
            self._session = None
        self._pool.reset()

    def _throttle(self, endpoint: Endpoint, sent_s: float, retry_after_s: float | None) -> None:
        cut = self._pool.cut(endpoint, sent_s)
        if retry_after_s:  # 0 says no more than that it is no use to wait for it
            self._pool.rest(endpoint, min(retry_after_s, self._patience_s))
        elif cut:  # otherwise it was sent before the pause that is under way
            self._pool.rest(endpoint, _pause_s(endpoint.throttled))
            endpoint.throttled += 1

    def _fault(self, endpoint: Endpoint, reason: str) -> None:
        endpoint.faults += 1
        if endpoint.faults >= FAULTS_IN_A_ROW:
            self._take_out(endpoint, reason)

    def _take_out(self, endpoint: Endpoint, reason: str) -> None:
        if endpoint.out:
            return
        left, num = self._pool.take_out(endpoint, reason), len(self._pool.endpoints)
        logger.warning("%s: taken out, %d of %d endpoints left: %s", self._place, left, num, reason)
        probe = asyncio.create_task(self._probe_until_back(endpoint))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _probe_until_back(self, endpoint: Endpoint) -> None:
        # one that answers its probe and nothing else is given longer and longer pauses
        pause_s = min(LONGEST_PROBE_S, FIRST_PROBE_S * 2.0 ** min(endpoint.outages - 1, 10))
        while True:
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            status, _ = await self._ask_probe(endpoint)
            if (0 < status < 500 and status != 429) or status == 501:  # 501: it knows POST alone
                logger.warning("%s: %s is back", self._place, endpoint.url)
                self._pool.put_back(endpoint)
                return
            pause_s = min(LONGEST_PROBE_S, 2 * pause_s)

    async def _ask_probe(self, endpoint: Endpoint) -> tuple[int, str]:
        """Status and text; status 0 where nobody answers."""
        timeout = aiohttp.ClientTimeout(total=CONNECT_S)
        try:
            async with self._open_session().get(
                _join(endpoint.url, self._probe), timeout=timeout
            ) as response:
                return response.status, await response.text(errors="replace")
        except (aiohttp.ClientError, OSError) as error:
            return 0, f"{type(error).__name__}: {error}"
        except TimeoutError:
            return 0, f"no answer within {CONNECT_S:g} s"

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            key = self._key()
            self._session = aiohttp.ClientSession(
                # What may be in flight is decided here. uvicorn, and so vLLM, closes idle connections after 5 s: not to be
                # reused in that moment, ours are closed before.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={
                    "Content-Type": "application/json",
                    **({"Authorization": f"Bearer {key}"} if key else {}),
                },
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_S),
            )
        return self._session

    def _reason(self, endpoint: Endpoint, what: str, answer: bytes = b"") -> str:
        said = f"{endpoint.url}: {what}" + (
            f": {answer.decode('utf-8', 'replace')}" if answer else ""
        )
        key = self._key()
        return (said.replace(key, "***") if key else said)[:600]  # a server may quote the key back

    def _key(self) -> str:
        key = os.environ.get(self._api_key_env, "").strip()
        if not key.isprintable():
            raise ConfigError(
                f"{self._place}: the key in {self._api_key_env} holds a line break or another control sign"
            )
        return key


def _url(place: str, given: object, api_key_env: str) -> URL:
    try:
        url = URL(given) if isinstance(given, str) else URL()
        known = url.scheme in ("http", "https") and url.host and url.port
    except ValueError:
        known = False
    if not known:
        raise ConfigError(
            f"{place}: base_url must begin with http:// or https:// and name a host, not {given!r}"
        )
    if url.user or url.password:
        raise ConfigError(
            f"{place}: base_url holds a name or password; keys come from the environment ({api_key_env})"
        )
    return url


def _pause_s(num_before: int) -> float:
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(num_before, 10)) * random.uniform(
        0.5, 1.5
    )


@lru_cache
def _join(url: URL, path: str) -> URL:
    return url / path if path else url


def _seconds(retry_after: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except ValueError:
        return None
