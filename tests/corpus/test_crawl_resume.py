"""A crawl that is killed, interrupted or cut off by a full disk continues to the same pages."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from crawl_site import Answer, Route, Site, page, redirect, serve

from luyen.core import interrupt, manifest
from luyen.core.config import load
from luyen.core.errors import Interrupted, StorageError
from luyen.core.storage import LEFT_FILE
from luyen.corpus.crawl import CrawlConfig, crawl
from luyen.corpus.pages import Journal, read_pages, write_shards

CHILD = """
import json, sys
from pathlib import Path
from luyen.core import interrupt
from luyen.core.config import load
from luyen.core.errors import Interrupted
from luyen.corpus.crawl import CrawlConfig, crawl
with interrupt.listening():
    try:
        crawl(load(CrawlConfig, json.loads(sys.argv[1])), Path(sys.argv[2]))
    except Interrupted as stop:
        sys.exit(stop.exit_code)
"""


def tree() -> dict[str, Route]:
    """A site of 31 pages in five levels, with a redirect and dead links among them."""
    routes: dict[str, Route] = {f"/{n}": page(f"/{2 * n}", f"/{2 * n + 1}", f"/gone{n}", text=f"page {n} " * 50) for n in range(1, 16)}
    routes |= {f"/{n}": page(text=f"leaf {n} \u00e9") for n in range(16, 32)}
    return routes | {"/5": redirect("/moved"), "/moved": page("/10", "/11", "/gone5")}


def settings(site: Site, **more: Any) -> dict[str, Any]:
    limits = {"retries": 0, "timeout_seconds": 10}
    return {"start": [f"{site.base}/1"], "delay_seconds": 0, "allow_private": list(site.allowed), "max_pages": 29, "limits": limits} | more


def published(folder: Path) -> dict[str, bytes]:
    """The files that must not depend on when and how often the crawl was stopped."""
    names = {path.name for path in folder.iterdir()}
    assert names == {"pages-00000.jsonl", "skipped.jsonl", "timings.jsonl"}
    return {name: (folder / name).read_bytes() for name in ("pages-00000.jsonl", "skipped.jsonl")}


def start(site: Site, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(settings(site)), str(folder)])


def wait_for(site: Site, count: int, child: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while len(site.requests) < count and child.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


def kill_and_resume(site: Site, tmp_path: Path, whole: dict[str, bytes], counts: dict[str, Any], requests: int, pause: float) -> None:
    folder = tmp_path / f"killed-{requests}-{pause:.3f}"
    before = len(site.requests)
    child = start(site, folder)
    wait_for(site, before + requests, child)
    time.sleep(pause)
    child.kill()
    child.wait()
    known = (folder / "journal.jsonl").read_bytes().count(b'"attempts"') if (folder / "journal.jsonl").exists() else 0
    asked = len(site.requests)
    resumed = crawl(load(CrawlConfig, settings(site)), folder)
    assert published(folder) == whole and resumed == counts
    if known:
        assert len(site.requests) - asked <= 1 + 43 - known  # what was had is not asked for again


def test_a_file_that_a_kill_left_half_written_goes(tmp_path: Path) -> None:
    with serve(tree()) as site:
        counts = crawl(load(CrawlConfig, settings(site)), tmp_path / "whole")
        whole = published(tmp_path / "whole")
        left = tmp_path / "again" / f"{LEFT_FILE}999999999-pages-00000.jsonl"
        left.parent.mkdir()
        left.write_bytes(b"{")
        assert crawl(load(CrawlConfig, settings(site)), left.parent) == counts and published(left.parent) == whole


def test_killed_in_the_middle(tmp_path: Path) -> None:
    with serve(tree()) as site:
        counts = crawl(load(CrawlConfig, settings(site)), tmp_path / "whole")
        whole = published(tmp_path / "whole")
        # robots.txt, 29 pages, one redirect, the dead links of pages 1 to 7 and of the six parents that were reached
        assert len(site.requests) == 1 + 29 + 1 + 7 + 6 and (counts["pages"], counts["left"]) == (29, 4)
        site.wait = 0.01
        for requests in (3, 20):
            kill_and_resume(site, tmp_path, whole, counts, requests, 0.005)


@pytest.mark.slow
def test_killed_at_thirty_random_points(tmp_path: Path) -> None:
    chance = random.Random(0)
    with serve(tree()) as site:
        counts = crawl(load(CrawlConfig, settings(site)), tmp_path / "whole")
        whole = published(tmp_path / "whole")
        for _ in range(30):
            site.wait = chance.choice([0.0, 0.01])
            kill_and_resume(site, tmp_path, whole, counts, chance.randrange(1, 44), chance.random() * 0.02)


def test_journal_cut_anywhere(tmp_path: Path) -> None:
    """As kill -9 leaves it, whatever the last write was, each continued to the same bytes."""
    with serve(tree()) as site:
        config = load(CrawlConfig, settings(site))
        counts = crawl(config, tmp_path / "whole")
        whole = published(tmp_path / "whole")
        journal = tmp_path / "journal.jsonl"
        keep = Journal.publish

        def publish(self: Journal, *arguments: Any) -> dict[str, int]:
            journal.write_bytes(self.path.read_bytes())
            return keep(self, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "publish", publish)
            crawl(config, tmp_path / "again")
        content = journal.read_bytes()
        chance = random.Random(1)
        for cut in [0, 1, 80, len(content) - 1, len(content), *(chance.randrange(len(content)) for _ in range(7))]:
            folder = tmp_path / f"cut-{cut}"
            folder.mkdir()
            (folder / "journal.jsonl").write_bytes(content[:cut])
            asked = len(site.requests)
            assert crawl(config, folder) == counts
            assert published(folder) == whole
            if cut == len(content):
                assert len(site.requests) == asked


def test_journal_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    with serve({"/1": page(text="x" * 3000)}) as site:
        journal = Journal(tmp_path, "of other settings")
        journal.append({"url": f"{site.base}/1", "kind": "skipped", "reason": "too large", "detail": "x", "attempts": 1})
        journal.close()
        large = load(CrawlConfig, settings(site, limits={"max_bytes": 9000, "retries": 0}))
        assert crawl(large, tmp_path)["pages"] == 1


def test_a_signal_stops_between_pages_and_the_same_command_continues(tmp_path: Path) -> None:
    with serve(tree()) as site:
        counts = crawl(load(CrawlConfig, settings(site)), tmp_path / "whole")
        site.wait = 0.02
        child = start(site, tmp_path / "stopped")
        wait_for(site, len(site.requests) + 10, child)
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 143
        site.wait = 0.0
        assert crawl(load(CrawlConfig, settings(site)), tmp_path / "stopped") == counts
    assert published(tmp_path / "stopped") == published(tmp_path / "whole")


def test_a_signal_ends_a_long_pause(tmp_path: Path) -> None:
    with serve(tree()) as site, interrupt.listening():
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
        started = time.monotonic()
        with pytest.raises(Interrupted):
            crawl(load(CrawlConfig, settings(site, delay_seconds=60)), tmp_path)
        assert time.monotonic() - started < 10


def test_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({"/1": page(text="old")}) as site:
        config = load(CrawlConfig, settings(site))
        crawl(config, tmp_path)
        before = published(tmp_path)
        site.routes["/1"] = page(text="new")

        def full(source: Any, target: Any) -> None:
            raise OSError(28, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(StorageError, match="No space"):
                crawl(config, tmp_path)
        assert (tmp_path / "pages-00000.jsonl").read_bytes() == before["pages-00000.jsonl"]
        asked = len(site.paths())
        crawl(config, tmp_path)
        assert len(site.paths()) == asked  # the new page was already in the journal
        assert b"new" in next(iter(read_pages(tmp_path))).body


def test_shards_of_many_pages(tmp_path: Path) -> None:
    rows = [{"url": f"http://e.org/{n}", "body": "x" * 10} for n in range(10)]
    assert write_shards(tmp_path, iter(rows), shard_bytes=35) == ["pages-00000.jsonl", "pages-00001.jsonl", "pages-00002.jsonl"]
    joined = b"".join((tmp_path / f"pages-{n:05d}.jsonl").read_bytes() for n in range(3))
    assert [json.loads(line)["url"] for line in joined.splitlines()] == [row["url"] for row in rows]
    assert write_shards(tmp_path, iter([])) == ["pages-00000.jsonl"]


def test_times_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    with serve({"/1": page(), "/robots.txt": Answer(404)}) as site:
        crawl(load(CrawlConfig, settings(site)), tmp_path)
    assert "fetched_at" not in (tmp_path / "pages-00000.jsonl").read_text()
    assert "fetched_at" in (tmp_path / "timings.jsonl").read_text()
    assert manifest.seal(tmp_path, "pages")["files"].keys() == {"pages-00000.jsonl", "skipped.jsonl", "timings.jsonl"}
