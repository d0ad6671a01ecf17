"""Rows that could not be used: counted by reason, the first ones remembered, all of them kept byte for byte."""

from __future__ import annotations

import base64
import codecs
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from luyen.core.errors import DataError
from luyen.core.manifest import storage_errors
from luyen.data.source import RawRow

REMEMBERED = 20
_PIECE = 3 << 18  # a multiple of 3, so that base64 pieces join


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
    """Collects bad rows; writes `path`, a .jsonl of file, line, reason, nearest form and text (or base64 when it is not UTF-8)."""

    def __init__(self, path: Path | None, *, strict: bool) -> None:
        self.path, self.strict = path, strict
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self.first: list[Problem] = []
        self._out: IO[bytes] | None = None
        if path is not None:
            path.unlink(missing_ok=True)

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
        assert self.path is not None
        if self._out is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._out = open(self.path, "wb")  # noqa: SIM115 (closed by `close`)
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

    def close(self) -> None:
        """End the file."""
        if self._out is not None:
            self._out.close()


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
