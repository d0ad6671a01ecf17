"""Rows that could not be used: counted by reason, the first ones remembered, all of them kept byte for byte."""

from __future__ import annotations

import base64
import codecs
import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from luyen.core import lock
from luyen.core.errors import DataError
from luyen.core.storage import storage_errors, temporary_file
from luyen.data.discover import Found, is_data
from luyen.data.source import RawRow

REMEMBERED = 20
_PIECE = 3 << 18  # a multiple of 3, so that base64 pieces join
_JSON_TEXT = rb'"(?:[^"\\]|\\.)*+"'
_FACTS = re.compile(  # how a line of ours begins; its end may be a gigabyte away
    rb'\{"file": %b, "line": \d+, "reason": %b(?:, "nearest": %b)?, "(?:text|base64)": "' % ((_JSON_TEXT,) * 3)
)
_FACTS_BYTES = 1 << 16


@dataclass(frozen=True)
class Problem:
    """One bad row."""

    file: str
    line: int
    reason: str
    nearest: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" + (f"; expected {self.nearest}" if self.nearest else "")


class Rejects:
    """Collects bad rows; writes `path`, a .jsonl of file, line, reason, nearest form and text (or base64 when it is not UTF-8).

    Use it in a `with`: the rows go to a temporary file, which takes the place of `path` when the block ends well and disappears when it
    does not. Without bad rows there is no file afterwards, also none of an earlier reading.
    """

    def __init__(self, path: Path | None, *, strict: bool) -> None:
        self.path, self.strict = path, strict
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self.first: list[Problem] = []
        self._out: IO[bytes] | None = None

    def __enter__(self) -> Rejects:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close() if kind is None else self.discard()

    def add(self, problem: Problem, row: RawRow, encoding: str = "utf-8") -> None:
        """Count and keep a bad row. Raises DataError at once when strict."""
        if self.strict:
            raise DataError(f"{problem.file}:{problem.line}: {problem.reason}", expected=problem.nearest or None,
                            fix="Mend the row, or leave out read.strict to keep it in rejected.jsonl and go on.")  # fmt: skip
        self.count += 1
        self.reasons[problem.reason] += 1
        if len(self.first) < REMEMBERED:
            self.first.append(problem)
        if self.path is not None:
            with storage_errors(self.path):
                self._write(problem, _original(row.raw, encoding), streamed=row.streamed)

    def _write(self, problem: Problem, pieces: Iterator[bytes], *, streamed: bool) -> None:
        if self._out is None:
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            with lock.exclusive(self._temporary.parent):  # as in `write_atomic`
                self._out = open(self._temporary, "wb")  # noqa: SIM115 (closed by `discard`)
                lock.own(self._out.fileno())
        facts = {"file": problem.file, "line": problem.line, "reason": problem.reason}
        facts |= {"nearest": problem.nearest} if problem.nearest else {}
        if not streamed:
            raw = b"".join(pieces)
            try:
                content = {"text": raw.decode("utf-8")}
            except UnicodeDecodeError:
                content = {"base64": base64.b64encode(raw).decode()}
            self._out.write(json.dumps(facts | content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            return
        self._out.write(json.dumps(facts, ensure_ascii=False).encode()[:-1] + b', "base64": "')
        rest = b""
        for piece in pieces:
            rest += piece
            whole = len(rest) - len(rest) % 3 if len(rest) >= _PIECE else 0
            self._out.write(base64.b64encode(rest[:whole]))
            rest = rest[whole:]
        self._out.write(base64.b64encode(rest) + b'"}\n')

    @property
    def _temporary(self) -> Path:
        """Named and owned as `write_atomic` does it, so that `clean_up` removes what a kill left."""
        assert self.path is not None
        return temporary_file(self.path)

    def close(self) -> None:
        """Put the rows in the place of `path`; without any, remove what an earlier reading kept there. Raises StorageError."""
        if self.path is None:
            return
        with storage_errors(self.path):
            if self._out is None:
                if _is_ours(self.path):
                    self.path.unlink(missing_ok=True)
                return
            try:
                self._out.flush()
                os.fsync(self._out.fileno())
                os.replace(self._temporary, self.path)
            finally:
                self.discard()

    def discard(self) -> None:
        """Remove the temporary file; what an earlier reading kept stays."""
        if self._out is not None:
            lock.release(self._out.fileno())
            with contextlib.suppress(OSError):  # what could not be written is not wanted any more
                self._out.close()
            self._temporary.unlink(missing_ok=True)
            self._out = None


def check_place(path: Path, found: Found) -> None:
    """Refuse a file for bad rows that would cost the user something: DataError, before anything is written.

    That is a file which is read as data, one in the data folder which the next reading would take for data, anything that exists and
    that no reading of ours wrote (an empty file may be replaced), and a place below something that is no folder.
    """
    fix = "Name another file for rejected, such as rejected.jsonl."
    if any(_same(path, file) for file in found.files):
        raise DataError(f"the rejected rows cannot go to {path}, which is read as data", fix=fix)
    places = {path.parent.resolve() / path.name, path.resolve()}
    if not found.single and any(is_data(place, found.root.resolve()) for place in places):
        raise DataError(f"the rejected rows cannot go to {path}, which lies in the data folder and would be read as data", fix=fix)
    above = next(folder for folder in (*path.absolute().parents, Path(path.anchor or ".")) if os.path.lexists(folder))
    if not above.is_dir():
        raise DataError(f"the rejected rows cannot go to {path}: {above} is not a folder", fix=fix)
    if path.is_symlink() or (path.exists() and not _is_ours(path)):
        fix = f"Name another file for rejected, or remove {path} yourself."
        raise DataError(f"the rejected rows cannot go to {path}, which is not a file of rejected rows and would be lost", fix=fix)


def _same(path: Path, file: Path) -> bool:
    if path.exists() and file.exists():
        return path.samefile(file)
    return path.resolve() == file.resolve()


def _is_ours(path: Path) -> bool:
    """Whether `Rejects` wrote a file, by its first line; an empty file may be ours."""
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        start = stream.readline(_FACTS_BYTES)
    return not start or _FACTS.match(start) is not None


def _original(raw: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """The bytes as they stand in the file, which may be UTF-16."""
    if encoding == "utf-8":
        yield from raw
        return
    decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
    for piece in raw:
        try:
            yield decoder.decode(piece).encode(encoding, "surrogatepass")
        except UnicodeDecodeError:  # the half character at the end of a cut file
            yield piece


def rejected_rows(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Facts and exact bytes of every row that `Rejects` kept."""
    with open(path, "rb") as stream:
        for line in stream:
            row = json.loads(line)
            yield row, base64.b64decode(row["base64"]) if "base64" in row else row["text"].encode()
