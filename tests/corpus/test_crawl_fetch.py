"""One request: limits of size, time and compression, retries with back-off, the pause between requests."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
import zlib
from collections.abc import Callable

import pytest
from crawl_site import HTML, Answer, Site, page, serve

from luyen.core.config import load
from luyen.core.errors import ConfigError
from luyen.corpus.fetch import Failed, Fetcher, Limits, Reply, decode_body, retry_after
from luyen.corpus.guard import Guard, parse_url
from luyen.corpus.robots import KEPT_SECONDS, PARSED_BYTES, Robots

TEXT = ("text/html",)


def fetcher(site: Site, sleeps: list[float] | None = None, delay: float = 0.0, **limits: float) -> Fetcher:
    noted: list[float] = [] if sleeps is None else sleeps
    return Fetcher(Guard(site.allowed), Limits(**limits), "tester/1.0 (x)", delay=delay, sleep=noted.append)  # type: ignore[arg-type]


def get(site: Site, path: str, **limits: float) -> Reply:
    door = fetcher(site, **limits)
    try:
        return door.get(parse_url(site.base + path), accept=TEXT)
    finally:
        door.close()


def failing(site: Site, path: str, **limits: float) -> Failed:
    with pytest.raises(Failed) as failure:
        get(site, path, **limits)
    return failure.value


def encoded(body: bytes, encoding: str) -> Answer:
    return Answer(200, body, {"Content-Type": HTML, "Content-Encoding": encoding})


def test_body_over_the_limit_is_refused_not_cut() -> None:
    body = b"x" * 5000
    with serve({"/big": Answer(200, body, {"Content-Type": HTML})}) as site:
        assert failing(site, "/big", max_bytes=4999).reason == "too large"
        assert get(site, "/big", max_bytes=5000).body == body


def test_undeclared_length_is_counted_while_reading() -> None:
    body = zlib.compress(b"".join(b"%d " % number for number in range(20_000)))
    with serve({"/z": encoded(body, "deflate")}) as site:
        assert len(body) < 60_000
        assert failing(site, "/z", max_bytes=60_000).reason == "too large"


def test_gzip_bomb_is_stopped_early() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    with serve({"/bomb": encoded(bomb, "gzip")}) as site:
        failure = failing(site, "/bomb", max_bytes=100_000_000)
    assert failure.reason == "decompression bomb" and failure.attempts == 1


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "zstd", "compress", "gzip\u00e9"])
def test_encodings_that_were_not_asked_for(encoding: str) -> None:
    with pytest.raises(Failed) as failure:
        decode_body([b"abc"], encoding, limit=100, max_ratio=100)
    assert failure.value.reason == "encoding"


def raw_deflate(data: bytes) -> bytes:
    machine = zlib.compressobj(wbits=-15)
    return machine.compress(data) + machine.flush()


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate),
     ("gzip", lambda data: gzip.compress(data[:70]) + gzip.compress(data[70:])), ("identity", bytes), ("", bytes)],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_decoding_by_pieces(encoding: str, compress: Callable[[bytes], bytes], size: int) -> None:
    data = bytes(range(256)) * 3
    packed = compress(data)
    pieces = [packed[start : start + size] for start in range(0, len(packed), size)]
    assert decode_body(pieces, encoding, limit=len(data), max_ratio=100) == data
    with pytest.raises(Failed) as failure:
        decode_body(pieces, encoding, limit=len(data) - 1, max_ratio=100)
    assert failure.value.reason == "too large"
    assert decode_body(pieces, encoding, limit=100, max_ratio=100, cut=True) == data[:100]


def test_damaged_and_truncated_compression() -> None:
    packed = gzip.compress(b"hello" * 100)
    for body, reason in ((packed[:-9], "cut short"), (b"not gzip", "encoding"), (packed[:-8] + b"\0" * 8, "encoding")):
        with pytest.raises(Failed) as failure:
            decode_body([body], "gzip", limit=10_000, max_ratio=100)
        assert failure.value.reason == reason


def test_slow_body_and_slow_headers_end_at_the_deadline() -> None:
    slow = Answer(200, b"x" * 100, {"Content-Type": HTML}, drip=0.1)
    with serve({"/slow": slow}) as site:
        started = time.monotonic()
        failure = failing(site, "/slow", timeout_seconds=0.4, retries=0)
        assert failure.reason == "timeout" and time.monotonic() - started < 2
        site.wait = 1.0
        assert failing(site, "/", timeout_seconds=0.2, retries=0).reason == "timeout"
        site.wait = 0.0


def test_headers_that_never_end() -> None:
    """Each byte comes in time; only the whole does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                for _ in range(100):
                    connection.sendall(b"a")
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        started = time.monotonic()
        assert failing(Site(listener.getsockname()[1], {}), "/", timeout_seconds=0.3, retries=0).reason == "timeout"
        assert time.monotonic() - started < 2


def test_wrong_type_is_not_read_and_binary_without_a_type_neither() -> None:
    routes = {
        "/pdf": Answer(200, b"%PDF", {"Content-Type": "application/pdf"}),
        "/untyped": Answer(200, b"\0\1\2", {}),
        "/untyped-text": Answer(200, b"<p>hi", {}),
    }
    with serve(dict(routes)) as site:
        assert failing(site, "/pdf").reason == "wrong type"
        assert failing(site, "/untyped").reason == "wrong type"
        assert get(site, "/untyped-text").body == b"<p>hi"


def test_back_off_doubles_and_retry_after_lengthens_it() -> None:
    answers = iter([Answer(500), Answer(503), Answer(429, headers={"Retry-After": "7"}), page(text="at last")])
    with serve({"/": lambda handler: next(answers)}) as site:
        sleeps: list[float] = []
        door = fetcher(site, sleeps)
        reply = door.get(parse_url(site.base + "/"))
        door.close()
    assert sleeps == [1.0, 2.0, 7.0]
    assert reply.attempts == 4 and b"at last" in reply.body


def test_retries_end_and_long_waits_are_not_waited() -> None:
    with serve({"/500": Answer(500), "/later": Answer(429, headers={"Retry-After": "86400"})}) as site:
        sleeps: list[float] = []
        door = fetcher(site, sleeps, retries=2)
        with pytest.raises(Failed, match="status 500") as failure:
            door.get(parse_url(site.base + "/500"))
        assert (failure.value.attempts, sleeps) == (3, [1.0, 2.0])
        with pytest.raises(Failed, match="86400"):
            door.get(parse_url(site.base + "/later"))
        assert sleeps == [1.0, 2.0]
        door.close()
    assert site.paths() == ["/500"] * 3 + ["/later"]


def test_retry_after_as_a_date() -> None:
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}) > 1e9
    assert retry_after({"Retry-After": "soon"}) == retry_after({}) == 0


def test_pause_between_requests_to_one_host() -> None:
    with serve({"/": page()}) as site:
        door = Fetcher(Guard(site.allowed), Limits(), "tester/1", delay=0.15)
        for _ in range(3):
            door.get(parse_url(site.base + "/"))
        times = [when for _, _, when in site.requests]
        door.slow_down("127.0.0.1", 0.4)
        door.get(parse_url(site.base + "/"))
        door.close()
    assert all(later - earlier >= 0.15 for earlier, later in zip(times, times[1:], strict=False))
    assert site.requests[-1][2] - times[-1] >= 0.4


def test_no_cookies_and_an_honest_name() -> None:
    with serve({"/": page(Set_Cookie="id=1; Path=/")}) as site:
        door = fetcher(site)
        for _ in range(2):
            door.get(parse_url(site.base + "/"))
        door.close()
    assert all("Cookie" not in headers and headers["User-Agent"] == "tester/1.0 (x)" for _, headers, _ in site.requests)


def rules(site: Site, path: str, agent: str = "tester", **limits: float) -> str:
    door = fetcher(site, **limits)
    robots = Robots(door, agent)
    url = parse_url(site.base + path)
    answer = robots.rules(url).disallows(str(url), agent)
    door.close()
    return answer


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_robots_4xx_allows(status: int) -> None:
    with serve({"/robots.txt": Answer(status, b"User-agent: *\nDisallow: /")}) as site:
        assert rules(site, "/x") == ""


@pytest.mark.parametrize("status", [429, 500, 501, 503])
def test_robots_5xx_disallows_everything(status: int) -> None:
    with serve({"/robots.txt": Answer(status, b"")}) as site:
        assert "robots.txt" in rules(site, "/x", retries=1)


def test_robots_unreachable_disallows() -> None:
    with serve() as site:
        base = Site(site.port, {})
    assert "cannot be had" in rules(base, "/x", retries=0)


def test_robots_rules_for_our_name() -> None:
    text = b"\xef\xbb\xbfUser-agent: tester\nDisallow: /secret\nAllow: /secret/open$\n\nUser-agent: *\nDisallow: /"
    with serve({"/robots.txt": Answer(200, text, {"Content-Type": "text/plain"})}) as site:
        assert rules(site, "/page") == ""
        assert rules(site, "/secret/x") != "" and rules(site, "/secret/open") == ""
        assert rules(site, "/page", agent="other") != ""


def test_robots_of_half_a_megabyte_is_read_and_a_larger_one_is_cut() -> None:
    filler = b"# filler\n"
    head = filler * ((500 * 1024 - 60) // len(filler))
    text = head + b"User-agent: *\nDisallow: /late\n"
    assert 499 * 1024 < len(text) <= 500 * 1024 < PARSED_BYTES
    with serve({"/robots.txt": Answer(200, text + filler * 2_000_000, {"Content-Type": "text/plain"})}) as site:
        assert rules(site, "/late") != "" and rules(site, "/x") == ""


def test_robots_redirects_are_followed_five_times() -> None:
    def chain(length: int) -> dict[str, Answer]:
        hops = ["/robots.txt", *(f"/r{number}" for number in range(1, length)), "/end"]
        routes = {hop: Answer(301, b"", {"Location": after}) for hop, after in zip(hops, hops[1:], strict=False)}
        return routes | {"/end": Answer(200, b"User-agent: *\nDisallow: /")}

    with serve(dict(chain(5))) as site:
        assert rules(site, "/x") != ""
    with serve(dict(chain(6))) as site:
        assert rules(site, "/x") == ""


@pytest.mark.parametrize("location", ["http://[::1", "http://a:99999999/", "http://" + "a" * 70 + ".vn/", "file:///etc/passwd"])
def test_robots_that_redirect_to_no_address_are_a_refusal(location: str) -> None:
    with serve({"/robots.txt": Answer(301, b"", {"Location": location})}) as site:
        assert rules(site, "/x") != ""


@pytest.mark.parametrize(
    "values",
    [{"timeout_seconds": 0}, {"max_bytes": 0}, {"max_ratio": 0.5}, {"max_redirects": -1}, {"retries": -1}, {"retry_delay_seconds": -1},
     {"max_wait_seconds": -0.1}, {"timeout_seconds": 1e9}],
)  # fmt: skip
def test_limits_have_bounds(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        load(Limits, values)


def test_robots_are_kept_for_a_day_and_set_the_pace() -> None:
    with serve({"/robots.txt": Answer(200, b"User-agent: *\nCrawl-delay: 3\n"), "/": page()}) as site:
        sleeps: list[float] = []
        now = [0.0]
        door = fetcher(site, sleeps)
        robots = Robots(door, "tester", clock=lambda: now[0])
        for now[0] in (0.0, KEPT_SECONDS - 1, KEPT_SECONDS + 1):
            robots.rules(parse_url(site.base + "/"))
        door.close()
    assert site.paths(robots=True) == ["/robots.txt"] * 2
    assert len(sleeps) == 1 and 2.5 < sleeps[0] <= 3


def test_robots_that_ask_for_an_hour_are_left_alone() -> None:
    with serve({"/robots.txt": Answer(200, b"User-agent: *\nCrawl-delay: 3600\n")}) as site:
        assert "3600" in rules(site, "/")
