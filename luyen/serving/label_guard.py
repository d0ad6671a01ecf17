"""Who may speak to the page: this machine's own browser tabs of this very page, or whoever knows the key.

A page of another site that a person has open can send requests to the loopback address, and can have its own name point there (DNS
rebinding). So the Host header must be one of ours, and what changes anything must be JSON that comes from our own origin. Browsers set
both headers themselves; a script in a page cannot.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luyen.serving.label_config import LOOPBACK

COOKIE = "luyen_label_key"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin", "cache-control": "no-store", "x-frame-options": "DENY",
}  # fmt: skip


@dataclass(frozen=True)
class Guard:
    """Around the application: refuses what is not ours, and adds the headers that keep the page to itself."""

    app: ASGIApp
    host: str
    port: int
    key: str = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        query = scope.get("query_string", b"").decode("latin-1")
        refused = self.refuse(scope["method"], scope.get("path", ""), query, Headers(scope=scope))

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (refused or self.app)(scope, receive, guarded)

    def refuse(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> Response | None:
        """The answer to a request that goes no further; None for one that does."""
        host = headers.get("host", "")
        if not self._ours(host):
            return PlainTextResponse(f"the Host header names {host[:80]!r}, which is not this page's address\n", 421)
        if method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("only GET and POST\n", 405)
        if self.key and not self._knows(query, headers):
            return PlainTextResponse("this page needs its key: open the address that luyen label printed, with ?key=... behind it\n", 401)
        if self.key and method == "GET" and "key" in parse_qs(query):
            return self._welcome(path, query)
        return self._foreign(host, headers) if method == "POST" else None

    def _ours(self, host: str) -> bool:
        """Whether a Host header names this page. Behind another address than the loopback one the key stands in for it."""
        if self.host not in LOOPBACK:
            return bool(host)
        try:
            split = urlsplit(f"//{host}")
            return split.hostname in LOOPBACK and (split.port or 80) == self.port and "@" not in host
        except ValueError:
            return False

    def _foreign(self, host: str, headers: Mapping[str, str]) -> Response | None:
        """The refusal of a POST that another site's page may have caused."""
        origin = headers.get("origin", "")
        if urlsplit(origin).netloc != host or not origin.startswith(("http://", "https://")):
            return PlainTextResponse("the request does not come from this page (Origin)\n", 403)
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return PlainTextResponse("the request does not come from this page (Sec-Fetch-Site)\n", 403)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return PlainTextResponse("only application/json\n", 415)
        return None

    def _knows(self, query: str, headers: Mapping[str, str]) -> bool:
        given = parse_qs(query).get("key", [])[:1] + [headers.get("authorization", "").removeprefix("Bearer ")]
        try:
            cookies: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        given += [cookies[COOKIE].value] if COOKIE in cookies else []
        return any(hmac.compare_digest(item.encode("utf-8", "surrogatepass"), self.key.encode()) for item in given)

    def _welcome(self, path: str, query: str) -> Response:
        """The same address without the key, which stays in a cookie and out of the history."""
        names = parse_qs(query).get("annotator", [])[:1]
        target = "/stats" if path == "/stats" else "/"
        answer = RedirectResponse(f"{target}?annotator={quote(names[0])}" if names else target, 303)
        answer.set_cookie(COOKIE, self.key, httponly=True, samesite="strict")
        return answer
