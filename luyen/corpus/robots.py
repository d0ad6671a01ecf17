"""robots.txt as RFC 9309 reads it, parsed by protego.

2.3.1: a 4xx answer means no rules (everything allowed), a 5xx or no answer means everything is disallowed; five redirects
are followed, more count as no rules; 2.4: kept for at most 24 hours; 2.5: at least 500 KiB are parsed. Status 429 is taken
as "not now" and disallows, as large search engines do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import httpx2
from protego import Protego

from luyen.corpus.fetch import Failed, Fetcher, Refused, follow

PARSED_BYTES = 512 * 1024
KEPT_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Rules:
    """What one host's robots.txt says to us."""

    parsed: Protego | None = None
    reason: str = ""
    """Why everything is disallowed, or empty."""
    kind: Literal["robots.txt", "refused"] = "robots.txt"
    """`refused` when the guard does not let us to the host at all."""
    fetched: float = 0.0

    def disallows(self, url: str, agent: str) -> str:
        """Why an address may not be fetched, or ''."""
        if self.reason:
            return self.reason
        if self.parsed is not None and not self.parsed.can_fetch(url, agent):
            return "robots.txt disallows it"
        return ""


class Robots:
    """The rules of all hosts of a crawl, fetched when first needed. Safe to use from threads."""

    def __init__(self, fetcher: Fetcher, agent: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.fetcher, self.agent, self.clock = fetcher, agent, clock
        self._rules: dict[str, Rules] = {}
        self._lock = threading.Lock()

    def rules(self, url: httpx2.URL) -> Rules:
        """The rules of the host that an address is on; when fetched, the host's Crawl-delay is set."""
        origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        with self._lock:
            known = self._rules.get(origin)
        if known is not None and self.clock() - known.fetched < KEPT_SECONDS:
            return known
        rules = self._fetch(url, origin)
        with self._lock:
            self._rules[origin] = rules
        return rules

    def _fetch(self, url: httpx2.URL, origin: str) -> Rules:
        now = self.clock()
        try:
            reply = follow(self.fetcher, httpx2.URL(f"{origin}/robots.txt"), cut_at=PARSED_BYTES)
        except Refused as refusal:
            return Rules(reason=str(refusal), kind="refused", fetched=now)
        except Failed as error:
            return Rules(reason=f"robots.txt cannot be had ({error})", fetched=now)
        if reply.status >= 500:
            return Rules(reason=f"robots.txt answers with status {reply.status}", fetched=now)
        if reply.status != 200:
            return Rules(fetched=now)
        parsed = Protego.parse(reply.body.decode("utf-8-sig", "replace"))
        delay = parsed.crawl_delay(self.agent) or 0.0
        longest = self.fetcher.limits.max_wait_seconds
        if delay > longest:
            return Rules(reason=f"robots.txt asks for {delay:g} s between requests, more than {longest:g}", fetched=now)
        self.fetcher.slow_down(url.host, delay)
        return Rules(parsed=parsed, fetched=now)
