"""What a crawl keeps on disk.

While it runs: `journal.jsonl`, one row per visited address with its outcome and body, appended. A torn last row (kill -9) is
cut off. When it is done: `pages-00000.jsonl` (and so on), sorted by address, with address, status, content type, sha256 and
body; `skipped.jsonl`, every address without a page and why; `timings.jsonl`, when each page was fetched. Times have their own
file so that equal pages give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from luyen.core.errors import DamagedFile, DataError
from luyen.core.files import read_jsonl, replace_jsonl
from luyen.core.records import Page
from luyen.core.storage import storage_errors

JOURNAL, SKIPPED, TIMINGS = "journal.jsonl", "skipped.jsonl", "timings.jsonl"
SHARD_BYTES = 256_000_000
PAGE_KEYS = ("url", "status", "content_type", "charset", "etag", "last_modified", "sha256", "encoding", "body", "redirected_from")

Kind = Literal["page", "redirect", "skipped"]


@dataclass(frozen=True)
class Entry:
    """Where a journal row stands and what one needs without reading it."""

    offset: int
    kind: Kind
    attempts: int
    not_modified: bool
    reason: str


def pack_body(body: bytes) -> dict[str, str]:
    """A body as JSON values: as text where it is exact UTF-8, so that a person can read the file, else base64."""
    try:
        return {"encoding": "utf-8", "body": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"encoding": "base64", "body": base64.b64encode(body).decode("ascii")}


def unpack_body(row: Mapping[str, Any]) -> bytes:
    """The inverse of `pack_body`."""
    text: str = row["body"]
    return text.encode("utf-8") if row["encoding"] == "utf-8" else base64.b64decode(text)


class Journal:
    """The outcomes of a crawl under way, by address. Safe to use from threads.

    `settings` is a fingerprint of what decides a single outcome; a journal of other settings is not continued.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self.path = folder / JOURNAL
        self.entries: dict[str, Entry] = {}
        self.continued = False
        self._lock = threading.Lock()
        with storage_errors(self.path):
            self._end = self._replay(settings) if self.path.exists() else 0
            if self._end:
                self.continued = True
                os.truncate(self.path, self._end)
            else:
                self.path.write_bytes(b"")
            self._file = open(self.path, "r+b")  # noqa: SIM115 (closed by close)
        if not self.continued:
            self._write({"settings": settings})

    def _replay(self, settings: str) -> int:
        """Read an earlier journal; returns where its last whole row ends, 0 if it cannot be continued."""
        end = 0
        with open(self.path, "rb") as file:
            for line in file:
                try:
                    row = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    row = None
                if not isinstance(row, dict) or (end == 0 and row.get("settings") != settings):
                    break
                if end:
                    self._index(row, end)
                end += len(line)
        return end

    def _index(self, row: Mapping[str, Any], offset: int) -> None:
        self.entries[row["url"]] = Entry(offset, row["kind"], row.get("attempts", 0), row.get("not_modified", False), row.get("reason", ""))

    def _write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass") + b"\n"
        with self._lock, storage_errors(self.path):
            self._file.seek(self._end)
            self._file.write(line)
            self._file.flush()
            if "url" in row:
                self._index(row, self._end)
            self._end += len(line)

    def append(self, row: Mapping[str, Any]) -> None:
        """Keep one outcome: `url`, `kind`, and what belongs to it."""
        self._write(row)

    def read(self, url: str) -> dict[str, Any]:
        """The whole row of an address."""
        with self._lock:
            return _row_at(self._file, self.entries[url].offset)

    def urls(self, kind: Kind) -> list[str]:
        """Addresses with such an outcome, sorted."""
        return sorted(url for url, entry in self.entries.items() if entry.kind == kind)

    def close(self) -> None:
        """Close the file, keep it."""
        self._file.close()

    def publish(self, folder: Path, also_skipped: Sequence[Mapping[str, Any]] = ()) -> dict[str, int]:
        """Write the finished files beside the journal and remove it. `also_skipped`: more rows for the list of skipped addresses.
        Returns the number of pages and their bytes."""
        pages = self.urls("page")
        total = 0

        def rows() -> Iterator[dict[str, Any]]:
            nonlocal total
            for url in pages:
                row = self.read(url)
                total += len(unpack_body(row))
                yield {name: row[name] for name in PAGE_KEYS if row.get(name) is not None}

        names = write_shards(folder, rows())
        skipped = [{name: row[name] for name in ("url", "reason", "detail")} for row in map(self.read, self.urls("skipped"))]
        replace_jsonl(folder / SKIPPED, sorted([*skipped, *map(dict, also_skipped)], key=itemgetter("url")))
        visits = ((url, self.read(url)) for url in pages)
        replace_jsonl(folder / TIMINGS, ({"url": url, "fetched_at": row["fetched_at"], "attempts": row["attempts"]} for url, row in visits))
        for path in page_files(folder):
            if path.name not in names:
                path.unlink()
        self.close()
        self.path.unlink()
        return {"pages": len(pages), "bytes": total}


def _row_at(file: Any, offset: int) -> dict[str, Any]:
    file.seek(offset)
    row: dict[str, Any] = json.loads(file.readline())
    return row


def write_shards(folder: Path, rows: Iterator[dict[str, Any]], shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write page rows to `pages-00000.jsonl` and so on, a new file after every `shard_bytes` of bodies. At least one file."""
    names: list[str] = []
    row: dict[str, Any] | None = next(rows, None)

    def shard() -> Iterator[dict[str, Any]]:
        nonlocal row
        size = 0
        while row is not None and size < shard_bytes:
            size += len(row["body"])
            yield row
            row = next(rows, None)

    while row is not None or not names:
        names.append(f"pages-{len(names):05d}.jsonl")
        replace_jsonl(folder / names[-1], shard())
    return names


def page_files(folder: Path) -> list[Path]:
    """The files of a finished crawl that hold pages, in order."""
    return sorted(Path(folder).glob("pages-*.jsonl"))


def read_pages(folder: Path) -> Iterator[Page]:
    """The pages of a finished crawl, sorted by address. Raises DataError if there is none, DamagedFile for a changed body."""
    folder = Path(folder)
    if not page_files(folder):
        raise DataError(f"no crawled pages in {folder}", expected="pages-00000.jsonl", fix="Run the crawl first, or let it finish.")
    timings = folder / TIMINGS
    fetched = {row["url"]: row["fetched_at"] for row in read_jsonl(timings)} if timings.exists() else {}
    for path in page_files(folder):
        for number, row in enumerate(read_jsonl(path), 1):
            try:
                body = unpack_body(row)
                page = Page(row["url"], body, _full_type(row), row["status"], fetched.get(row["url"], ""), row["sha256"])
            except (KeyError, TypeError, ValueError) as error:
                raise DamagedFile(path, f"line {number} is not a page ({error!r})") from error
            if hashlib.sha256(body).hexdigest() != page.sha256:
                raise DamagedFile(path, f"line {number}: the body of {page.url} does not have its sha256")
            yield page


def _full_type(row: Mapping[str, Any]) -> str:
    charset = row.get("charset")
    return f"{row['content_type']}; charset={charset}" if charset else str(row["content_type"])


class EarlierPages:
    """The pages of a finished crawl by address, for asking whether they have changed; bodies stay on disk."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[Path, int]] = {}
        self.conditions: dict[str, dict[str, str]] = {}
        """Headers for a conditional request, only for pages whose server gave something to compare with."""
        for path in page_files(folder):
            with open(path, "rb") as file:
                offset = 0
                for line in file:
                    self._remember(path, offset, line)
                    offset += len(line)

    def _remember(self, path: Path, offset: int, line: bytes) -> None:
        try:
            row = json.loads(line)
            headers = {"If-None-Match": row.get("etag"), "If-Modified-Since": row.get("last_modified")}
            conditions = {name: value for name, value in headers.items() if value}
            if conditions and hashlib.sha256(unpack_body(row)).hexdigest() == row["sha256"]:
                self._places[row["url"]] = (path, offset)
                self.conditions[row["url"]] = conditions
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # a damaged row is not compared with: its page is fetched whole

    def read(self, url: str) -> dict[str, Any]:
        """The row of a page that is unchanged."""
        path, offset = self._places[url]
        with open(path, "rb") as file:
            return _row_at(file, offset)
