"""A local web site for the crawler's tests: a table of path -> answer, every request recorded."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HTML = "text/html; charset=utf-8"


@dataclass
class Answer:
    """What the site says: status, headers, body; `drip` seconds between the bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    drip: float = 0.0


def page(*hrefs: str, text: str = "", **headers: str) -> Answer:
    """An HTML page with these links."""
    links = "".join(f'<a href="{href}">x</a>' for href in hrefs)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(200, f"<html><body><p>{text}</p>{links}</body></html>".encode(), {"Content-Type": HTML, **named})


def redirect(location: str, status: int = 302) -> Answer:
    """A redirect."""
    return Answer(status, b"", {"Location": location})


Route = Answer | Callable[[BaseHTTPRequestHandler], Answer]


@dataclass
class Site:
    """A running site. `requests`: (path, headers, monotonic time) in the order of arrival."""

    port: int
    routes: dict[str, Route]
    requests: list[tuple[str, dict[str, str], float]] = field(default_factory=list)
    connections: int = 0
    wait: float = 0.0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def allowed(self) -> tuple[str, ...]:
        return (f"127.0.0.1:{self.port}",)

    def paths(self, robots: bool = False) -> list[str]:
        return [path for path, _, _ in self.requests if robots or path != "/robots.txt"]


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet: else each answer waits 40 ms for an acknowledgement

        def setup(self) -> None:
            site.connections += 1
            super().setup()

        def do_GET(self) -> None:
            site.requests.append((self.path, dict(self.headers.items()), time.monotonic()))
            time.sleep(site.wait)
            route = site.routes.get(self.path, Answer(404))
            answer = route(self) if callable(route) else route
            self.send_response(answer.status)
            if "Content-Length" not in answer.headers and answer.status != 304:
                self.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                if not answer.drip:
                    self.wfile.write(answer.body)
                for index in range(len(answer.body) if answer.drip else 0):
                    self.wfile.write(answer.body[index : index + 1])
                    self.wfile.flush()
                    time.sleep(answer.drip)

        def log_message(self, *args: Any) -> None: ...

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None: ...


@contextlib.contextmanager
def serve(routes: dict[str, Route] | None = None) -> Iterator[Site]:
    """Run a site for the length of the block."""
    site = Site(0, routes if routes is not None else {})
    server = _Server(("127.0.0.1", 0), _handler(site))
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
