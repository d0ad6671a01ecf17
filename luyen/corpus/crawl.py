"""The crawl: from start addresses to pages on disk, politely, and the same pages when it is interrupted and continued.

The frontier is replayed from the journal: visiting is a function of the pages, and a visited page comes from the journal
instead of the network. Addresses of one depth are visited together, one thread per host, one request at a time per host.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx2
from pydantic import Field, field_validator

from luyen import __version__
from luyen.core import interrupt, progress
from luyen.core.config import Config, dump
from luyen.core.errors import FetchError, LuyenError
from luyen.core.manifest import clean_up, fingerprint
from luyen.corpus import pydoc_server
from luyen.corpus.fetch import Failed, Fetcher, Limits, Reply
from luyen.corpus.frontier import Frontier, Target, canonical, links
from luyen.corpus.guard import Guard, Refused, parse_url
from luyen.corpus.pages import JOURNAL, EarlierPages, Journal, pack_body, read_pages, unpack_body
from luyen.corpus.robots import Robots

# Chosen by their pages: many functions with a description of one sentence, little else.
MODULES = (
    "base64", "collections", "fnmatch", "functools", "heapq", "itertools", "json", "math", "operator", "random", "shutil",
    "statistics", "string", "textwrap", "time",
)  # fmt: skip
# A site of broken links must end too: so many addresses are visited at most for each page wanted.
VISITS_PER_PAGE = 10
# After so many addresses in a row without any answer the rest of a host is not tried.
SILENT_LIMIT = 5


class CrawlConfig(Config):
    """What to crawl, how far and how politely. robots.txt is always obeyed."""

    start: Literal["pydoc"] | tuple[str, ...] | str = "pydoc"
    """`pydoc`: the documentation server that comes with Python, started for the crawl. Else one address or a list of them."""
    modules: Literal["all"] | tuple[str, ...] = MODULES
    """With `start: pydoc`: modules to fetch, or `all` for the standard library (about 200 pages, 10 MB)."""
    submodules: bool = False
    """With `start: pydoc`: also fetch the public submodules that these modules' pages link to (json.decoder)."""
    follow: Literal["host", "prefix", "any"] = "host"
    """Which links to follow: to the hosts of the start addresses, to addresses below the start addresses' folders, or to any."""
    max_pages: int = Field(default=1000, ge=1)
    """At most so many pages are kept; at most ten times as many addresses are visited."""
    max_depth: int = Field(default=5, ge=0)
    """Links away from a start address; 0 fetches the start addresses only."""
    delay_seconds: float = Field(default=1.0, ge=0)
    """Pause between two requests to one host; robots.txt may lengthen it. None for pydoc."""
    hosts_at_once: int = Field(default=8, ge=1, le=64)
    """Hosts visited at the same time, each with one request at a time."""
    user_agent: str = Field(default=f"luyen-crawler/{__version__}", pattern=r"^[A-Za-z][A-Za-z_-]*(/[ -~]*)?$")
    """How the crawler presents itself. The name before the slash is the one that robots.txt rules are looked up for."""
    allow_private: bool | tuple[str, ...] = False
    """Loopback, private and other non-public addresses are refused; true opens all, a list opens these `host` or `host:port`."""
    content_types: tuple[str, ...] = ("text/html", "application/xhtml+xml", "text/plain")
    """Media types that are kept; others are skipped and counted."""
    limits: Limits = Limits()
    """Bounds of one request."""

    @field_validator("start")
    @classmethod
    def _some_start(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("pydoc, an address or a list of addresses")
        for url in () if value == "pydoc" else (value,) if isinstance(value, str) else value:
            if "://" not in url:
                plain = url.strip().lstrip("/")
                near = f"https://{plain}{'' if '/' in plain else '/'}" if "." in plain else "https://example.org/, or the one word pydoc"
                raise ValueError(f"addresses with their scheme, such as {near}")
        return value


@dataclass(frozen=True)
class Source:
    """Where a crawl begins and what belongs to it."""

    starts: tuple[str, ...]
    in_scope: Callable[[str], bool]
    guard: Guard
    delay: float
    max_depth: int
    is_pydoc: bool = False


@dataclass(frozen=True)
class Visit:
    """What came of one address, without its body."""

    kind: Literal["page", "redirect", "skipped"]
    reason: str = ""
    detail: str = ""
    location: str = ""
    found: tuple[str, ...] = ()


def crawl(config: CrawlConfig, folder: Path) -> dict[str, Any]:
    """Crawl into `folder`, or continue there. A finished folder is visited again, asking only for what has changed.

    Returns the counts: pages, bytes, not_modified, redirects, skipped (by reason), links (not followed, by reason), left (known
    addresses not visited), requests. Raises FetchError if no start address gives a page, Interrupted after a signal.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clean_up(folder)
    with _source(config) as source:
        settings = [dump(config.limits), config.user_agent, config.content_types, config.allow_private, source.delay]
        run = _Crawl(config, source, folder, fingerprint([settings, sys.version if source.is_pydoc else ""]))
        try:
            return run.go()
        finally:
            run.close()


@contextlib.contextmanager
def _source(config: CrawlConfig) -> Iterator[Source]:
    if config.start != "pydoc":
        starts = tuple(canonical(parse_url(url.strip())) for url in ([config.start] if isinstance(config.start, str) else config.start))
        guard = Guard(config.allow_private)
        for url in starts:
            guard.check(httpx2.URL(url))
        yield Source(starts, _scope(config.follow, starts), guard, config.delay_seconds, config.max_depth)
        return
    names = pydoc_server.standard_library() if config.modules == "all" else tuple(dict.fromkeys(config.modules))
    chosen = frozenset(names)

    def belongs(url: str) -> bool:
        module = pydoc_server.module_of(url)
        return module is not None and (module in chosen or (module.split(".")[0] in chosen and "._" not in module))

    with pydoc_server.serving() as port:
        guard = Guard((), {pydoc_server.HOST: ("127.0.0.1", port)})
        depth = config.max_depth if config.submodules else 0
        yield Source(tuple(map(pydoc_server.address, names)), belongs, guard, 0.0, depth, is_pydoc=True)


def _scope(follow: str, starts: Sequence[str]) -> Callable[[str], bool]:
    if follow == "any":
        return lambda url: True
    if follow == "prefix":
        folders = tuple(url.partition("?")[0].rpartition("/")[0] + "/" for url in starts)
        return lambda url: url.startswith(folders)
    hosts = frozenset(httpx2.URL(url).host for url in starts)
    # http://example.org and https://www.example.org are one site to everybody
    both = hosts | {f"www.{host}" for host in hosts} | {host.removeprefix("www.") for host in hosts}
    return lambda url: httpx2.URL(url).host in both


class _Crawl:
    """One crawl under way."""

    def __init__(self, config: CrawlConfig, source: Source, folder: Path, settings: str) -> None:
        self.config, self.source, self.folder = config, source, folder
        self.stop = threading.Event()
        if source.is_pydoc:
            # A page of pydoc's depends on what its process has imported before, so a crawl begun by another process is begun
            # anew; all of it takes seconds.
            (folder / JOURNAL).unlink(missing_ok=True)
        self.journal = Journal(folder, settings)
        self.earlier = EarlierPages(folder)
        self.fetcher = Fetcher(source.guard, config.limits, config.user_agent, delay=source.delay, sleep=self.sleep)
        self.robots = Robots(self.fetcher, config.user_agent.partition("/")[0])
        self.lost_redirects: list[dict[str, Any]] = []
        self.silent: Counter[str] = Counter()

    def close(self) -> None:
        self.stop.set()
        self.fetcher.close()
        self.journal.close()

    def sleep(self, seconds: float) -> None:
        """Wait, but notice a signal or the end of the crawl."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            self.stop.wait(min(left, 0.2))

    def check(self) -> None:
        interrupt.check()
        if self.stop.is_set():
            raise FetchError("the crawl has ended")

    def go(self) -> dict[str, Any]:
        """Take batch after batch from the frontier until there are pages enough or none is left; returns the facts for the manifest."""
        limits = self.config.limits
        frontier = Frontier(self.source.starts, self.source.in_scope, self.source.max_depth, limits.max_redirects)
        counts: Counter[str] = Counter()
        skipped: Counter[str] = Counter()
        first_failure = ""
        wanted = max(self.config.max_pages, len(self.source.starts)) if self.source.is_pydoc else self.config.max_pages
        total = len(self.source.starts) if self.source.max_depth == 0 else None
        with progress.task("pages", total, "pages") as task:
            while counts["page"] < wanted and sum(counts.values()) < VISITS_PER_PAGE * wanted:
                batch = frontier.take(wanted - counts["page"])
                if not batch:
                    break
                for target, visit in zip(batch, self.visit_all(batch, task), strict=True):
                    counts[visit.kind] += 1
                    reason = visit.reason
                    if visit.kind == "redirect":
                        reason = frontier.add_redirect(target, visit.location)
                        if reason:
                            self.lost_redirects.append({"url": target.url, "reason": "redirect", "detail": reason})
                            skipped["redirect"] += 1
                    elif visit.kind == "page":
                        frontier.add_links(target, visit.found)
                    else:
                        skipped[visit.reason] += 1
                    first_failure = first_failure or visit.detail or reason
        if not counts["page"]:
            self.journal.close()
            self.journal.path.unlink()
            raise FetchError("no page could be had", found=first_failure, expected=f"a page at {self.source.starts[0]}")
        entries = list(self.journal.entries.values())
        result: dict[str, Any] = self.journal.publish(self.folder, self.lost_redirects)
        result |= {
            "not_modified": sum(entry.not_modified for entry in entries), "redirects": counts["redirect"],
            "skipped": dict(sorted(skipped.items())), "links": dict(sorted(frontier.counts.items())), "left": len(frontier),
            "requests": sum(entry.attempts for entry in entries),
        }  # fmt: skip
        reasons = ", ".join(f"{reason} {count}" for reason, count in skipped.most_common())
        told = f"; skipped: {reasons} (skipped.jsonl)" if reasons else ""
        progress.say(f"  {result['pages']} pages, {result['bytes'] / 1e6:.1f} MB{told}")
        return result

    def visit_all(self, batch: list[Target], task: progress.Task) -> list[Visit]:
        """Visit addresses, hosts side by side; the outcomes stand in the order of the batch."""
        by_host: dict[str, list[int]] = {}
        for index, target in enumerate(batch):
            by_host.setdefault(httpx2.URL(target.url).host, []).append(index)
        visits: dict[int, Visit] = {}

        def one_host(indices: list[int]) -> None:
            for index in indices:
                self.check()
                visits[index] = self.visit(batch[index])
                if visits[index].kind == "page":
                    task.advance()

        with ThreadPoolExecutor(self.config.hosts_at_once, thread_name_prefix="crawl") as pool:
            futures = [pool.submit(one_host, indices) for indices in by_host.values()]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self.stop.set()
                raise
        return [visits[index] for index in range(len(batch))]

    def visit(self, target: Target) -> Visit:
        """The outcome of one address, from the journal if it is there."""
        if target.url in self.journal.entries:
            row = self.journal.read(target.url)
        else:
            row = {"url": target.url, "fetched_at": datetime.now(UTC).isoformat(timespec="seconds")} | self.fetch(target)
            self.journal.append(row)
        if row["kind"] != "page":
            return Visit(row["kind"], row.get("reason", ""), row.get("detail", ""), row.get("location", ""))
        if self.source.is_pydoc and not self.source.max_depth:
            return Visit("page")
        return Visit("page", found=tuple(links(unpack_body(row), row["url"], row["content_type"], row.get("charset"))))

    def fetch(self, target: Target) -> dict[str, Any]:
        """Fetch one address; the journal row for it, without address and time. What nobody foresaw is the failure of this address."""
        try:
            return self._fetch(target)
        except LuyenError:  # a stop, the end of the crawl, a full disk
            raise
        except Exception as error:
            return _skipped("error", f"{target.url}: {type(error).__name__}: {error}")

    def _fetch(self, target: Target) -> dict[str, Any]:
        host = httpx2.URL(target.url).host
        if self.silent[host] >= SILENT_LIMIT:
            return _skipped("host silent", f"{host} did not answer {SILENT_LIMIT} times in a row")
        conditions = self.earlier.conditions.get(target.url, {})
        try:
            url = parse_url(target.url)
            self.source.guard.check(url)
            if not self.source.is_pydoc:  # a server of our own has no robots.txt
                rules = self.robots.rules(url)
                if denial := rules.disallows(target.url, self.robots.agent):
                    return _skipped(rules.kind, denial)
            reply = self.fetcher.get(url, conditions=conditions, accept=self.config.content_types)
        except Refused as refusal:
            return _skipped("refused", str(refusal))
        except Failed as failure:
            self.silent[host] = self.silent[host] + 1 if failure.reason in ("timeout", "unreachable") else 0
            return _skipped(failure.reason, str(failure), failure.attempts)
        self.silent[host] = 0
        if reply.is_redirect:
            return {"kind": "redirect", "location": reply.location, "attempts": reply.attempts}
        if reply.status == 304 and conditions:
            old = self.earlier.read(target.url)
            fresh = {"etag": reply.etag or old.get("etag"), "last_modified": reply.last_modified or old.get("last_modified")}
            return old | fresh | {"kind": "page", "not_modified": True, "attempts": reply.attempts}
        if reply.status != 200:
            return _skipped(f"status {reply.status}", f"{target.url} answered with status {reply.status}", reply.attempts)
        return self.page(target, reply)

    def page(self, target: Target, reply: Reply) -> dict[str, Any]:
        """The journal row of a page that was had."""
        body = reply.body
        if self.source.is_pydoc:
            if pydoc_server.is_error(body):
                return _skipped("not on this system", f"pydoc cannot show {pydoc_server.module_of(target.url)}", reply.attempts)
            body = pydoc_server.settle(body)
        return {
            "kind": "page", "status": reply.status, "content_type": reply.content_type, "charset": reply.charset,
            "etag": reply.etag, "last_modified": reply.last_modified, "sha256": hashlib.sha256(body).hexdigest(),
            "attempts": reply.attempts, "redirected_from": target.chain[0] if target.chain else None, **pack_body(body),
        }  # fmt: skip


def _skipped(reason: str, detail: str, attempts: int = 0) -> dict[str, Any]:
    return {"kind": "skipped", "reason": reason, "detail": detail, "attempts": attempts}


__all__ = ["MODULES", "CrawlConfig", "crawl", "read_pages"]
