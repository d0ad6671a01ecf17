"""The door of the crawler: which addresses it may connect to.

One parser (httpx2.URL) reads every address, and the very object it returns is what is connected to, so there is no second
opinion to disagree with (CVE-2026-24779, CVE-2026-45400). Host names are resolved here, all their addresses are checked, and
the connection goes to a checked address, so a name cannot change its mind between check and use (DNS rebinding,
CVE-2026-41488). Redirects are not followed by the transport: each target comes through this door as a new address.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import httpcore2
import httpx2

from luyen.core.errors import FetchError

Resolve = Callable[[str, int], list[str]]

# IANA special-purpose address registries (RFC 6890 and updates), written out so that the answer does not depend on the
# Python version's `is_global`. The two 168.63/100.100 entries are clouds' metadata services.
_FORBIDDEN_V4 = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "carrier-grade NAT",
    "127.0.0.0/8": "loopback",
    "168.63.129.16/32": "cloud metadata",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "protocol assignments",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "AS112",
    "192.52.193.0/24": "AMT",
    "192.88.99.0/24": "6to4 relay",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "AS112",
    "198.18.0.0/15": "benchmarking",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved or broadcast",
}
_FORBIDDEN_V6 = {
    "2001::/23": "protocol assignments and Teredo",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "3fff::/20": "documentation",
}
_V4_NETWORKS = [(ipaddress.IPv4Network(network), why) for network, why in _FORBIDDEN_V4.items()]
_V6_NETWORKS = [(ipaddress.IPv6Network(network), why) for network, why in _FORBIDDEN_V6.items()]
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMERIC_LABEL = re.compile(r"\d+|0x[0-9a-f]*")
MAX_URL_LENGTH = 2000


class Refused(FetchError):
    """An address that the crawler does not connect to."""


def parse_url(text: str) -> httpx2.URL:
    """Read an http or https address; anything that two parsers might read differently is refused.

    Raises Refused for other schemes, user names, backslashes, control characters, hosts that are not plain names or plain
    addresses (decimal, octal, hexadecimal, percent-encoded, zone ids), and ports out of range.
    """
    shown = ascii(text[:200])
    if len(text) > MAX_URL_LENGTH:
        raise Refused("address too long", found=f"{len(text)} characters", expected=f"at most {MAX_URL_LENGTH}")
    if "\\" in text or any(character <= " " or character == "\x7f" for character in text):
        raise Refused("address holds a space, a control character or a backslash", found=shown)
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise Refused(f"not an address: {error}", found=shown, expected="http://host/path") from error
    if url.scheme not in ("http", "https"):
        raise Refused("only http and https are fetched", found=shown)
    authority = re.split(r"[/?#]", text.partition("//")[2], maxsplit=1)[0]
    if url.userinfo or "@" in authority:
        raise Refused("address with a user name", found=shown, fix="Leave out what stands before the @.")
    _check_host(url.raw_host.decode("ascii", "replace"), shown)
    if url.port is not None and not 1 <= url.port <= 65535:
        raise Refused("port out of range", found=shown, expected="1 to 65535")
    return url


def _check_host(host: str, shown: str) -> None:
    if literal(host) is not None:
        return
    if len(host) > 253 or not _HOST_NAME.fullmatch(host) or _NUMERIC_LABEL.fullmatch(host.rsplit(".", 1)[-1]):
        raise Refused("not a plain host name or address", found=shown, expected="a name, a dotted IPv4 or a bracketed IPv6 address")


def literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is written as, or None for a name. IPv6 without brackets; zone ids are not addresses."""
    try:
        return None if "%" in host else ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def forbidden(address: str) -> str | None:
    """Why an IP address is not on the public internet, or None when it is. IPv4 inside IPv6 is judged as IPv4."""
    parsed = literal(address)
    if parsed is None:
        return "not an address"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed in _MAPPED or parsed in _NAT64:
            parsed = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        elif parsed not in _GLOBAL_V6:
            return "not global unicast"
    networks = _V4_NETWORKS if isinstance(parsed, ipaddress.IPv4Address) else _V6_NETWORKS
    return next((why for network, why in networks if parsed in network), None)


def system_resolve(host: str, port: int) -> list[str]:
    """All addresses of a host name by the system's resolver, in its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Guard:
    """Decides about hosts: public ones are open, others only if allowed.

    `allow`: True opens every address; a list opens these `host` or `host:port` entries (as written in the address).
    `routes`: names that stand for a server which the caller started itself, as `name -> (address, port)`.
    """

    def __init__(
        self,
        allow: bool | Iterable[str] = False,
        routes: Mapping[str, tuple[str, int]] | None = None,
        resolve: Resolve = system_resolve,
    ) -> None:
        self.open_to_all = allow is True
        self.allowed = frozenset() if isinstance(allow, bool) else frozenset(entry.lower() for entry in allow)
        self.routes = dict(routes or {})
        self.resolve = resolve

    def is_open(self, host: str, port: int) -> bool:
        """Whether the caller has opened this host although it may be private."""
        written = f"[{host}]" if ":" in host else host
        return self.open_to_all or written in self.allowed or f"{written}:{port}" in self.allowed

    def check(self, url: httpx2.URL) -> None:
        """Refuse an address that needs no resolving to be judged: a literal one. Names are judged when connecting."""
        host, port = url.raw_host.decode("ascii"), port_of(url)
        if host not in self.routes and literal(host) is not None:
            self._judge(host, port, [host])

    def addresses(self, host: str, port: int) -> list[str]:
        """The checked addresses to connect to. Raises Refused if any one of them is forbidden, httpcore2.ConnectError if none."""
        if host not in self.routes and literal(host) is None:
            _check_host(host, ascii(host))
        try:
            found = [host] if literal(host) is not None else self.resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"cannot resolve {host}: {error}") from error
        if not found:
            raise httpcore2.ConnectError(f"{host} has no address")
        self._judge(host, port, found)
        return found

    def _judge(self, host: str, port: int, addresses: list[str]) -> None:
        if self.is_open(host, port):
            return
        for address in addresses:
            why = forbidden(address)
            if why:
                names = "" if address == host else f" for {host}"
                written = f"'[{host}]:{port}'" if ":" in host else f"{host}:{port}"
                raise Refused(
                    "address refused", found=f"{address}{names} ({why})", expected="a public address",
                    fix=f"If you mean it, set allow_private: [{written}].",
                )  # fmt: skip


def port_of(url: httpx2.URL) -> int:
    """The port of an address, the scheme's default if none is written."""
    return url.port or (443 if url.scheme == "https" else 80)


class Deadline(threading.local):
    """When this thread's request must have ended (time.monotonic), so that a slow drip cannot go on for ever."""

    at: float = float("inf")

    def remaining(self, timeout: float | None) -> float:
        """Seconds that the next read or write may take."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("the page took too long in all")
        return left if timeout is None else min(left, timeout)


class _TimedStream(httpcore2.NetworkStream):
    """A connection whose every operation ends at the request's deadline."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self.stream, self.deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, self.deadline.remaining(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, self.deadline.remaining(timeout))

    def close(self) -> None:
        self.stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> httpcore2.NetworkStream:
        secured = self.stream.start_tls(ssl_context, server_hostname, self.deadline.remaining(timeout))
        return _TimedStream(secured, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class GuardedBackend(httpcore2.NetworkBackend):
    """Opens connections for httpcore2, only to addresses that the guard has checked. Host header and TLS name stay the URL's."""

    def __init__(self, guard: Guard, deadline: Deadline, inner: httpcore2.NetworkBackend | None = None) -> None:
        self.guard, self.deadline = guard, deadline
        self.inner = inner or httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """A connection to a checked address of `host`, the next one when one does not answer.

        Raises Refused for a forbidden address, httpcore2.ConnectError when none answers.
        """
        if host in self.guard.routes:
            address, real_port = self.guard.routes[host]
            return self._open(address, real_port, timeout, local_address, socket_options)
        last: Exception = httpcore2.ConnectError(f"no address of {host} answers")
        for address in self.guard.addresses(host, port):
            try:
                return self._open(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
        raise last

    def _open(
        self, address: str, port: int, timeout: float | None, local_address: str | None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None,
    ) -> httpcore2.NetworkStream:  # fmt: skip
        stream = self.inner.connect_tcp(address, port, self.deadline.remaining(timeout), local_address, socket_options)
        return _TimedStream(stream, self.deadline)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None
    ) -> httpcore2.NetworkStream:
        """Refused always: the crawler opens no local sockets."""
        raise Refused("local sockets are not fetched", found=path)
