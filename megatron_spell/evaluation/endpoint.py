"""Requests to a server that speaks OpenAI's API: bounded, spaced, retried, counted.

httpx rather than the `openai` package, which stands on it: that one retries on its own count, which cannot be reported,
and takes a broken answer for a programming error. What is asked here are two documented JSON bodies.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_exponential_jitter

from megatron_spell.config.benchmark_run import EndpointSection

T = TypeVar("T")
Answer = dict[str, Any]
RETRIED = {408, 409, 425, 429} | set(range(500, 600))
SHOWN_CHARS = 200  # of an answer, in messages


class EndpointError(ValueError):
    """The server did not do what was asked; the message begins with its address."""


class Refused(EndpointError):
    """The server says that this request is wrong: asking again would not help."""


class BadAnswer(ValueError):
    """What a reader of answers raises for one that is not of its form; it is asked for again."""


class _Transient(EndpointError):
    """Worth another try."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Asked:
    """What an endpoint was asked so far. Tries are requests that went out, `retries` of them further ones."""

    tries: int = 0
    retries: int = 0
    failed: int = 0  # requests given up


class Endpoint:
    """One server. `url` may end in /v1 or not; `key` goes into the Authorization header.

    At most `max_concurrency` requests are under way, and their starts are `requests_per_minute` apart. One event loop
    only; `close` at the end.
    """

    def __init__(self, settings: EndpointSection, key: str | None = None) -> None:
        if settings.url is None or not settings.url.startswith(("http://", "https://")):
            raise EndpointError(f"url = {settings.url}: is no address of a server; write http://host:port")
        base = settings.url.rstrip("/")
        self.address = base if base.endswith("/v1") else f"{base}/v1"
        self.settings, self.asked = settings, Asked()
        self._seats = asyncio.Semaphore(settings.max_concurrency)
        self._gap_s = 60.0 / settings.requests_per_minute if settings.requests_per_minute else 0.0
        self._next_start = 0.0
        self._client = httpx.AsyncClient(
            verify=self.address.startswith("https:"),  # reading the certificates takes tens of milliseconds
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(settings.timeout_s, connect=settings.connect_timeout_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=settings.max_concurrency),
        )

    async def get(self, path: str, read: Callable[[Answer], T]) -> T:
        """What `read` makes of the JSON object at `path`, after as many tries as settings allow.

        `read` may raise BadAnswer. Raises EndpointError.
        """
        return await self._ask("GET", path, None, read)

    async def post(self, path: str, body: Mapping[str, Any], read: Callable[[Answer], T]) -> T:
        """The same of the answer to `body` with the settings' `extra`, where null takes a field out."""
        fields = {**body, **(self.settings.extra or {})}
        return await self._ask("POST", path, {k: v for k, v in fields.items() if v is not None}, read)

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, read: Callable[[Answer], T]) -> T:
        tries = AsyncRetrying(
            retry=retry_if_exception_type(_Transient),
            stop=stop_after_attempt(1 + self.settings.max_retries),
            wait=self._wait_s,
            before_sleep=self._count_retry,
            reraise=True,
        )
        try:
            return await tries(self._try, method, f"{self.address}{path}", body, read)
        except _Transient as error:
            self.asked.failed += 1
            num_tries = 1 + self.settings.max_retries
            raise EndpointError(
                f"{error} (given up after {num_tries} tries)" if num_tries > 1 else str(error)
            ) from None
        except EndpointError:
            self.asked.failed += 1
            raise

    async def _try(self, method: str, address: str, body: Mapping[str, Any] | None, read: Callable[[Answer], T]) -> T:
        async with self._seats:  # not held while a retry waits
            await self._turn()
            self.asked.tries += 1
            limit_s = self.settings.timeout_s
            try:
                async with asyncio.timeout(limit_s):  # httpx's own limit is between two pieces of an answer
                    answer = await self._client.request(method, address, json=body)
            except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
                raise _Transient(f"{address}: no answer within {limit_s:g} s") from None
            except httpx.ConnectTimeout:
                raise _Transient(f"{address}: no connection within {self.settings.connect_timeout_s:g} s") from None
            except httpx.TransportError as error:
                raise _Transient(f"{address}: {_reason(error)}") from None
            except httpx.InvalidURL as error:
                raise Refused(f"{address}: {error}") from None
        try:
            return read(_object(address, answer))
        except BadAnswer as error:
            raise _Transient(f"{address}: {error}: {_shown(answer.text)}") from None

    async def _turn(self) -> None:
        """Wait for this request's start."""
        now = asyncio.get_running_loop().time()
        start, self._next_start = max(now, self._next_start), max(now, self._next_start) + self._gap_s
        if start > now:
            await asyncio.sleep(start - now)

    def _wait_s(self, state: RetryCallState) -> float:
        longest_s, error = self.settings.longest_wait_s, state.outcome and state.outcome.exception()
        doubled = wait_exponential_jitter(self.settings.first_wait_s, longest_s, jitter=self.settings.first_wait_s)
        asked_s = error.retry_after_s if isinstance(error, _Transient) else 0.0
        return min(max(doubled(state), asked_s), longest_s)

    def _count_retry(self, state: RetryCallState) -> None:
        self.asked.retries += 1


def _object(address: str, answer: httpx.Response) -> Answer:
    if answer.status_code in RETRIED:
        after = answer.headers.get("retry-after", "")
        retry_after_s = float(after) if after.replace(".", "", 1).isdigit() else 0.0
        raise _Transient(f"{address}: answers {answer.status_code}: {_said(answer)}", retry_after_s)
    if not answer.is_success:
        raise Refused(f"{address}: answers {answer.status_code}: {_said(answer)}")
    try:
        read = answer.json()
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise _Transient(f"{address}: answers what is no JSON object: {_shown(answer.text)}")
    return read


def _said(answer: httpx.Response) -> str:
    """The server's own message, where it gives one in OpenAI's form."""
    try:
        read = json.loads(answer.text)
        error = read.get("error", read)
        return _shown(str(error.get("message") or answer.text))
    except (ValueError, AttributeError):
        return _shown(answer.text)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else line[:SHOWN_CHARS] + "..."


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectError):
        return f"cannot be reached ({_shown(str(error)) or type(error).__name__})"
    return f"the connection was lost ({_shown(str(error)) or type(error).__name__})"
