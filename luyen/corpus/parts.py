"""Finished pieces of a curation on disk, so that a stopped one continues, and the merging of them in order.

A part is what one chunk of raw items gave: `KEY.kept.jsonl.zst` and `KEY.dropped.jsonl.zst`, sorted by `order`, `KEY.bands.npy` with
the MinHash bands of the kept ones, and `KEY.json`, written last, with the counts and the sha256 of the others.
"""

from __future__ import annotations

import heapq
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luyen.core.errors import DamagedFile
from luyen.core.files import read_jsonl, replace_jsonl
from luyen.core.manifest import fingerprint, sha256_file
from luyen.core.storage import read_json, write_atomic, write_json
from luyen.corpus.dedup import DedupConfig, band_hashes, shingles, signatures, text_hash
from luyen.corpus.documents import Outcome, Settings, process
from luyen.corpus.sources import Item
from luyen.corpus.words import Hashes

FAN_IN = 100
Row = dict[str, Any]
Rows = Callable[[], Iterator[Row]]


@dataclass(frozen=True)
class Part:
    """One finished piece: its counts, and for each kept document id, fingerprint of the row, hash of the text and length."""

    folder: Path
    key: str
    facts: dict[str, Any]

    def kept(self) -> Iterator[Row]:
        """The rows that stay, sorted by `order`."""
        return read_jsonl(self.folder / f"{self.key}.kept.jsonl.zst")

    def dropped(self) -> Iterator[Row]:
        """The rows that were dropped, sorted by `order`."""
        return read_jsonl(self.folder / f"{self.key}.dropped.jsonl.zst")

    def bands(self) -> Hashes:
        """MinHash bands of the kept rows; shape (documents, bands)."""
        values: Hashes = np.load(self.folder / f"{self.key}.bands.npy", allow_pickle=False)
        return values


def order(row: Row) -> tuple[str, str]:
    """The order of documents on disk: by id, then by content, never by where they came from."""
    return row["id"], fingerprint(row)


def bands_of(texts: list[str], config: DedupConfig, seed: int) -> Hashes:
    """MinHash bands; a text without words (signs only) meets only its equals."""
    bands = band_hashes(signatures(texts, config, seed), config)
    for index, text in enumerate(texts):
        if not len(shingles(text[:200], 1)) and not len(shingles(text, 1)):
            bands[index] = np.uint64(int(text_hash(text)[:16], 16)) ^ np.arange(bands.shape[1], dtype=np.uint64)
    return bands


def make(folder: Path, key: str, chunk: list[Item], settings: Settings, dedup: DedupConfig, seed: int) -> Part:
    """Process a chunk and write its part. Runs in a worker process too."""
    outcome = Outcome()
    for item in chunk:
        process(item, settings, outcome)
    kept = sorted(outcome.kept, key=order)
    dropped = sorted(outcome.dropped, key=order)
    texts = [row["text"] for row in kept]
    bands = bands_of(texts, dedup, seed) if dedup.near and texts else np.empty((len(texts), dedup.bands), np.uint64)
    names = {"kept": f"{key}.kept.jsonl.zst", "dropped": f"{key}.dropped.jsonl.zst", "bands": f"{key}.bands.npy"}
    replace_jsonl(folder / names["kept"], kept)
    replace_jsonl(folder / names["dropped"], dropped)
    buffer = io.BytesIO()
    np.save(buffer, bands, allow_pickle=False)
    write_atomic(folder / names["bands"], buffer.getvalue())
    facts = {
        "funnel": outcome.funnel.dump(),
        "masked": dict(outcome.masked),
        "converted": dict(outcome.converted),
        "documents": [[*order(row), text_hash(row["text"]), len(row["text"]), len(row["text"].encode())] for row in kept],
        "files": {name: sha256_file(folder / name) for name in names.values()},
    }
    write_json(folder / f"{key}.json", facts)
    return Part(folder, key, facts)


def load(folder: Path, key: str) -> Part | None:
    """The part of an earlier run, or None if there is none or anything of it is damaged (then it is made again)."""
    if not (folder / f"{key}.json").is_file():
        return None
    try:
        facts = read_json(folder / f"{key}.json")
        if all((folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in facts["files"].items()):
            return Part(folder, key, facts)
    except (DamagedFile, KeyError, TypeError, AttributeError):
        pass
    return None


def merge(streams: list[Rows], folder: Path, name: str) -> Iterator[Row]:
    """All rows of sorted streams in order; more than FAN_IN streams are merged in rounds through files in `folder`."""
    rounds = itertools.count()
    while len(streams) > FAN_IN:
        merged: list[Rows] = []
        number = next(rounds)
        for index in range(0, len(streams), FAN_IN):
            path = folder / f"merge-{name}-{number}-{index}.jsonl.zst"
            replace_jsonl(path, heapq.merge(*(stream() for stream in streams[index : index + FAN_IN]), key=order))
            merged.append(_reader(path))
        streams = merged
    return heapq.merge(*(stream() for stream in streams), key=order)


def _reader(path: Path) -> Rows:
    return lambda: read_jsonl(path)


def shard(folder: Path, name: str, rows: Iterator[Row], documents: int) -> int:
    """Write rows as NAME-00000.jsonl.zst and so on, `documents` rows a file, at least one file. Returns the number of rows."""
    total = 0
    for number in itertools.count():
        count = replace_jsonl(folder / f"{name}-{number:05d}.jsonl.zst", itertools.islice(rows, documents))
        total += count
        if count < documents:
            break
    return total
