"""Rows of tables (.csv, .tsv, .parquet), of tagged words (CoNLL) and of plain text, with lines and bytes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from luyen.core.errors import DamagedFile, DataError
from luyen.data.source import (
    RawRow,
    RowSource,
    bad_characters,
    clean_line,
    first_repeated,
    open_source,
    physical_lines,
    shown,
    too_long,
)

TextUnit = Literal["file", "paragraph", "line"]
PIECE_BYTES = 8 << 20
"""A longer text file becomes several documents, cut at line ends."""


class _CountedLines:
    """Lines for the csv module, which remembers the ones that the current row took."""

    def __init__(self, source: RowSource) -> None:
        self.source = source
        self.lines = physical_lines(source)
        self.taken: list[bytes] = []
        self.first = self.number = 0
        self.problem: str | None = None

    def start_row(self) -> None:
        self.taken, self.problem, self.first = [], None, self.number + 1

    def __iter__(self) -> Iterator[str]:
        for number, line, rest in self.lines:
            self.number = number
            if rest is not None:
                self.problem = f"{too_long(self.source)}; only its first {self.source.max_row_bytes:,} bytes are kept"
                for _ in rest:  # kept only up to the limit: the row is over it, whatever follows
                    pass
            self.taken.append(line)
            text, problem = clean_line(line, self.source)
            self.problem = self.problem or problem
            yield text + "\n"


def table_rows(source: RowSource, delimiter: str, *, header: bool) -> Iterator[RawRow]:
    """Rows of a .csv (quotes as in RFC 4180) or .tsv (no quoting) file as dicts of strings.

    With `header` the first row names the columns and is not counted; without, they are named by their place, "1", "2", ..., as is a column
    whose name is empty. A row with another number of fields than the header is bad, and so is a blank line. Raises DataError for a header
    that is not readable, is blank or names a column twice.
    """
    lines = _CountedLines(source)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    before = csv.field_size_limit(source.max_row_bytes)
    try:
        reader = csv.reader(iter(lines), delimiter=delimiter, quoting=quoting, strict=True)
        names: Sequence[str] = ()
        while True:
            lines.start_row()
            problem, fields = None, []
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = f"not a table row: {error}"
            if header and not names:
                names = _header(source, fields, lines.problem or problem)
                continue
            names = names or [str(index + 1) for index in range(len(fields))]
            yield _table_row(lines, names, fields, lines.problem or problem)
    finally:
        csv.field_size_limit(before)


def _header(source: RowSource, fields: Sequence[str], problem: str | None) -> list[str]:
    names = [name.strip() for name in fields]
    if problem is None and not any(names):
        problem = "the header is blank"
    names = [name or str(place) for place, name in enumerate(names, 1)]
    if problem is None and (twice := first_repeated(names)) is not None:
        problem = f"the column {shown(twice)} stands twice"
    if problem:
        fix = "Mend the first row, which names the columns; if it is data: read.columns.prompt=1 read.columns.completion=2."
        raise DataError(f"{source.path}: the columns have no clear names", found=problem, fix=fix)
    return names


def _table_row(lines: _CountedLines, names: Sequence[str], fields: list[str], problem: str | None) -> RawRow:
    if problem is None and not fields:
        problem = "a blank line"
    if problem is None and len(fields) != len(names):
        problem = f"{len(fields)} fields where the header has {len(names)}"
    return RawRow(lines.first, dict(zip(names, fields, strict=False)), problem, tuple(lines.taken))


def parquet_rows(path: Path) -> Iterator[RawRow]:
    """Rows of a parquet file, plain or compressed as a whole; `line` is the row's number and its bytes are its JSON."""
    try:
        with open_source(path) as source:
            plain = path.suffix.lower() == ".parquet"
            table = pyarrow.parquet.ParquetFile(str(path) if plain else io.BytesIO(source.stream.read()))
            number = 0
            with table:
                for batch in table.iter_batches(batch_size=1024):
                    for value in batch.to_pylist():
                        number += 1
                        yield RawRow(number, value, bad_characters(value), _Json(value))
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedFile(path, f"is not a whole parquet file ({error})") from error


@dataclass(frozen=True)
class _Json:
    """The JSON of a row, made only when it is asked for: few rows are rejected."""

    value: Any

    def __iter__(self) -> Iterator[bytes]:
        yield _as_json(self.value)


def _as_json(value: Any) -> bytes:
    """JSON of a value of a table, where a missing float may be NaN (as pandas writes it)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return text.encode("utf-8", "surrogatepass")


def conll_rows(source: RowSource) -> Iterator[RawRow]:
    """Sentences of a CoNLL file as {"tokens", "tags"}: one word a line, blank lines between sentences.

    The word is the first column and the tag the last (CoNLL-2003), or columns 2 and 4 (FORM, UPOS) when there are the ten of CoNLL-U, whose
    comments, multi-word ranges (1-2) and empty nodes (1.1) are not words. -DOCSTART- lines are skipped.
    """
    lines: list[tuple[int, bytes]] = []
    problem: tuple[int, str] | None = None
    for number, line, rest in physical_lines(source):
        text, wrong = clean_line(line, source)
        if rest is not None:
            yield RawRow(number, problem=too_long(source), raw=chain([line], rest), streamed=True)
            continue
        if wrong is None and not text.strip():
            if lines and (row := _sentence(lines, problem)):
                yield row
            lines, problem = [], None
            continue
        lines.append((number, line))
        problem = problem or ((number, wrong) if wrong else None)
    if lines and (row := _sentence(lines, problem)):
        yield row


def _sentence(lines: list[tuple[int, bytes]], problem: tuple[int, str] | None) -> RawRow | None:
    """The row of a sentence's lines; None when there is no word among them, only comments."""
    raw = tuple(line for _, line in lines)
    if problem:
        return RawRow(problem[0], problem=problem[1], raw=raw)
    rows = []
    for number, line in lines:
        text = line.decode("utf-8-sig").rstrip("\r\n")
        if text.startswith(("# ", "-DOCSTART-")) and "\t" not in text:
            continue
        rows.append((number, text.split("\t") if "\t" in text else text.split()))
    if not rows:
        return None
    width = len(rows[0][1])
    for number, columns in rows:
        if len(columns) < 2 or len(columns) != width:
            return RawRow(number, problem=f"{len(columns)} columns where the sentence's first word has {max(width, 2)}", raw=raw)
    if width == 10:
        words = [(columns[1], columns[3]) for _, columns in rows if columns[0].isdigit()]
    else:
        words = [(columns[0], columns[-1]) for _, columns in rows]
    return RawRow(lines[0][0], {"tokens": [word for word, _ in words], "tags": [tag for _, tag in words]}, None, raw)


def text_rows(source: RowSource, unit: TextUnit) -> Iterator[RawRow]:
    """Plain text as {"text"}: the whole file (in pieces of about 8 MiB cut at line ends), each paragraph, or each line.

    Blank lines only separate; a line that is not UTF-8, holds a NUL byte or is over the limit is a bad row and the text around it stays.
    """
    pending: list[bytes] = []
    first, size = 1, 0
    for number, line, rest in physical_lines(source):
        if rest is not None:
            yield RawRow(number, problem=too_long(source), raw=chain([line], rest), streamed=True)
            continue
        text, problem = clean_line(line, source)
        if problem:
            yield RawRow(number, problem=problem, raw=(line,))
            continue
        if not pending:
            first = number
        pending.append(text.encode() + b"\n")
        size += len(line)
        if unit == "line" or (unit == "paragraph" and not text.strip()) or size >= PIECE_BYTES:
            yield from _text_row(first, pending, unit)
            pending, size = [], 0
    yield from _text_row(first, pending, unit)


def _text_row(line: int, pending: list[bytes], unit: TextUnit) -> Iterator[RawRow]:
    raw = b"".join(pending)
    if raw.strip():
        text = raw.decode("utf-8")
        yield RawRow(line, {"text": text if unit == "file" else text.strip("\r\n")}, None, (raw,))
