"""The command in a pseudo-terminal, as a person has it: typed lines, Ctrl-C by the terminal, and what appears."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

# The terminal becomes the controlling one, so that the byte of Ctrl-C is a signal.
START = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.executable, [sys.executable, '-m', 'luyen.cli.main', *sys.argv[1:]])"
)
CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    """`with Terminal("chat", "model") as terminal: terminal.expect("you> "); terminal.type(b"Hi\\n")`."""

    def __init__(self, *words: str, cwd: Path) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *words], cwd=cwd, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""
        self.taken = 0

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def expect(self, text: str, seconds: float = 100) -> str:
        """Wait until `text` appears after what was expected before; returns what came up to its end."""
        end = time.monotonic() + seconds
        while text not in self.seen[self.taken :]:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen[self.taken :]!r}"
            self._read()
        start, self.taken = self.taken, self.seen.index(text, self.taken) + len(text)
        return self.seen[start : self.taken]

    def _read(self) -> None:
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the other side is closed
            data = b""
        assert data, f"it ended after {self.seen[self.taken :]!r}"
        self.seen += data.decode(errors="replace").replace("\r\n", "\n")

    def wait(self) -> int:
        return self.process.wait(timeout=60)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
