"""Reading and writing line files, plain or compressed (.gz .bz2 .xz .zst), in constant memory."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from luyen.core.errors import DamagedFile
from luyen.core.storage import replacing, storage_errors

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed content of a file as a buffered byte stream. A broken archive raises DamagedFile."""
    path = Path(path)
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(open(path, "rb"))
            match path.suffix.lower():
                case ".gz":
                    yield cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
                case ".bz2":
                    yield stack.enter_context(bz2.BZ2File(raw))
                case ".xz":
                    yield stack.enter_context(lzma.LZMAFile(raw))
                case ".zst":
                    import pyarrow

                    stream = stack.enter_context(pyarrow.CompressedInputStream(raw, "zstd"))
                    yield cast(IO[bytes], io.BufferedReader(cast(Any, stream), 1 << 16))
                case _:
                    yield raw
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DamagedFile(path, f"is not a whole archive ({error})") from error
    except OSError as error:
        if path.suffix.lower() in COMPRESSED and error.errno is None:
            raise DamagedFile(path, f"is not a whole archive ({error})") from error
        raise


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write lines (without newline) to a file, compressed by its suffix, the same bytes every time. Returns their number."""
    path = Path(path)
    count = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors(path))
        raw = stack.enter_context(open(path, "wb"))
        out: Any
        match path.suffix.lower():
            case ".gz":
                out = stack.enter_context(gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0))
            case ".bz2":
                out = stack.enter_context(bz2.BZ2File(raw, "wb"))
            case ".xz":
                out = stack.enter_context(lzma.LZMAFile(raw, "wb"))
            case ".zst":
                import pyarrow

                out = stack.enter_context(pyarrow.CompressedOutputStream(raw, "zstd"))
            case _:
                out = raw
        for line in lines:
            out.write(line + b"\n")
            count += 1
    return count


def write_jsonl(path: Path, rows: Iterable[object]) -> int:
    """Write rows as JSON lines with sorted keys (see write_lines)."""
    return write_lines(
        path, (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass") for row in rows)
    )


def replace_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """`write_jsonl` by `storage.replacing`: a reader sees the old file or the new one. Returns the number of rows."""
    with replacing(path) as temporary:
        return write_jsonl(temporary, rows)


def read_jsonl(path: Path) -> Iterator[Any]:
    """Rows of a JSON-lines file that Luyện wrote; DamagedFile names the line that does not parse."""
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DamagedFile(path, f"line {number} is not JSON ({error})") from error


def delimiter_of(header: str) -> str:
    """The delimiter of a .csv file by its header: a comma, or a semicolon or tab when there is no comma."""
    if "," in header:
        return ","
    return next((mark for mark in (";", "\t") if mark in header), ",")
