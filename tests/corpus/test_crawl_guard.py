"""Which addresses the crawler may connect to: ways round the door, none of which may make a connection."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore2
import httpx2
import pytest
from crawl_site import page, serve

from luyen.corpus.fetch import Failed, Fetcher, Limits
from luyen.corpus.guard import Guard, Refused, forbidden, parse_url

PUBLIC = "93.184.216.34"
QUICK = Limits(retries=0, timeout_seconds=5)

NAMES = {
    "localhost": ["127.0.0.1"],
    "localhost.localdomain": ["127.0.0.1"],
    "ip6-localhost": ["::1"],
    "metadata.google.internal": ["169.254.169.254"],
    "127.0.0.1.nip.example": ["127.0.0.1"],
    "ten.example": ["10.1.2.3"],
    "half.example": [PUBLIC, "192.168.1.1"],
    "half-v6.example": [PUBLIC, "fc00::1"],
    "mapped.example": ["::ffff:10.0.0.1"],
    "zone.example": ["fe80::1%eth0"],
    "public.example": [PUBLIC],
}

# Ways to write or reach a private address that crawlers and proxies have fallen for.
BYPASSES = [
    "http://127.0.0.1/",
    "http://127.0.0.1:8080/admin",
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://127.0.0.1./",
    "http://127.0.0.1.nip.example/",
    "http://127\u30020\u30020\u30021/",
    "http://\u2460\u2461\u2466.0.0.1/",
    "http://\uff11\uff12\uff17.0.0.1/",
    "http://%31%32%37.0.0.1/",
    "http://127.0.0.1%00.example.com/",
    "http://127.255.255.254/",
    "http://0.0.0.0/",
    "http://0/",
    "http://0.1.2.3/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.170.2/v2/credentials",
    "http://100.64.0.1/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::1]/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::10.0.0.1]/",
    "http://[64:ff9b:1::a00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[::1%25lo]/",
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://localhost.localdomain/",
    "http://ip6-localhost/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://ten.example/",
    "http://half.example/",
    "http://half-v6.example/",
    "http://mapped.example/",
    "http://zone.example/",
    "http://public.example@127.0.0.1/",
    "http://public.example:80@127.0.0.1/",
    "http://@127.0.0.1/",
    "http://127.0.0.1@public.example/",
    "http://public.example\\@127.0.0.1/",
    "http:\\\\127.0.0.1\\",
    "http://127.0.0.1\\.public.example/",
    "http://public.example#@127.0.0.1\\/",
    "http://127.0.0.1:80\\@public.example/",
    "http:127.0.0.1/",
    "http:///127.0.0.1/",
    "//127.0.0.1/",
    "http://\t127.0.0.1/",
    "http://public.example\r\nHost: 127.0.0.1/",
    "http://public.example /",
    "http://public.example:0/",
    "http://public.example:65536/",
    "https://127.0.0.1/",
    "HTTP://127.0.0.1/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_INFO",
    "ftp://127.0.0.1/",
    "dict://127.0.0.1:11211/stats",
    "data:text/html,hello",
    "jar:http://127.0.0.1!/",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "http://" + "a" * 64 + ".example/",
    "http://public.example/" + "a" * 3000,
]


class RecordingBackend(httpcore2.NetworkBackend):
    """Answers every connection with a small page and remembers where to."""

    def __init__(self) -> None:
        self.connected: list[tuple[str, int]] = []
        self.tls: list[tuple[ssl.SSLContext, str | None]] = []
        self.sent = b""

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:  # fmt: skip
        self.connected.append((host, port))
        return _RecordingStream(self)


class _RecordingStream(httpcore2.NetworkStream):
    def __init__(self, backend: RecordingBackend) -> None:
        self.backend = backend
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nok"

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        part, self.answer = self.answer[:max_bytes], self.answer[max_bytes:]
        return part

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.backend.sent += buffer

    def close(self) -> None: ...

    def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        self.backend.tls.append((ssl_context, server_hostname))
        return self


def fetcher(backend: RecordingBackend, allow: bool | tuple[str, ...] = False, names: dict[str, list[str]] = NAMES) -> Fetcher:
    return Fetcher(Guard(allow, resolve=lambda host, port: names[host.lower()]), QUICK, "test/1", delay=0, backend=backend)


@pytest.mark.parametrize("url", BYPASSES, ids=lambda url: ascii(url)[:60])
def test_no_way_round(url: str) -> None:
    backend = RecordingBackend()
    with pytest.raises(Refused) as refusal:
        fetcher(backend).get(parse_url(url))
    assert backend.connected == []
    assert "\n" not in str(refusal.value) and "\r" not in str(refusal.value)


def test_enough_ways_are_tried() -> None:
    assert len(BYPASSES) == len(set(BYPASSES)) >= 40


def test_the_backend_refuses_by_itself() -> None:
    """Even an address object that nobody has looked at before does not get through."""
    for url in ("http://127.0.0.1/", "http://0x7f.1/", "http://2130706433/", "http://localhost/", "http://[::1]/"):
        backend = RecordingBackend()
        door = fetcher(backend, names=NAMES | {"0x7f.1": ["127.0.0.1"], "2130706433": ["127.0.0.1"]})
        with pytest.raises(Refused):
            door.transport.handle_request(httpx2.Request("GET", url))
        assert backend.connected == []


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", PUBLIC, "172.15.0.1", "172.32.0.1", "100.63.255.255", "100.128.0.1", "192.0.1.1",
                "223.255.255.255", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"],
)  # fmt: skip
def test_public_addresses_are_open(address: str) -> None:
    assert forbidden(address) is None


def test_connects_to_the_checked_address_with_the_hosts_name() -> None:
    backend = RecordingBackend()
    reply = fetcher(backend).get(parse_url("http://public.example:8080/a?b=1"))
    assert reply.body == b"ok"
    assert backend.connected == [(PUBLIC, 8080)]
    assert b"GET /a?b=1 HTTP/1.1\r\n" in backend.sent and b"Host: public.example:8080\r\n" in backend.sent


def test_tls_verifies_the_name_and_not_the_address() -> None:
    backend = RecordingBackend()
    fetcher(backend).get(parse_url("https://public.example/"))
    [(context, name)] = backend.tls
    assert backend.connected == [(PUBLIC, 443)]
    assert name == "public.example"
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname


def test_a_name_is_resolved_once_so_that_it_cannot_change() -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])
    backend = RecordingBackend()
    door = Fetcher(Guard(resolve=lambda host, port: next(answers)), QUICK, "test/1", delay=0, backend=backend)
    door.get(parse_url("http://rebinding.example/"))
    assert backend.connected == [(PUBLIC, 80)]
    door.transport.pool.close()
    with pytest.raises(Refused):
        door.get(parse_url("http://rebinding.example/"))
    assert len(backend.connected) == 1


def test_allowed_hosts_open_and_nothing_beside_them() -> None:
    backend = RecordingBackend()
    door = fetcher(backend, allow=("127.0.0.1:8000", "ten.example", "[::1]:90"))
    for url in ("http://127.0.0.1:8000/", "http://ten.example:99/", "http://[::1]:90/"):
        assert door.get(parse_url(url)).status == 200
    for url in ("http://127.0.0.1:8001/", "http://127.0.0.2:8000/", "http://localhost:8000/", "http://[::1]:91/"):
        with pytest.raises(Refused):
            door.get(parse_url(url))
    assert len(backend.connected) == 3


def test_allowing_all_still_reads_addresses_strictly() -> None:
    backend = RecordingBackend()
    door = fetcher(backend, allow=True)
    assert door.get(parse_url("http://10.0.0.1/")).status == 200
    for url in ("http://0x7f.1/", "http://a@10.0.0.1/", "file:///etc/passwd"):
        with pytest.raises(Refused):
            parse_url(url)


def test_an_unknown_name_is_a_failure_of_the_network() -> None:
    def nowhere(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    with pytest.raises(Failed, match="cannot resolve") as failure:
        Fetcher(Guard(resolve=nowhere), QUICK, "test/1", delay=0).get(parse_url("http://nowhere.example/"))
    assert failure.value.reason == "unreachable"


def test_real_server_gets_no_connection_unless_allowed() -> None:
    with serve({"/": page()}) as site:
        closed = Fetcher(Guard(), QUICK, "test/1", delay=0)
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(Refused, match="allow_private"):
                closed.get(parse_url(f"http://{host}:{site.port}/"))
        assert site.connections == 0
        opened = Fetcher(Guard(site.allowed), QUICK, "test/1", delay=0)
        assert opened.get(parse_url(f"{site.base}/")).status == 200
        opened.close()


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({"/": page(text="direct")}) as site, serve() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.base)
        direct = Fetcher(Guard(site.allowed), QUICK, "test/1", delay=0)
        assert b"direct" in direct.get(parse_url(f"{site.base}/")).body
        assert proxy.connections == 0
        direct.close()
