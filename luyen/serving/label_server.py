"""The server around the page: its socket, the pairs that are written ahead, and a calm end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import uvicorn

from luyen.core.errors import UserError
from luyen.serving.label_app import Site
from luyen.serving.label_config import LabelConfig
from luyen.serving.label_store import Store

if TYPE_CHECKING:  # ready pairs need no torch
    from luyen.serving.label_writer import PairMaker

MOST_AT_ONCE = 64
"""Requests under way; more are answered with 503."""


def serve(config: LabelConfig, store: Store, maker: PairMaker | None, ready: Callable[[str], None]) -> None:
    """Serve until a signal ends it; `ready` is called with the page's address. UserError when the address cannot be had."""
    where = config.serve
    with listen(where.host, where.port) as listener:
        port = listener.getsockname()[1]
        site = Site(store, where.host, port, where.key, config.judges, tuple(config.categories), maker)
        settings = uvicorn.Config(
            site.application(), http="h11", ws="none", loop="asyncio", lifespan="off", interface="asgi3", log_level="warning",
            access_log=False, server_header=False, proxy_headers=False, limit_concurrency=MOST_AT_ONCE, timeout_keep_alive=5,
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        if maker is not None:
            maker.start()
        try:
            ready(address(where.host, port, where.key))
            uvicorn.Server(settings).run(sockets=[listener])
        finally:
            if maker is not None:
                maker.stop()


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. UserError when the address cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(found[4][:2], family=found[0])
    except OSError as error:
        fix = "serve.port=0 takes one that is free." if port else "Give an address of this machine."
        raise UserError(f"cannot listen on {host} port {port}", found=error.strerror or error, fix=fix) from error


def address(host: str, port: int, key: str) -> str:
    """What is typed into a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?{urlencode({'key': key})}" if key else "")
