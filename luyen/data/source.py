"""Bytes of a data file: decompressed, recoded to UTF-8 when it is UTF-16, cut into physical lines in bounded memory."""

from __future__ import annotations

import codecs
import contextlib
import io
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import pyarrow

from luyen.core.errors import DamagedFile
from luyen.core.files import open_bytes

MAX_ROW_BYTES = 64 << 20
"""A longer row is rejected, piece by piece, without ever being held in memory."""
LONG_ROW_BYTES = 1_000_000
"""A longer row is accepted and noted."""
QUOTED = 80
"""Characters of a value in a reason."""
BOM = codecs.BOM_UTF8
_CHUNK = 1 << 20
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class RowSource:
    """An open data file. `stream` is UTF-8; `encoding` is what the file itself holds; `notes` counts what was put right."""

    def __init__(self, path: Path, stream: IO[bytes], encoding: str, max_row_bytes: int) -> None:
        self.path, self.stream, self.encoding, self.max_row_bytes = path, stream, encoding, max_row_bytes
        self.notes: Counter[str] = Counter()

    def peek(self) -> str:
        """The first characters of the file, up to about 64 thousand, without reading on."""
        return bytes(cast(Any, self.stream).peek(1 << 16)[: 1 << 16]).decode("utf-8", "replace")


@dataclass(frozen=True)
class RawRow:
    """One row as it was found: a value, or the problem that makes it unreadable."""

    line: int
    """1-based line of the file where the row starts."""
    value: Any = None
    problem: str | None = None
    raw: Iterable[bytes] = field(default=(), repr=False)
    """The row's bytes (recoded to UTF-8)."""
    streamed: bool = False
    """The row is too long to hold: `raw` can be read once, and only before the next row is asked for."""


@contextlib.contextmanager
def open_source(path: Path, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[RowSource]:
    """Open a plain or compressed file. Raises DamagedFile for an archive that is cut or has flipped bits."""
    try:
        with open_bytes(path) as raw:
            stream = cast(IO[bytes], io.BufferedReader(cast(Any, raw), _CHUNK)) if not hasattr(raw, "peek") else raw
            start = cast(Any, stream).peek(2)[:2]
            encoding = _UTF16.get(bytes(start), "utf-8")
            if encoding != "utf-8":
                stream = cast(IO[bytes], io.BufferedReader(_Recoded(stream, encoding), _CHUNK))
            yield RowSource(Path(path), stream, encoding, max_row_bytes)
    except (zlib.error, lzma.LZMAError, EOFError, pyarrow.ArrowException) as error:
        raise DamagedFile(path, f"cannot be decompressed ({error})") from error
    except OSError as error:
        if error.errno is None:
            raise DamagedFile(path, f"cannot be decompressed ({error})") from error
        raise


class _Recoded(io.RawIOBase):
    """A UTF-16 stream read as UTF-8. Lone surrogates and a half character at the end become bytes that are not UTF-8."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        super().__init__()
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self.ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with UTF-8 as far as one chunk of the file gives it; 0 at the end (see io.RawIOBase)."""
        while not self.ready:
            chunk = self.stream.read(_CHUNK)
            try:
                self.ready = self.decoder.decode(chunk, final=not chunk).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                self.decoder.reset()
                self.ready = b"\xff"
            if not chunk:
                break
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size


def physical_lines(source: RowSource) -> Iterator[tuple[int, bytes, Iterator[bytes] | None]]:
    """(number, line with its end, rest): `rest` continues a line longer than the limit and is drained before the next line."""
    number = 0
    while line := source.stream.readline(source.max_row_bytes):
        number += 1
        if len(line) < source.max_row_bytes or line.endswith(b"\n"):
            yield number, line, None
            continue
        rest = _rest_of_line(source.stream)
        yield number, line, rest
        for _ in rest:
            pass


def _rest_of_line(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.readline(_CHUNK):
        yield chunk
        if chunk.endswith(b"\n"):
            return


def rest_of_stream(stream: IO[bytes]) -> Iterator[bytes]:
    """Everything that is left, in pieces."""
    while chunk := stream.read(_CHUNK):
        yield chunk


def too_long(source: RowSource) -> str:
    """The reason for a row over the limit."""
    return f"longer than the limit of {source.max_row_bytes:,} bytes"


def shown(value: object) -> str:
    """A value as a reason quotes it: at most 80 characters of it."""
    text = repr(value[:QUOTED] if isinstance(value, str) else value)
    return f"{text[:QUOTED]}..." if len(text) > QUOTED else text


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that stands there for the second time, None when all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def clean_line(line: bytes, source: RowSource) -> tuple[str, str | None]:
    """The text of a line without its end and byte order mark, and what is wrong with it, if anything.

    A byte order mark and CRLF line ends are taken off and noted; a NUL byte or bytes that are not UTF-8 are a problem.
    """
    if len(line) > LONG_ROW_BYTES:
        source.notes[f"rows over {LONG_ROW_BYTES:,} bytes"] += 1
    if line.endswith(b"\r\n"):
        source.notes["CRLF line ends"] += 1
    content = line.rstrip(b"\r\n")
    if content.startswith(BOM):
        source.notes["byte order marks removed"] += 1
        content = content[len(BOM) :]
    if b"\0" in content:
        return "", "a NUL byte (UTF-16 text in a UTF-8 file, or not text)"
    try:
        return content.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return "", f"not UTF-8: byte 0x{content[error.start]:02x} at byte {error.start + 1} of the line"


_SURROGATE = re.compile("[\ud800-\udfff]")


def bad_characters(value: Any) -> str | None:
    """The first lone surrogate or NUL in any string inside a JSON value, as a reason."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if "\0" in item:
                return "a NUL character in a text"
            if found := _SURROGATE.search(item):
                code = ord(found.group())
                if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is not UTF-8
                    return f"not UTF-8: byte 0x{code - 0xDC00:02x}, or a lone surrogate"
                return f"a lone surrogate U+{code:04X}, which no encoding can write"
        elif isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            stack += item
    return None
