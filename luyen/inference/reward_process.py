"""A program of the user's that scores answers: a process of its own, spoken to by one JSON line for each answer.

To its standard input goes a row {"id", "prompt": [{"role", "content"}], "answer", "stopped", "reference"}; from its standard output comes a
line with a number, or {"score": number}. `reference` is the answer that the prompt's data has, "" where it has none. In a Python file that
is a function and a call (tasks/scoring.py):

    from luyen.tasks.scoring import serve

    def score(row):
        return -len(row["answer"])

    serve(score)

The process begins with the first answer and lives as long as the reward. It gets few of the environment's variables, and no keys.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from luyen.core import consent, interrupt
from luyen.core.errors import DataError
from luyen.tasks.reward import Written

LONGEST_LINE = 65_536
"""Bytes of a reply; more is no score."""
TOLD = 400
"""Characters of what the program said on its standard error that an error repeats."""
PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
LOOK_SECONDS = 0.2
"""How often a wait looks whether somebody asked to stop."""


def row_of(item: Written) -> dict[str, Any]:
    """An answer as programs and endpoints get it."""
    return {
        "id": item.id, "prompt": [{"role": turn.role, "content": turn.content} for turn in item.prompt], "answer": item.answer,
        "stopped": item.stopped, "reference": item.example.answer if item.example is not None else "",
    }  # fmt: skip


def number_in(value: Any) -> float | None:
    """The score that a reply is, or has as `score`; None where there is none. NaN is a number here: who asked names the answer."""
    value = value.get("score") if isinstance(value, dict) else value
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


class ProgramReward:
    """What a program says of each answer."""

    def __init__(self, path: Path, seconds: float) -> None:
        """`seconds` is the longest wait for one line. UserError where nobody allowed the program."""
        consent.check_program(path)
        self.path, self.seconds = path, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""

    def score(self, written: Sequence[Written]) -> list[float]:
        """A number for each answer, in order. DataError names the answer that got none; the process is ended then."""
        try:
            return [self._one(item) for item in written]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process, with all that it started."""
        if self._process is not None:
            self._ends()
            self._process = None

    def _one(self, item: Written) -> float:
        process = self._process or self._started()
        line = json.dumps(row_of(item), ensure_ascii=True).encode() + b"\n"
        until = time.monotonic() + self.seconds
        self._write(process, line, until, item)
        reply = self._line(process, until, item)
        try:
            value = number_in(json.loads(reply))
        except ValueError:
            value = None
        if value is None:
            raise self._error(item, f"the line {reply[:80].decode(errors='replace')!r}")
        return value

    def _started(self) -> subprocess.Popen[bytes]:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._read = b""
        values = {name: os.environ[name] for name in PASSED if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, str(self.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
            env={**values, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )  # fmt: skip
        self._ends = weakref.finalize(self, _end, self._process, self._said)
        os.set_blocking(self._process.stdin.fileno(), False)  # type: ignore[union-attr]
        return self._process

    def _write(self, process: subprocess.Popen[bytes], line: bytes, until: float, item: Written) -> None:
        assert process.stdin is not None
        while line:
            self._await([], [process.stdin], until, item)
            try:
                line = line[os.write(process.stdin.fileno(), line) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._error(item, "a program that ended") from None

    def _line(self, process: subprocess.Popen[bytes], until: float, item: Written) -> bytes:
        assert process.stdout is not None
        while b"\n" not in self._read:
            self._await([process.stdout], [], until, item)
            piece = os.read(process.stdout.fileno(), LONGEST_LINE)
            self._read += piece
            if not piece:
                raise self._error(item, "a program that ended")
            if len(self._read) > LONGEST_LINE:
                raise self._error(item, f"more than {LONGEST_LINE:,} bytes")
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _await(self, reads: list[Any], writes: list[Any], until: float, item: Written) -> None:
        """Until one of them is ready. Raises DataError when time is up, Interrupted when somebody asked to stop."""
        while True:
            interrupt.check()
            left = until - time.monotonic()
            if left <= 0:
                raise self._error(item, f"none within {self.seconds:g} s")
            if any(select.select(reads, writes, [], min(left, LOOK_SECONDS))):
                return

    def _error(self, item: Written, found: str) -> DataError:
        """With the end of what the program said."""
        with contextlib.suppress(OSError, ValueError):
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip()[-TOLD:]
            found = f"{found}; it said: {said}" if said else found
        return DataError(f"the program {self.path} gave no score of an answer to {item.id}", found=found,
                         expected="a line with a number for each line", fix="No update was made from these answers.")  # fmt: skip


def _end(process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    """End a process and its group; one that is gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout, said):
        with contextlib.suppress(OSError):
            stream.close()  # type: ignore[union-attr]
    process.wait()
