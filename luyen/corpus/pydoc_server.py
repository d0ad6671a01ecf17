"""The documentation server that every Python carries (`pydoc.browse`), as a child process on the loopback address.

The child gets a fixed, nearly empty environment and an empty working folder, and sees neither this project nor installed
packages: the pages show the standard library and nothing of the person's (os.environ is on a page). It ends when its standard
input closes, thus also when this process is killed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from luyen.core import interrupt
from luyen.core.errors import FetchError

HOST = "pydoc.localhost"
"""The stable name in recorded addresses, in place of the port that the server happens to get."""

# pydoc asks for commands with input(); here that waits for the end of standard input and then leaves at once. A plain return
# may hang, because pydoc imports each documented module anew, `threading` and its list of threads among them.
_LAUNCHER = (
    "import os, sys, pydoc\n"
    "pydoc.input = lambda prompt: sys.stdin.read() or os._exit(0)\n"
    "pydoc.browse(0, open_browser=False, hostname='127.0.0.1')\n"
)
_READY = re.compile(rb"Server ready at http://127\.0\.0\.1:(\d+)/")
_ADDRESS = re.compile(rb"((?:at(?: |&nbsp;)0x)|(?:handle(?: |&nbsp;)))[0-9a-fA-F]{6,16}")
# Python 3.13 and later print a long signature with one argument a line.
_LONG_SIGNATURE = re.compile(rb"(</(?:a|strong)>\()\n((?: {4}[^\n]*\n){1,200})\)")
START_SECONDS = 60.0

# Not shown: opens a browser, prints a poem, starts windows, or is another package's own test suite.
MISBEHAVING = frozenset({"antigravity", "this", "idlelib", "turtledemo", "test"})


def standard_library() -> tuple[str, ...]:
    """Top-level public modules of the standard library, sorted; some may exist on other systems only."""
    return tuple(sorted(name for name in sys.stdlib_module_names if not name.startswith("_") and name not in MISBEHAVING))


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """Run the server for the length of the block; yields its port. Raises FetchError if it does not start."""
    with tempfile.TemporaryDirectory(prefix="luyen-pydoc-", ignore_cleanup_errors=True) as empty:
        work, said = Path(empty, "work"), Path(empty, "said")
        work.mkdir()
        environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONUTF8": "1"}
        if "SYSTEMROOT" in os.environ:  # Windows cannot open a socket without it
            environment["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
        command = [sys.executable, "-u", "-P", "-s", "-S", "-B", "-W", "ignore", "-c", _LAUNCHER]
        with open(said, "wb") as output:  # a file, because a pipe that nobody reads would stop the server
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=work, env=environment, start_new_session=True
            )
        try:
            yield _wait_for_port(child, said)
        finally:
            _stop(child)


def _wait_for_port(child: subprocess.Popen[bytes], said: Path) -> int:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        ready = _READY.search(said.read_bytes())
        if ready:
            return int(ready.group(1))
        if child.poll() is not None:
            break
        interrupt.check()
        time.sleep(0.02)
    said_text = said.read_bytes()[-300:].decode("utf-8", "replace").strip()
    raise FetchError(
        "Python's documentation server did not start", found=said_text or f"exit code {child.poll()}",
        fix=f"Try: {sys.executable} -m pydoc -n 127.0.0.1 -p 0",
    )  # fmt: skip


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()
    try:
        child.wait(timeout=2.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def address(module: str) -> str:
    """The recorded address of a module's page."""
    return f"http://{HOST}/{module}.html"


def module_of(url: str) -> str | None:
    """The module that a recorded address is about, or None for the server's other pages."""
    prefix, suffix = f"http://{HOST}/", ".html"
    if not (url.startswith(prefix) and url.endswith(suffix)):
        return None
    name = url[len(prefix) : -len(suffix)]
    return name if all(part.isidentifier() for part in name.split(".")) else None


def is_error(body: bytes) -> bool:
    """Whether the server says that it cannot show a module; it says so with status 200."""
    return b"<title>Pydoc: Error" in body[:2000]


def settle(body: bytes) -> bytes:
    """The page without what differs between two processes or machines: memory addresses, the folder that Python is installed
    in, the person's home and the kernel's version. Signatures stand on one line, whatever the version of Python."""
    body = _LONG_SIGNATURE.sub(lambda match: match[1] + match[2][4:-1].replace(b"\n    ", b" ") + b")", body)
    body = _ADDRESS.sub(rb"\g<1>0", body)
    for folder in (sysconfig.get_path("stdlib"), sys.base_prefix, sys.prefix):
        if len(Path(folder).parts) > 3:  # /usr and /usr/local are everybody's, and stand in many texts
            body = body.replace(os.fsencode(folder), b"/python")
    home = os.fsencode(os.path.expanduser("~"))
    if len(home) > 1:  # not / and not an unknown home
        body = body.replace(home + b"/", b"~/")
    return body.replace(platform.platform(terse=False).encode(), sys.platform.encode())
