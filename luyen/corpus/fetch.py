"""One polite request: paced per host, limited in size and time, decompressed under watch, retried with back-off.

Redirects are not followed here; the caller sees each one as a reply with a `location`. Nothing is remembered between
requests (no cookies), nothing is read from the environment (no proxies, no .netrc), certificates are always verified.
"""

from __future__ import annotations

import email.utils
import functools
import ssl
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpcore2
import httpx2
from pydantic import Field

from luyen.core.config import Config
from luyen.core.errors import FetchError
from luyen.corpus.guard import Deadline, Guard, GuardedBackend, Refused, parse_url

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
REDIRECT_STATUS = frozenset({301, 302, 303, 307, 308})
# A ratio means nothing on a small page: 1 MiB of output is let through before it is looked at.
RATIO_FREE_BYTES = 1 << 20
PIECE_BYTES = 1 << 18


class Limits(Config):
    """Bounds of one request."""

    timeout_seconds: float = Field(default=30.0, gt=0, le=86_400)
    """Seconds for one whole request, connection and body together."""
    max_bytes: int = Field(default=10_000_000, ge=1)
    """Largest page, after decompression. A larger one is skipped, never cut."""
    max_ratio: float = Field(default=100.0, ge=1)
    """Largest decompressed size over received size, looked at above 1 MiB; more is a decompression bomb."""
    max_redirects: int = Field(default=5, ge=0)
    """Redirects in a row that are followed, each checked like a new address."""
    retries: int = Field(default=3, ge=0)
    """How often a request is repeated after a lost connection, a timeout or status 408, 425, 429, 500, 502, 503, 504."""
    retry_delay_seconds: float = Field(default=1.0, ge=0)
    """Wait before the first repetition; it doubles each time. A Retry-After header lengthens it."""
    max_wait_seconds: float = Field(default=120.0, ge=0)
    """A host that asks for longer pauses than this (Retry-After, Crawl-delay) is left alone."""


class Failed(FetchError):
    """A request without a usable reply. `reason` is a short class of it for counting."""

    def __init__(self, reason: str, detail: str, *, retry: bool = False, wait: float = 0.0) -> None:
        super().__init__(detail)
        self.reason, self.retry, self.wait = reason, retry, wait
        self.attempts = 1


@dataclass(frozen=True)
class Reply:
    """What a server answered to one request."""

    url: httpx2.URL
    status: int
    body: bytes
    content_type: str = ""
    charset: str | None = None
    location: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    attempts: int = 1

    @property
    def is_redirect(self) -> bool:
        """Whether the page is said to be elsewhere."""
        return self.status in REDIRECT_STATUS and self.location is not None


@functools.cache
def _tls() -> ssl.SSLContext:
    """The verifying context, made once because reading the system's certificates takes time."""
    return httpx2.create_ssl_context(verify=True)


class GuardedTransport(httpx2.BaseTransport):
    """httpx2 over httpcore2's pool, connecting through the guard."""

    def __init__(self, backend: httpcore2.NetworkBackend, max_connections: int = 64) -> None:
        self.pool = httpcore2.ConnectionPool(
            ssl_context=_tls(), network_backend=backend,
            max_connections=max_connections, max_keepalive_connections=max_connections, keepalive_expiry=30.0,
        )  # fmt: skip

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request. Raises httpcore2's errors and Refused."""
        url = request.url
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        reply = self.pool.handle_request(
            httpcore2.Request(request.method, target, headers=request.headers.raw, content=b"", extensions=request.extensions)
        )
        return httpx2.Response(reply.status, headers=reply.headers, stream=_Body(reply.stream), request=request)

    def close(self) -> None:
        """Close all connections."""
        self.pool.close()


class _Body(httpx2.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self.stream

    def close(self) -> None:
        self.stream.close()


class Fetcher:
    """Makes requests, never two at once to one host and never sooner than that host's delay. Safe to use from threads.

    `sleep` waits so many seconds (tests and interruption replace it).
    """

    def __init__(
        self,
        guard: Guard,
        limits: Limits,
        user_agent: str,
        *,
        delay: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
        backend: httpcore2.NetworkBackend | None = None,
    ) -> None:
        self.guard, self.limits, self.sleep = guard, limits, sleep
        self.deadline = Deadline()
        self.transport = GuardedTransport(GuardedBackend(guard, self.deadline, backend))
        self.headers = {
            "User-Agent": user_agent,
            "Accept": "text/html,application/xhtml+xml,text/plain;q=0.9,*/*;q=0.1",
            "Accept-Encoding": "gzip, deflate",
        }
        self._delays: defaultdict[str, float] = defaultdict(lambda: delay)
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._table = threading.Lock()
        self._ended: dict[str, float] = {}

    def slow_down(self, host: str, seconds: float) -> None:
        """Keep at least so many seconds between two requests to a host (robots.txt's Crawl-delay)."""
        with self._table:
            self._delays[host] = max(self._delays[host], seconds)

    def get(
        self,
        url: httpx2.URL,
        *,
        conditions: Mapping[str, str] | None = None,
        accept: Iterable[str] | None = None,
        cut_at: int | None = None,
    ) -> Reply:
        """One page, repeated while that may help.

        `conditions`: If-None-Match and If-Modified-Since headers. `accept`: media types whose body is read, others fail.
        `cut_at`: read so many bytes and leave the rest, instead of failing on a large body (robots.txt).
        Raises Refused for a forbidden address and Failed for everything else that is not an answer of the server.
        """
        self.guard.check(url)
        wanted = None if accept is None else frozenset(accept)
        wait = self.limits.retry_delay_seconds
        for attempt in range(1, self.limits.retries + 2):
            try:
                return replace(self._once(url, dict(conditions or {}), wanted, cut_at), attempts=attempt)
            except Failed as failure:
                failure.attempts = attempt
                if not failure.retry or attempt > self.limits.retries:
                    raise
                if failure.wait > self.limits.max_wait_seconds:
                    raise Failed(failure.reason, f"{failure}; the server asks to wait {failure.wait:.0f} s") from failure
                self.sleep(max(wait, failure.wait))
                wait = min(2 * wait, self.limits.max_wait_seconds)
        raise AssertionError("unreachable")

    def _once(self, url: httpx2.URL, conditions: dict[str, str], accept: frozenset[str] | None, cut_at: int | None) -> Reply:
        with self._table:
            lock, delay = self._locks[url.host], self._delays[url.host]
        with lock:
            early = self._ended.get(url.host, float("-inf")) + delay - time.monotonic()
            if early > 0:
                self.sleep(early)
            try:
                return self._exchange(url, conditions, accept, cut_at)
            finally:
                self._ended[url.host] = time.monotonic()

    def _exchange(self, url: httpx2.URL, conditions: dict[str, str], accept: frozenset[str] | None, cut_at: int | None) -> Reply:
        seconds = self.limits.timeout_seconds
        self.deadline.at = time.monotonic() + seconds
        timeouts = httpx2.Timeout(seconds).as_dict()
        request = httpx2.Request("GET", url, headers=self.headers | conditions, extensions={"timeout": timeouts})
        try:
            response = self.transport.handle_request(request)
            try:
                return self._read(url, response, accept, cut_at)
            finally:
                response.close()
        except httpcore2.TimeoutException as error:
            raise Failed("timeout", f"{url} did not answer in full within {seconds:g} s", retry=True) from error
        except httpcore2.NetworkError as error:
            raise Failed("unreachable", f"{url} cannot be reached: {error}", retry=True) from error
        except (httpcore2.ProtocolError, httpcore2.UnsupportedProtocol) as error:
            raise Failed("protocol error", f"{url} answered no valid HTTP: {error}", retry=True) from error

    def _read(self, url: httpx2.URL, response: httpx2.Response, accept: frozenset[str] | None, cut_at: int | None) -> Reply:
        status, headers = response.status_code, response.headers
        if status in RETRIED_STATUS:
            raise Failed(f"status {status}", f"{url} answered with status {status}", retry=True, wait=retry_after(headers))
        media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        reply = Reply(
            url, status, b"", media_type, response.charset_encoding, headers.get("Location"), headers.get("ETag"),
            headers.get("Last-Modified"),
        )  # fmt: skip
        if status != 200:
            _drain(response)
            return reply
        if accept is not None and media_type and media_type not in accept:
            raise Failed("wrong type", f"{url} is {media_type[:80]}, not text")
        limit = self.limits.max_bytes if cut_at is None else cut_at
        length = headers.get("Content-Length", "")
        if cut_at is None and length.isascii() and length.isdigit() and int(length[:19]) > limit:
            raise Failed("too large", f"{url} has {length[:19]} bytes, more than {limit}")
        encoding = headers.get("Content-Encoding", "").strip().lower()
        try:
            body = decode_body(response.iter_raw(), encoding, limit=limit, max_ratio=self.limits.max_ratio, cut=cut_at is not None)
        except Failed as failure:
            raise Failed(failure.reason, f"{url}: {failure}", retry=failure.retry) from failure
        if accept is not None and not media_type and b"\0" in body[:1024]:
            raise Failed("wrong type", f"{url} does not say its type and is binary")
        return replace(reply, body=body)

    def close(self) -> None:
        """Close all connections."""
        self.transport.close()


def decode_body(chunks: Iterable[bytes], encoding: str, *, limit: int, max_ratio: float, cut: bool = False) -> bytes:
    """Decompress while counting the bytes that come out. `encoding`: "", identity, gzip, x-gzip or deflate, not nested.

    Raises Failed: "too large" above `limit` (unless `cut`), "decompression bomb" above `max_ratio`, "encoding" for others.
    """
    out, received = bytearray(), 0
    decoder: Any = None
    finished = encoding in ("", "identity")
    if not finished and encoding not in ("gzip", "x-gzip", "deflate"):
        raise Failed("encoding", f"body is encoded as {ascii(encoding[:60])}, which was not asked for")
    for chunk in chunks:
        received += len(chunk)
        if encoding in ("", "identity"):
            out += chunk
            if len(out) > limit:
                break
            continue
        try:
            while chunk and len(out) <= limit:
                decoder = decoder or _decoder(encoding, chunk)
                out += decoder.decompress(chunk, min(PIECE_BYTES, limit + 1 - len(out)))
                if len(out) > RATIO_FREE_BYTES and len(out) > max_ratio * received:
                    raise Failed("decompression bomb", f"{received} bytes inflate to more than {len(out)}")
                finished = decoder.eof
                chunk = decoder.unused_data if finished else decoder.unconsumed_tail
                decoder = None if finished else decoder  # a gzip file may have several members
        except zlib.error as error:
            raise Failed("encoding", f"body is not valid {encoding}: {error}") from error
        if len(out) > limit:
            break
    if len(out) > limit:
        if cut:
            return bytes(out[:limit])
        raise Failed("too large", f"more than {limit} bytes")
    if not finished and received:
        raise Failed("cut short", "the compressed body ends early", retry=True)
    return bytes(out)


def _drain(response: httpx2.Response, most: int = 1 << 16) -> None:
    """Read a short body to its end, so that the connection can serve the next request; a long one is left unread."""
    received = 0
    for chunk in response.iter_raw():
        received += len(chunk)
        if received > most:
            return


def _decoder(encoding: str, first: bytes) -> Any:
    if encoding != "deflate":
        return zlib.decompressobj(31)
    # "deflate" is a zlib stream by RFC 9110, but some servers send it without the zlib header
    with_header = first[0] & 0x0F == 8 and (len(first) < 2 or (first[0] << 8 | first[1]) % 31 == 0)
    return zlib.decompressobj(15 if with_header else -15)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header asks for (a number or a date), 0 without a readable one."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def follow(fetcher: Fetcher, url: httpx2.URL, *, cut_at: int, max_redirects: int = 5) -> Reply:
    """A small file with its redirects followed, each target checked anew; the last redirect is returned when there are too many.

    Raises Refused, for a target that is no address too, and Failed.
    """
    for _ in range(max_redirects + 1):
        reply = fetcher.get(url, cut_at=cut_at)
        if not reply.is_redirect:
            return reply
        try:
            target = url.join(str(reply.location))
        except (httpx2.InvalidURL, ValueError) as error:
            raise Refused(f"{url} redirects to no address: {error}", found=ascii(str(reply.location)[:200])) from error
        url = parse_url(str(target))
    return reply


__all__ = ["Failed", "Fetcher", "Limits", "Refused", "Reply", "decode_body", "follow", "retry_after"]
