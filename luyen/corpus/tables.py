"""Rows of parquet and csv files as lines of JSON, so that every column is read as JSON lines are: `text`, and `id`, `url`, `title`."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from luyen.core.errors import DamagedFile
from luyen.core.files import COMPRESSED, open_bytes

BATCH_ROWS = 64
FIELD_CHARACTERS = 1 << 27
"""Longest field of a csv file; a longer one is a quotation mark that is never closed."""


def rows(path: Path, *, header: bool = True) -> Iterator[bytes]:
    """One JSON object a row, in constant memory for csv and by row group for parquet. A csv or tsv file begins with its column names;
    without a header they are the places "1", "2", ...

    Lists and cells without a value (null, NaN) are left out; a csv row with more cells than columns is a JSON array, which no reader
    takes for a document. Raises DamagedFile when the file cannot be read to its end.
    """
    for row in _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path, header):
        kept = {name: value for name, value in row.items() if not _is_left_out(value)}
        yield json.dumps([*row.values()] if None in row else kept, default=str).encode()


def _is_left_out(value: object) -> bool:
    return value is None or isinstance(value, list) or (isinstance(value, float) and not math.isfinite(value))


def _parquet(path: Path) -> Iterator[Mapping[str | None, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedFile(path, f"is not a whole parquet file ({error})") from error


def _csv(path: Path, header: bool) -> Iterator[Mapping[str | None, Any]]:
    plain = Path(path.stem) if path.suffix in COMPRESSED else path
    delimiter = "\t" if plain.suffix.lower() == ".tsv" else ","
    before = csv.field_size_limit(FIELD_CHARACTERS)
    try:
        with open_bytes(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", "replace", newline="") as text:
            if header:
                yield from csv.DictReader(text, delimiter=delimiter)
            else:
                for cells in csv.reader(text, delimiter=delimiter):
                    yield {str(place): cell for place, cell in enumerate(cells, 1)}
    except csv.Error as error:
        raise DamagedFile(path, f"is not a {delimiter!r}-separated table ({error})") from error
    finally:
        csv.field_size_limit(before)
