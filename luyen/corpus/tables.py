"""Rows of parquet and csv files as lines of JSON, so that every column is read as JSON lines are: `text`, and `id`, `url`, `title`.

A csv file is UTF-8, or UTF-16 with a byte order mark. A row that is not UTF-8 keeps its bytes and says so; nothing is guessed or replaced.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from luyen.core.errors import DamagedFile
from luyen.core.files import COMPRESSED, delimiter_of, open_bytes

BATCH_ROWS = 64
FIELD_CHARACTERS = 1 << 27
"""Longest field of a csv file; a longer one is a quotation mark that is never closed."""


_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how "surrogateescape" keeps a byte that is not UTF-8


@dataclass(frozen=True)
class TableRow:
    """A row as a JSON object or, with a `problem`, the bytes that it has in the file."""

    data: bytes
    problem: str = ""


def rows(path: Path, *, header: bool = True) -> Iterator[TableRow]:
    """The rows of a table, in constant memory for csv and by row group for parquet. A csv or tsv file begins with its column names;
    without a header they are the places "1", "2", ...

    Lists and cells without a value (null, NaN) are left out; a csv row with more cells than columns is a JSON array, which no reader
    takes for a document. Raises DamagedFile when the file cannot be read to its end or its column names are not UTF-8.
    """
    if path.suffix.lower() == ".parquet":
        yield from (TableRow(_json(row)) for row in _parquet(path))
    else:
        yield from _csv(path, header)


def _json(row: Mapping[str | None, Any]) -> bytes:
    kept = {name: value for name, value in row.items() if not _is_left_out(value)}
    return json.dumps([*row.values()] if None in row else kept, default=str).encode()


def _is_left_out(value: object) -> bool:
    return value is None or isinstance(value, list) or (isinstance(value, float) and not math.isfinite(value))


def _parquet(path: Path) -> Iterator[Mapping[str | None, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedFile(path, f"is not a whole parquet file ({error})") from error


class _Lines:
    """Lines for the csv module, which remembers those of the current row."""

    def __init__(self, text: Iterable[str]) -> None:
        self.text = text
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self.text:
            self.taken.append(line)
            yield line

    def take(self) -> tuple[bytes, str]:
        """The bytes of the lines since the last call, and what is wrong with them, if anything."""
        text = "".join(self.taken)
        self.taken.clear()
        if text.isascii() or not (found := _NOT_UTF8.search(text)):
            return b"", ""
        place = len(text[: found.start()].encode()) + 1
        problem = f"not UTF-8: byte 0x{ord(found.group()) - 0xDC00:02x} at byte {place} of the row; save the file as UTF-8"
        return text.encode("utf-8", "surrogateescape"), problem


def _csv(path: Path, header: bool) -> Iterator[TableRow]:
    plain = Path(path.stem) if path.suffix in COMPRESSED else path
    encoding, delimiter = _encoding(path), "\t"
    before = csv.field_size_limit(FIELD_CHARACTERS)
    try:
        if plain.suffix.lower() != ".tsv":
            delimiter = delimiter_of(_first_line(path, encoding))
        with open_bytes(path) as stream, io.TextIOWrapper(stream, encoding, "surrogateescape", newline="") as text:
            lines = _Lines(text)
            for row in _named(path, lines, delimiter) if header else _by_place(lines, delimiter):
                raw, problem = lines.take()
                yield TableRow(raw, problem) if problem else TableRow(_json(row))
    except csv.Error as error:
        raise DamagedFile(path, f"is not a {delimiter!r}-separated table ({error})") from error
    except UnicodeError as error:
        raise DamagedFile(path, f"is not whole UTF-16 text ({error}); save the file as UTF-8") from error
    finally:
        csv.field_size_limit(before)


def _named(path: Path, lines: _Lines, delimiter: str) -> Iterator[Mapping[str | None, Any]]:
    table = csv.DictReader(lines, delimiter=delimiter)
    names, (_, problem) = table.fieldnames, lines.take()
    if names and problem:
        raise DamagedFile(path, f"its column names are {problem}")
    yield from table


def _by_place(lines: _Lines, delimiter: str) -> Iterator[Mapping[str | None, Any]]:
    for cells in csv.reader(lines, delimiter=delimiter):
        yield {str(place): cell for place, cell in enumerate(cells, 1)}


def _first_line(path: Path, encoding: str) -> str:
    with open_bytes(path) as stream, io.TextIOWrapper(stream, encoding, "surrogateescape") as text:
        return text.readline(1 << 16)


def _encoding(path: Path) -> str:
    with open_bytes(path) as stream:
        return "utf-16" if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
