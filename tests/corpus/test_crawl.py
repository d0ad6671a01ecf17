"""Whole crawls of a local site full of traps."""

from __future__ import annotations

import json
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from crawl_site import HTML, Answer, Site, page, redirect, serve

from luyen.core.config import load
from luyen.core.errors import ConfigError, DamagedFile, DataError, FetchError
from luyen.corpus.crawl import CrawlConfig, crawl, read_pages
from luyen.corpus.fetch import Fetcher, Reply
from luyen.corpus.frontier import canonical, key, links
from luyen.corpus.guard import parse_url


def config(site: Site, start: str | list[str] = "/", **fields: Any) -> CrawlConfig:
    starts = [start] if isinstance(start, str) else start
    limits = {"retries": 0, "timeout_seconds": 5, "retry_delay_seconds": 0.01} | fields.pop("limits", {})
    values = {"start": [site.base + path for path in starts], "delay_seconds": 0, "allow_private": list(site.allowed), "limits": limits}
    return load(CrawlConfig, values | fields)


def paths(site: Site, folder: Path) -> list[str]:
    return [found.url.removeprefix(site.base) for found in read_pages(folder)]


def skipped(site: Site, folder: Path) -> dict[str, str]:
    rows = map(json.loads, (folder / "skipped.jsonl").read_text().splitlines())
    return {row["url"].removeprefix(site.base): row["reason"] for row in rows}


def test_follows_links_once_and_keeps_provenance(tmp_path: Path) -> None:
    routes = {
        "/": page("a", "/a#part", "/a?", "./b/../a", "/s?x=1&y=2", "/s?y=2&x=1", "mailto:a@b.c", "javascript:void(0)", "http://[bad"),
        "/a": page("/"),
        "/s?x=1&y=2": page(text="s"),
    }
    with serve(dict(routes)) as site:
        counts = crawl(config(site), tmp_path)
        assert paths(site, tmp_path) == ["/", "/a", "/s?x=1&y=2"]
        assert sorted(site.paths(robots=True)) == ["/", "/a", "/robots.txt", "/s?x=1&y=2"]
        first = next(iter(read_pages(tmp_path)))
        assert (first.status, first.content_type, first.body) == (200, HTML, routes["/"].body)
        assert first.fetched_at.endswith("+00:00") and len(first.sha256) == 64
        assert (counts["pages"], counts["requests"], counts["left"], counts["skipped"]) == (3, 3, 0, {})


def test_base_element_and_relative_links(tmp_path: Path) -> None:
    body = b'<head><base href="/deep/er/"></head><a href=" ../up\n.html ">1</a><a href="//127.0.0.1:9/other">2</a><area href="?q">'
    routes = {"/": Answer(200, body, {"Content-Type": HTML}), "/deep/up.html": page(), "/deep/er/?q": page()}
    with serve(dict(routes)) as site:
        crawl(config(site), tmp_path)
        assert paths(site, tmp_path) == ["/", "/deep/er/?q", "/deep/up.html"]


def test_addresses_in_other_encodings(tmp_path: Path) -> None:
    latin = Answer(200, '<a href="/caf%e9">1</a><a href="/\u00fc">2</a>'.encode("latin-1"), {"Content-Type": "text/html; charset=latin-1"})
    with serve({"/": latin, "/caf%E9": page(), "/%C3%BC": page()}) as site:
        crawl(config(site), tmp_path)
        assert paths(site, tmp_path) == ["/", "/%C3%BC", "/caf%E9"]


def test_redirects_are_hops_of_their_own(tmp_path: Path) -> None:
    routes = {
        "/": page("/old", "/loop", "/long0", "/self", "/out", "/nowhere"),
        "/old": redirect("/new", 301),
        "/new": page(),
        "/loop": redirect("/pool"),
        "/pool": redirect("/loop"),
        "/self": redirect("/self"),
        "/out": redirect("https://example.org/"),
        "/nowhere": Answer(302),
        **{f"/long{number}": redirect(f"/long{number + 1}") for number in range(6)},
        "/long6": page(text="too far"),
    }
    with serve(dict(routes)) as site:
        counts = crawl(config(site), tmp_path)
        assert paths(site, tmp_path) == ["/", "/new"]
        assert skipped(site, tmp_path) == {
            "/pool": "redirect", "/self": "redirect", "/long5": "redirect", "/out": "redirect", "/nowhere": "status 302",
        }  # fmt: skip
        assert counts["skipped"] == {"redirect": 4, "status 302": 1}
        assert counts["redirects"] == 11
        rows = [json.loads(line) for line in (tmp_path / "pages-00000.jsonl").read_text().splitlines()]
        assert [row.get("redirected_from") for row in rows] == [None, f"{site.base}/old"]


def test_redirects_and_links_to_private_addresses_are_refused(tmp_path: Path) -> None:
    with serve({"/": page(text="secret")}) as inner, serve() as site:
        targets = [inner.base, f"http://localhost:{inner.port}", f"http://127.1:{inner.port}", f"http://0x7f000001:{inner.port}",
                   f"http://[::ffff:127.0.0.1]:{inner.port}", f"http://a@127.0.0.1:{inner.port}", "file:///etc/passwd"]  # fmt: skip
        site.routes["/"] = page(*(f"/r{number}" for number in range(len(targets))), *targets)
        site.routes |= {f"/r{number}": redirect(target + "/") for number, target in enumerate(targets)}
        crawl(config(site, follow="any"), tmp_path)
        assert paths(site, tmp_path) == ["/"]
        assert inner.connections == 0
        reasons = skipped(site, tmp_path)
        assert reasons.pop(f"{inner.base}/") == "refused" and reasons.pop(f"http://localhost:{inner.port}/") == "refused"
        assert reasons.pop(f"http://[::ffff:127.0.0.1]:{inner.port}/") == "refused"
        assert set(reasons.values()) == {"redirect"} and len(reasons) == 4


def test_what_is_not_kept_is_counted_by_reason(tmp_path: Path) -> None:
    routes = {
        "/": page("/pdf", "/gone", "/secret", "/big", "/flaky"),
        "/robots.txt": Answer(200, b"User-agent: *\nDisallow: /secret"),
        "/pdf": Answer(200, b"%PDF", {"Content-Type": "application/pdf"}),
        "/gone": Answer(410),
        "/secret": page(),
        "/big": Answer(200, b"x" * 3000, {"Content-Type": HTML}),
        "/flaky": Answer(503),
    }
    with serve(dict(routes)) as site:
        counts = crawl(config(site, limits={"max_bytes": 2000}), tmp_path)
        assert counts["skipped"] == {"robots.txt": 1, "status 410": 1, "status 503": 1, "too large": 1, "wrong type": 1}
        assert skipped(site, tmp_path)["/secret"] == "robots.txt"
        assert "/secret" not in site.paths()


def test_endless_calendar_ends_by_depth_and_by_pages(tmp_path: Path) -> None:
    def month(handler: Any) -> Answer:
        number = int(handler.path.partition("=")[2])
        return page(f"/cal?month={number + 1}", f"/cal?month={number + 2}")

    routes = {f"/cal?month={number}": month for number in range(200)}
    with serve(dict(routes)) as site:
        counts = crawl(config(site, "/cal?month=0", max_depth=4), tmp_path / "depth")
        assert (counts["pages"], counts["links"]) == (9, {"too deep": 3})
        counts = crawl(config(site, "/cal?month=0", max_pages=7, max_depth=100), tmp_path / "pages")
        assert counts["pages"] == 7 and counts["left"] > 0


def test_endless_broken_links_end_too(tmp_path: Path) -> None:
    with serve({"/": page(*(f"/missing{number}" for number in range(500)))}) as site:
        counts = crawl(config(site, max_pages=3), tmp_path)
        assert counts["pages"] == 1 and len(site.requests) < 40 and counts["left"] > 400


def test_scope(tmp_path: Path) -> None:
    with serve({"/docs/": page("/docs/a", "/blog", "https://example.org/"), "/docs/a": page(), "/blog": page()}) as site:
        counts = crawl(config(site, "/docs/", follow="prefix"), tmp_path)
        assert paths(site, tmp_path) == ["/docs/", "/docs/a"] and counts["links"] == {"off site": 2}


def test_hosts_side_by_side_but_one_request_each(tmp_path: Path) -> None:
    meeting = threading.Barrier(2, timeout=10)

    def meet(handler: Any) -> Answer:
        meeting.wait()
        return page("/alone1", "/alone2")

    with serve({"/": meet, "/alone1": page(), "/alone2": page()}) as site:
        starts = [f"http://{host}:{site.port}/" for host in ("127.0.0.1", "localhost")]
        settings = {"start": starts, "delay_seconds": 0.1, "allow_private": True, "limits": {"retries": 0}}
        assert crawl(load(CrawlConfig, settings), tmp_path)["pages"] == 6
        for host in ("127.0.0.1", "localhost"):
            times = [when for _, headers, when in site.requests if headers["Host"].startswith(host)]
            assert len(times) == 4 and all(later - earlier >= 0.1 for earlier, later in pairwise(times))


def test_second_visit_asks_only_for_changes(tmp_path: Path) -> None:
    def tagged(handler: Any) -> Answer:
        same = handler.headers.get("If-None-Match") == '"v1"'
        return Answer(304, headers={"ETag": '"v1"'}) if same else page("/dated", "/plain", text="tagged", ETag='"v1"')

    def dated(handler: Any) -> Answer:
        when = "Mon, 02 Jan 2023 00:00:00 GMT"
        same = handler.headers.get("If-Modified-Since") == when
        return Answer(304) if same else page(text="dated", Last_Modified=when)

    with serve({"/": tagged, "/dated": dated, "/plain": page(text="old")}) as site:
        first = crawl(config(site), tmp_path)
        before = (tmp_path / "pages-00000.jsonl").read_bytes()
        second = crawl(config(site), tmp_path)
        assert (first["not_modified"], second["not_modified"], second["pages"]) == (0, 2, 3)
        assert (tmp_path / "pages-00000.jsonl").read_bytes() == before
        site.routes["/plain"] = page(text="new")
        crawl(config(site), tmp_path)
        assert [b"new" in found.body for found in read_pages(tmp_path)] == [False, False, True]
        del site.routes["/dated"]
        assert crawl(config(site), tmp_path)["skipped"] == {"status 404": 1}
        assert paths(site, tmp_path) == ["/", "/plain"]


def test_damaged_earlier_page_is_fetched_whole(tmp_path: Path) -> None:
    with serve({"/": page(text="good", ETag='"v1"')}) as site:
        crawl(config(site), tmp_path)
        file = tmp_path / "pages-00000.jsonl"
        file.write_bytes(file.read_bytes().replace(b"good", b"evil"))
        with pytest.raises(DamagedFile, match="sha256"):
            list(read_pages(tmp_path))
        assert crawl(config(site), tmp_path)["not_modified"] == 0
        assert b"good" in next(iter(read_pages(tmp_path))).body


def test_bodies_that_are_not_utf8_are_kept_exactly(tmp_path: Path) -> None:
    bodies = {"/a": b"\xff\xfe\x00", "/b": "Ti\u1ebfng Vi\u1ec7t \u2028\r\n".encode(), "/c": b""}
    routes = {path: Answer(200, body, {"Content-Type": "text/html; charset=windows-1258"}) for path, body in bodies.items()}
    with serve(dict(routes)) as site:
        crawl(config(site, list(bodies)), tmp_path)
        assert [found.body for found in read_pages(tmp_path)] == list(bodies.values())
        assert {found.content_type for found in read_pages(tmp_path)} == {"text/html; charset=windows-1258"}


def test_nothing_to_be_had_is_one_line(tmp_path: Path) -> None:
    with serve({"/": Answer(404), "/a": Answer(404)}) as site:
        with pytest.raises(FetchError, match="status 404") as error:
            crawl(config(site), tmp_path)
        assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []
        site.routes["/"] = page()
        assert crawl(config(site, ["/", "/a"]), tmp_path)["pages"] == 1
    with pytest.raises(FetchError, match="cannot be reached"):
        crawl(config(site), tmp_path / "gone")


@pytest.mark.parametrize(
    ("start", "near"),
    [
        ("example.org", "https://example.org/"),
        (["https://a.org/", " example.org/docs"], "https://example.org/docs"),
        ("//example.org/docs/", "https://example.org/docs/"),
        ("pydocs", "https://example.org/, or the one word pydoc"),
    ],
)
def test_a_start_without_a_scheme_is_told_the_whole_address(start: object, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(CrawlConfig, {"start": start})
    assert str(error.value).endswith(f"expected addresses with their scheme, such as {near}")


@pytest.mark.parametrize("start", ["http://10.0.0.1/", "http://127.1/", "ftp://example.org/", "http://u:p@example.org/"])
def test_a_start_that_is_refused_is_said_at_once(start: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError) as error:
        crawl(CrawlConfig(start=(start,)), tmp_path)
    assert "\n" not in str(error.value)


def test_secrets_of_the_environment_reach_no_file_and_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_SECRETSECRETSECRET"
    for name in ("HF_TOKEN", "NETRC", "http_proxy"):
        monkeypatch.setenv(name, secret)
    with serve({"/": page("/missing")}) as site:
        crawl(config(site), tmp_path)
        assert secret not in str(site.requests)
    assert all(secret.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_what_nobody_foresaw_is_the_failure_of_one_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Fetcher.get

    def get(self: Fetcher, url: httpx2.URL, **more: Any) -> Reply:
        if url.path == "/bad":
            raise KeyError("surprise")
        return original(self, url, **more)

    monkeypatch.setattr(Fetcher, "get", get)
    with serve({"/": page("/bad", "/good"), "/good": page()}) as site:
        counts = crawl(config(site), tmp_path)
        assert paths(site, tmp_path) == ["/", "/good"] and skipped(site, tmp_path) == {"/bad": "error"}
        assert counts["skipped"] == {"error": 1} and "KeyError: 'surprise'" in (tmp_path / "skipped.jsonl").read_text()


def test_config_mistakes_are_explained() -> None:
    for values, said in (({"start": []}, "start"), ({"max_pages": 0}, "max_pages"), ({"follow": "all"}, "follow"),
                         ({"user_agent": "bad\r\nX: y"}, "user_agent"), ({"max_page": 3}, "max_pages")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            load(CrawlConfig, values)


def test_an_unfinished_folder_has_no_pages(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no crawled pages"):
        next(read_pages(tmp_path))


@pytest.mark.parametrize(
    ("written", "expected"),
    [("HTTP://Example.COM:80/a/../b/./c?z#f", "http://example.com/b/c?z"), ("https://example.com:443", "https://example.com/"),
     ("http://example.com/%7euser/%2f%e9", "http://example.com/~user/%2F%E9"), ("http://example.com/100%", "http://example.com/100%25"),
     ("http://example.com/?", "http://example.com/"), ("http://b\u00fccher.example/", "http://xn--bcher-kva.example/"),
     ("http://[2606:4700::1111]:81/", "http://[2606:4700::1111]:81/")],
)  # fmt: skip
def test_one_spelling(written: str, expected: str) -> None:
    assert canonical(parse_url(written)) == expected
    assert canonical(parse_url(expected)) == expected


def test_key_ignores_the_order_of_parameters() -> None:
    assert key("http://e.org/?b=2&a=1") == key("http://e.org/?a=1&b=2") != key("http://e.org/?a=1")


def test_links_of_hostile_pages() -> None:
    """2.16: a page of one long line, deep nesting, bytes of no encoding: no exception, bounded time."""
    long_line = b"<p>" + b"x" * 2_000_000 + b'<a href="/end">'
    assert list(links(long_line, "http://e.org/")) == ["http://e.org/end"]
    many = b"".join(b"<a href=/%d><a href=/same>" % number for number in range(5000))
    started = time.monotonic()
    assert len(list(links(many, "http://e.org/"))) == 5001
    assert time.monotonic() - started < 10
    assert list(links(b"<div>" * 100_000 + b'<a href="/deep">', "http://e.org/")) == ["http://e.org/deep"]
    assert list(links(b'\xff\xfe<\x00a\x00\xd8 href="', "http://e.org/", charset="no-such-charset")) == []
    assert list(links(b'<a href="/x">', "http://e.org/", "text/plain")) == []
    assert list(links(b'<a href="' + b"y" * 5000 + b'"><a href="http://e.org:99999/">', "http://e.org/")) == []
