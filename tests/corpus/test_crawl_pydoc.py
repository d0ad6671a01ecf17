"""The crawl of Python's own documentation server."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from luyen.core.errors import FetchError
from luyen.corpus import pydoc_server
from luyen.corpus.crawl import MODULES, CrawlConfig, crawl, read_pages
from luyen.corpus.pages import Journal


def run(folder: Path, **fields: Any) -> dict[str, Any]:
    return crawl(CrawlConfig(**fields), folder)


def killed(*_: Any) -> None:
    raise RuntimeError("killed")


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but that nobody waited for does not."""
    status = Path(f"/proc/{pid}/stat")
    if status.exists():
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def test_pages_of_some_modules_twice_the_same(tmp_path: Path) -> None:
    """Names, order and bytes; difflib's page shows memory addresses, collections' depends on what was imported before."""
    modules = ("os", "json", "collections", "difflib", "no_such_module")
    counts = run(tmp_path / "a", modules=modules)
    assert (counts["pages"], counts["skipped"]) == (4, {"not on this system": 1})
    assert "no_such_module" in (tmp_path / "a" / "skipped.jsonl").read_text()
    pages = list(read_pages(tmp_path / "a"))
    assert [page.url for page in pages] == [f"http://pydoc.localhost/{name}.html" for name in ("collections", "difflib", "json", "os")]
    assert b"Serialize" in pages[2].body
    assert str(Path(os.__file__).parent).encode() not in b"".join(page.body for page in pages)

    with pytest.MonkeyPatch.context() as patch:  # killed at the last moment, and continued by another server
        patch.setattr(Journal, "publish", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(tmp_path / "b", modules=modules)
    journal = tmp_path / "b" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"Serialize", b"OTHERWISE"))
    run(tmp_path / "b", modules=modules)
    for name in ("pages-00000.jsonl", "skipped.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_submodules_on_request(tmp_path: Path) -> None:
    run(tmp_path, modules=("json",), submodules=True)
    names = [pydoc_server.module_of(page.url) for page in read_pages(tmp_path)]
    assert names == ["json.decoder", "json.encoder", "json", "json.scanner", "json.tool"]  # by address: ".d" < ".h"


def test_only_the_servers_own_port_is_open(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="no page could be had"):
        run(tmp_path, modules=("no_such_module",))


def test_the_server_sees_no_local_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text('"""LOCAL LEAK"""')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pydoc_server.serving() as port:
        url = f"http://127.0.0.1:{port}/"
        assert b"LOCAL LEAK" not in urllib.request.urlopen(url + "json.html").read()
        assert pydoc_server.is_error(urllib.request.urlopen(url + "pydantic.html").read())


def test_the_server_ends_with_the_block_even_after_threading_was_shown() -> None:
    """pydoc imports `threading` anew to show it, after which its own way of stopping hangs."""
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="inside"), pydoc_server.serving() as port:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/threading.html").read()
        raise RuntimeError("inside")
    assert time.monotonic() - started < 10
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/")


PARENT = """
import subprocess, sys, time, urllib.request
from luyen.corpus import pydoc_server
class Popen(subprocess.Popen):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        print(self.pid, flush=True)
subprocess.Popen = Popen
with pydoc_server.serving() as port:
    urllib.request.urlopen(f"http://127.0.0.1:{port}/threading.html").read()
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_when_this_process_is_killed(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == b"ready\n" and alive(pid)
        parent.send_signal(number)
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(pid)


def test_the_server_gets_no_variable_of_the_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUYEN_TEST_SECRET", "hf_SECRET")
    monkeypatch.setattr(pydoc_server, "_LAUNCHER", "import os; raise SystemExit(repr(dict(os.environ)))")
    with pytest.raises(FetchError, match="PYTHONHASHSEED") as error, pydoc_server.serving():
        pass
    assert "SECRET" not in str(error.value)


def test_a_server_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydoc_server, "_LAUNCHER", "raise SystemExit('no port')")
    with pytest.raises(FetchError, match="no port") as error, pydoc_server.serving():
        pass
    assert "\n" not in str(error.value)


def test_default_modules_and_the_standard_library() -> None:
    library = pydoc_server.standard_library()
    assert 10 <= len(MODULES) <= 20 and set(MODULES) <= set(library)
    assert {"math", "json", "itertools", "statistics"} <= set(MODULES)
    assert 150 <= len(library) <= 250 and not {"antigravity", "this", "_thread", "idlelib"} & set(library)


@pytest.mark.parametrize("name", MODULES)
def test_every_default_module_shows_functions_of_its_own_on_any_python(name: str) -> None:
    """pydoc shows what `__all__` lists; without it, from Python 3.13 on, what says that it comes from this module (bisect's does not)."""
    module = importlib.import_module(name)
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == name and not key.startswith("_")]
    assert len(getattr(module, "__all__", own)) >= 3


@pytest.mark.parametrize(
    ("raw", "settled"),
    [(b"&lt;object at 0x7fd7bc6c4150&gt;", b"&lt;object at 0x0&gt;"),
     (b"object&nbsp;at&nbsp;0x7fd7bc6c4150&amp;", b"object&nbsp;at&nbsp;0x0&amp;"),
     (b"'None', handle 7fd7bd0852e0&gt;", b"'None', handle 0&gt;"), (b"look at 0x10 and 0xffffffff", b"look at 0x10 and 0xffffffff")],
)  # fmt: skip
def test_memory_addresses_are_taken_out(raw: bytes, settled: bytes) -> None:
    assert pydoc_server.settle(raw) == settled


def test_long_signatures_of_later_pythons_stand_on_one_line() -> None:
    raw = b"<dt><a><strong>dumps</strong></a>(\n    obj,\n    *,\n    indent='  ',\n    **kw\n) -> str</dt><dd>f(\n    x\n)"
    line = b"<dt><a><strong>dumps</strong></a>(obj, *, indent='  ', **kw) -> str</dt><dd>f(\n    x\n)"
    assert pydoc_server.settle(raw) == line == pydoc_server.settle(line)


def test_folders_of_the_person_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr(sys, "base_prefix", "/home/somebody/pythons/3.11")
    monkeypatch.setattr(sys, "prefix", "/usr")
    raw = b"/home/somebody/pythons/3.11/lib/x.py, '/home/somebody/pyth..., /usr/bin/env, /home/somebodyelse"
    assert pydoc_server.settle(raw) == b"/python/lib/x.py, '~/pyth..., /usr/bin/env, /home/somebodyelse"


@pytest.mark.slow
def test_whole_library_twice_the_same(tmp_path: Path) -> None:
    counts = run(tmp_path / "a", modules="all")
    run(tmp_path / "b", modules="all")
    assert counts["pages"] > 150 and counts["bytes"] > 5_000_000
    assert (tmp_path / "a" / "pages-00000.jsonl").read_bytes() == (tmp_path / "b" / "pages-00000.jsonl").read_bytes()
