"""What curation reads: a crawl's folder, or files of HTML, text, JSON lines or tables, one or a folder of them.

All but parquet may be compressed.

Everything becomes raw items (one page, file or line), read in constant memory and cut at a size limit. A file is checked as a whole
before its first item is handed out, so that a damaged one contributes nothing.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from luyen.core.errors import ConfigError, DamagedFile, DataError
from luyen.core.files import COMPRESSED, open_bytes
from luyen.core.manifest import MANIFEST, sha256_file
from luyen.core.storage import read_json
from luyen.corpus.tables import rows

Unit = Literal["file", "paragraph", "line"]
Kind = Literal["html", "text", "line", "page", "parquet", "csv"]
SUFFIXES: dict[str, Kind] = {
    ".html": "html", ".htm": "html", ".xhtml": "html", ".txt": "text", ".md": "text", ".rst": "text", ".jsonl": "line", ".ndjson": "line",
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv",
}  # fmt: skip
FUNNEL = "funnel.json"
"""The counts of a curation, which tell its folder from others."""
CHUNK_ITEMS = 256
CHUNK_BYTES = 16_000_000
_STEP = 1 << 20


@dataclass(frozen=True)
class Reading:
    """How files that are no pages of a crawl are read."""

    columns: tuple[tuple[str, str | int], ...] = ()
    """Our column names (text, id, url, title, meta) and the file's, where they differ; a number is a place in a table, from 1."""
    split: str = ""
    """Only files with this word in their path; empty: all."""
    unit: Unit = "file"
    """What a document of a text file is."""
    strict: bool = False
    """Stop at the first bad row."""

    @property
    def header(self) -> bool:
        """Whether a table begins with its column names."""
        return not any(isinstance(place, int) for _, place in self.columns)


@dataclass(frozen=True)
class Item:
    """One raw document: where it stands, its bytes (at most the limit), and its full size in bytes."""

    source: str
    line: int
    kind: Kind
    data: bytes
    size: int
    problem: str = ""
    """Why `data` is not what `kind` promises: the bytes of a row that is dropped as malformed."""

    @property
    def place(self) -> str:
        """File, and line where the file has one document a line."""
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class SourceFile:
    """One input file: its path, its name inside the source, and how it is read."""

    path: Path
    name: str
    kind: Kind


def list_files(source: Path, split: str = "") -> tuple[list[SourceFile], list[str]]:
    """The files to read, sorted by name, and the names of those that are ignored: of other kinds, or of a folder not of the split.

    Raises DataError when there is nothing to read, and for a split of a single file.
    """
    source = Path(source)
    if source.is_file():
        if split:
            fix = "Leave out read.split, or name the folder."
            raise DataError(f"read.split={split} picks files of a folder", found=f"the file {source}", fix=fix)
        kind = _kind(source)
        if kind is None:
            raise DataError(f"cannot read {source}", found=f"suffix {source.suffix!r}", expected=", ".join(SUFFIXES))
        return [SourceFile(source, source.name, kind)], []
    if not source.is_dir():
        raise DataError(f"no file or folder {source}", fix="Check the path.")
    listed = promised(source)
    pages = sorted({*source.glob("pages-*.jsonl"), *(source / name for name in listed if name.startswith("pages-"))})
    if pages:
        return [SourceFile(path, path.name, "page") for path in pages], []
    found, ignored = [], []
    splits = ("train-", "heldout-") if (source / FUNNEL).exists() else ("",)
    for path in sorted({*(path for path in source.rglob("*") if path.is_file()), *(source / name for name in listed)}):
        name = path.relative_to(source).as_posix()
        kind = _kind(path)
        if not any(part.startswith(".") for part in path.relative_to(source).parts):
            if kind is not None and path.name.startswith(splits):
                found.append(SourceFile(path, name, kind))
            elif path.name != MANIFEST:
                ignored.append(name)
    if split:
        ignored += [file.name for file in found if not _of_split(file.name, split)]
        found = [file for file in found if _of_split(file.name, split)]
        if not found:
            raise DataError(
                f"{source} has no files of the split {split!r}", found=", ".join(ignored[:5]), expected="it as a word of their path"
            )
    if not found:
        raise DataError(f"nothing to read in {source}", found=f"{len(ignored)} files of other kinds", expected=", ".join(SUFFIXES))
    return found, ignored


def check_reading(source: Path, files: list[SourceFile], reading: Reading) -> None:
    """Raise ConfigError when `reading` says how to read what is read as it is: the pages of a crawl, or a curated corpus.

    `strict` may be set: it is about the rows, and those are checked everywhere.
    """
    kind = "the pages of a crawl" if any(file.kind == "page" for file in files) else ""
    kind = "a curated corpus" if not kind and (Path(source) / FUNNEL).exists() else kind
    plain = Reading()
    told = [f"read.columns.{ours}={theirs}" for ours, theirs in reading.columns]
    told += [f"read.split={reading.split}"] if reading.split != plain.split else []
    told += [f"read.text_unit={reading.unit}"] if reading.unit != plain.unit else []
    if kind and told:
        expected = f"nothing: {source} holds {kind}, which is read as it is"
        raise ConfigError("read", found=" ".join(told), expected=expected, fix="Leave it out.")


def _of_split(name: str, split: str) -> bool:
    return split in re.split(r"[^0-9A-Za-z]+", name)


def promised(source: Path) -> dict[str, dict[str, Any]]:
    """The files that the folder's manifest lists, if it has one: also those that are gone."""
    path = Path(source) / MANIFEST
    entries = read_json(path).get("files", {}) if path.is_file() else {}
    return dict(entries) if isinstance(entries, dict) else {}


def _kind(path: Path) -> Kind | None:
    kind = SUFFIXES.get((Path(path.stem) if path.suffix in COMPRESSED else path).suffix.lower())
    return None if kind == "parquet" and path.suffix in COMPRESSED else kind


def check(file: SourceFile, listed: Mapping[str, Mapping[str, Any]], reading: Reading = Reading()) -> None:
    """Raise DamagedFile when a file differs from the manifest of its folder (`promised`), or cannot be read to its end."""
    if not file.path.is_file():
        raise DamagedFile(file.path, "is missing")
    entry = listed.get(file.name)
    if entry is not None and sha256_file(file.path) != entry["sha256"]:
        raise DamagedFile(file.path, "does not have the sha256 of its manifest")
    if file.kind in ("parquet", "csv"):
        for _ in rows(file.path, header=reading.header):
            pass
    elif file.path.suffix in COMPRESSED:
        with open_bytes(file.path) as stream:
            while stream.read(_STEP):
                pass


def items(file: SourceFile, limit: int, reading: Reading = Reading()) -> Iterator[Item]:
    """The documents of a file, each with at most `limit` bytes of its content."""
    # A line of JSON escapes what the document's bytes do not: six characters for one, and base64.
    most = 6 * limit + 65_536
    if file.kind in ("parquet", "csv"):
        for number, row in enumerate(rows(file.path, header=reading.header), 1):
            size = len(row.data)
            yield Item(file.name, number, "line", row.data if size < most else row.data[:limit], size, row.problem)
        return
    with open_bytes(file.path) as stream:
        if file.kind == "text" and reading.unit != "file":
            yield from _pieces(file, stream, limit, reading.unit)
            return
        if file.kind in ("html", "text"):
            data = stream.read(limit + 1)
            yield Item(file.name, 0, file.kind, data[:limit], len(data) + _skip(stream, to_newline=False))
            return
        number = 0
        while line := stream.readline(most):
            number += 1
            size = len(line)
            if size == most and not line.endswith(b"\n"):
                size += _skip(stream, to_newline=True)
                line = line[:limit]
            if line.strip():
                yield Item(file.name, number, file.kind, line.rstrip(b"\r\n"), size)


def _pieces(file: SourceFile, stream: IO[bytes], limit: int, unit: Unit) -> Iterator[Item]:
    """The lines of a text file, or its paragraphs, which blank lines separate."""
    number = first = size = 0
    held = bytearray()
    while line := stream.readline(limit + 1):
        number += 1
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{file.path} is UTF-16 text, which is only read whole", fix="Save it as UTF-8, or leave out read.text_unit.")
        long = 0 if line.endswith(b"\n") else _skip(stream, to_newline=True)
        if line.strip():
            first = first if size else number
            held += line[: limit - len(held)]
            size += len(line) + long
        if size and (unit == "line" or not line.strip()):
            yield Item(file.name, first, file.kind, bytes(held).rstrip(b"\r\n"), size)
            held, size = bytearray(), 0
    if size:
        yield Item(file.name, first, file.kind, bytes(held).rstrip(b"\r\n"), size)


def _skip(stream: IO[bytes], to_newline: bool) -> int:
    """Read on to the end of the line or stream without keeping anything; the number of bytes passed."""
    passed = 0
    while piece := (stream.readline(_STEP) if to_newline else stream.read(_STEP)):
        passed += len(piece)
        if to_newline and piece.endswith(b"\n"):
            break
    return passed


def chunks(stream: Iterator[Item]) -> Iterator[list[Item]]:
    """Items in groups of limited number and size: the unit of work that is written, and not done again after a stop."""
    chunk: list[Item] = []
    size = 0
    for item in stream:
        if chunk and (len(chunk) == CHUNK_ITEMS or size + len(item.data) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += len(item.data)
    if chunk:
        yield chunk


def chunk_key(chunk: list[Item], settings: str) -> str:
    """Names the result of a chunk: equal items in equal order under equal settings give equal names."""
    digest = hashlib.sha256(settings.encode())
    for item in chunk:
        digest.update(f"\n{item.place}\t{item.kind}\t{item.size}\t".encode())
        digest.update(hashlib.sha256(item.data).digest())
    return digest.hexdigest()[:32]
