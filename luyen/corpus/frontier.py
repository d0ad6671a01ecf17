"""Which addresses to visit, in which order: breadth first, in the order of discovery, each once.

The order depends on the pages alone, never on timing, so that a crawl that was interrupted and continued visits the same
pages as one that ran through.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import httpx2
from resiliparse.parse.encoding import detect_encoding
from resiliparse.parse.html import HTMLTree

from luyen.corpus.guard import Refused, parse_url

HTML_TYPES = frozenset({"text/html", "application/xhtml+xml", ""})
# Addresses waiting at once; a crawl of so many pages needs another tool, and a trap must not eat the memory.
MAX_WAITING = 200_000
_SPACES = "\t\n\f\r "  # what HTML strips from an address
_IN_ADDRESS = dict.fromkeys(map(ord, "\t\n\r"))  # and what it drops inside one
_HEX = "0123456789abcdefABCDEF"
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


@dataclass(frozen=True)
class Target:
    """An address to visit, `depth` links away from a start; `chain` are the redirects that led to it."""

    url: str
    depth: int = 0
    chain: tuple[str, ...] = ()


def canonical(url: httpx2.URL) -> str:
    """One spelling of an address: lower-case host, no default port, no fragment, dot segments resolved (by httpx2), no empty path,
    escapes in upper case and only where needed (RFC 3986, 6.2.2)."""
    path, question, query = url.raw_path.decode("ascii").partition("?")
    host = url.raw_host.decode("ascii")
    host = f"[{host}]" if ":" in host else host
    port = "" if url.port in (None, {"http": 80, "https": 443}[url.scheme]) else f":{url.port}"
    return f"{url.scheme}://{host}{port}{_escapes(path) or '/'}{question if query else ''}{_escapes(query)}"


def _escapes(text: str) -> str:
    first, *parts = text.split("%")
    result = [first]
    for part in parts:
        digits = part[:2]
        if len(digits) == 2 and all(digit in _HEX for digit in digits):
            character = chr(int(digits, 16))
            result.append((character if character in _UNRESERVED else f"%{digits.upper()}") + part[2:])
        else:
            result.append(f"%25{part}")
    return "".join(result)


def key(url: str) -> str:
    """What two spellings of the same page have in common: the address with its query parameters sorted."""
    path, question, query = url.partition("?")
    return path + question + "&".join(sorted(query.split("&"))) if question else url


def links(body: bytes, base_url: str, content_type: str = "", charset: str | None = None) -> Iterator[str]:
    """Addresses that an HTML page links to (`a` and `area`, relative to `base`), as written, in the order of the page.

    Those that are not addresses for a crawler (mailto:, javascript:, malformed or refused spellings) are left out.
    """
    if content_type not in HTML_TYPES:
        return
    encoding = charset or detect_encoding(body, from_html_meta=True) or "utf-8"
    document = HTMLTree.parse_from_bytes(body, encoding, "replace").document
    if document is None:
        return
    base = httpx2.URL(base_url)
    element = document.query_selector("base[href]")
    if element is not None:
        base = _join(base, str(element.getattr("href"))) or base
    # [:] because stepping through resiliparse's own list builds all of it anew at every step
    hrefs = [str(element.getattr("href")) for element in document.query_selector_all("a[href], area[href]")[:]]
    for href in dict.fromkeys(hrefs):
        joined = _join(base, href)
        if joined is not None:
            yield canonical(joined)


def _join(base: httpx2.URL, href: str) -> httpx2.URL | None:
    written = href.strip(_SPACES).translate(_IN_ADDRESS).replace(" ", "%20")
    if ":" in written and written.partition(":")[0].lower() in ("mailto", "javascript", "data", "tel", "file", "ftp", "about", "blob"):
        return None
    try:
        return parse_url(str(base.join(written))) if "\\" not in written else None
    except (Refused, httpx2.InvalidURL, UnicodeError, ValueError):
        return None


class Frontier:
    """The queue. `in_scope` decides which addresses belong to the crawl."""

    def __init__(self, starts: Iterable[str], in_scope: Callable[[str], bool], max_depth: int, max_redirects: int) -> None:
        self.in_scope, self.max_depth, self.max_redirects = in_scope, max_depth, max_redirects
        self.counts: Counter[str] = Counter()
        """Links that were not followed, by reason: off site, too deep, no room."""
        self._seen: set[str] = set()
        self._now: deque[Target] = deque()
        self._next: deque[Target] = deque()
        self._depth = 0
        for url in starts:
            if self._is_new(url):
                self._now.append(Target(url))

    def __len__(self) -> int:
        return len(self._now) + len(self._next)

    def _is_new(self, url: str) -> bool:
        name = key(url)
        if name in self._seen:
            return False
        self._seen.add(name)
        return True

    def take(self, count: int) -> list[Target]:
        """The next addresses, at most `count`, all of one depth; an empty list when there are none."""
        if not self._now:
            self._now, self._next = self._next, deque()
        return [self._now.popleft() for _ in range(min(count, len(self._now)))]

    def add_links(self, source: Target, found: Iterable[str]) -> None:
        """Queue the links of a page that was visited."""
        for url in found:
            if not self.in_scope(url):
                self.counts["off site"] += 1
            elif key(url) in self._seen:
                continue
            elif source.depth >= self.max_depth:
                self.counts["too deep"] += 1
            elif len(self) >= MAX_WAITING:
                self.counts["no room"] += 1
            elif self._is_new(url):
                self._next.append(Target(url, source.depth + 1))

    def add_redirect(self, source: Target, location: str) -> str:
        """Queue where a redirect points to, at the same depth. Returns why not, or ''."""
        chain = (*source.chain, source.url)
        target = _join(httpx2.URL(source.url), location)
        if target is None:
            return f"redirect to a refused address ({ascii(location[:200])})"
        url = canonical(target)
        if url in chain:
            return "redirect loop"
        if len(chain) > self.max_redirects:
            return f"more than {self.max_redirects} redirects"
        if not self.in_scope(url):
            self.counts["off site"] += 1
            return "redirect off site"
        if self._is_new(url):
            self._now.append(Target(url, source.depth, chain))
        return ""
