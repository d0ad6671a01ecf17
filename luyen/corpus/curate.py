"""Curation: raw pages or files to clean, deduplicated documents in train and held-out shards.

read -> extract -> normalise -> language -> quality -> PII    chunk by chunk, in any number of processes, each part kept on disk
exact -> near-duplicates -> split                             over all parts, from hashes alone
Every document that goes in comes out in `train-*`, `heldout-*` or `dropped-*` (with rule and reason); `funnel.json` counts them.
The output is sorted by id, so neither the order of the input nor the number of processes changes a byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import pydantic

from luyen.core import interrupt, progress
from luyen.core.config import Config, dump
from luyen.core.errors import ConfigError, DamagedFile, DataError, nearest
from luyen.core.files import read_jsonl
from luyen.core.manifest import clean_up, fingerprint, recover, verify_listed
from luyen.core.plural import exactly
from luyen.core.records import Document
from luyen.core.storage import read_json, write_json
from luyen.corpus import parts, sources
from luyen.corpus.dedup import DedupConfig
from luyen.corpus.documents import BAD_ROWS, Settings
from luyen.corpus.language import LanguageConfig, identifier
from luyen.corpus.merging import finish
from luyen.corpus.parts import Part
from luyen.corpus.pii import KINDS, Kind
from luyen.corpus.quality import Preset, thresholds
from luyen.corpus.split import Unit
from luyen.corpus.workers import pool

VERSION = 3
"""Goes up when a step gives other results for the same input, so that parts of an older version are not reused."""
EVERYTHING = sources.Reading()
COLUMNS = ("text", "id", "url", "title", "meta")
"""Columns that a document is made of."""
WORK = "parts"


class CurateConfig(Config):
    """From raw pages to training text."""

    languages: tuple[str, ...] = ()
    """Keep only documents in these languages (ISO 639-1, for example vi, ru, en); empty keeps all and only labels them."""
    language: LanguageConfig = LanguageConfig()
    quality: Preset = "web"
    """Set of quality rules: `web` has the thresholds of Gopher and FineWeb, `reference` suits documentation,
    `datatrove` keeps what the filters of that library keep, `none` has no rules."""
    thresholds: dict[str, float | None] = {}
    """Other thresholds for single quality rules, by name; null switches a rule off."""
    pii: tuple[Kind, ...] = KINDS
    """Kinds of personal data to replace by `<kind>`."""
    dedup: DedupConfig = DedupConfig()
    heldout_fraction: float = pydantic.Field(0.01, ge=0, lt=1)
    """Share of the documents (or sections) held out from training; at least one of five or more."""
    heldout_unit: Unit = "document"
    """Hold out whole `document`s, or `section`s of documents (for few long pages, so that each is still trained on)."""
    max_document_bytes: int = pydantic.Field(10_000_000, ge=1000)
    """A larger page, file or text is dropped."""
    processes: int = pydantic.Field(1, ge=1, le=1024)
    """Processes that work at the same time; the result is the same."""
    damaged: Literal["stop", "skip"] = "stop"
    """A damaged input file: process the others, then `stop` with an error, or `skip` it and say so in the funnel."""
    seed: int = 0
    """Seed of the MinHash functions and of the choice of held-out text."""


ADVICE = {
    "too_large": "Raise max_document_bytes; of a text file read.text_unit=paragraph makes smaller documents.",
    "malformed": "Mend or convert the file; read.columns.text=COLUMN names the column that holds the text.",
    "damaged": "Crawl the pages again.",
    "empty": "Give files that hold text.",
    "other_language": "Set languages.",
    "uncertain_language": "Set languages, or lower language.min_probability.",
    "too_short_to_tell": "Lower language.min_characters, or set languages to [] if any language will do.",
}
"""What helps where most documents fell to a rule that is not one of quality."""


def curate(config: CurateConfig, source: Path, folder: Path, reading: sources.Reading = EVERYTHING) -> dict[str, Any]:
    """Curate `source` (a crawl's folder, or files of HTML, text, JSON lines, parquet or csv) into `folder`; returns the funnel.

    Call it again after a stop: finished parts are reused. Raises DataError when nothing is left or nothing can be read, ConfigError when
    `reading` is about other kinds of source than this one, DamagedFile (after all other files were processed) when an input file is
    damaged and `damaged` is `stop`.
    """
    unknown = next((name for name, _ in reading.columns if name not in COLUMNS), None)
    if unknown is not None:
        raise ConfigError(f"read.columns: unknown column {unknown!r}", fix=nearest(unknown, COLUMNS))
    settings = Settings(
        config.languages, config.language, thresholds(config.quality, config.thresholds), config.pii, config.max_document_bytes,
        reading.columns, reading.strict,
    )  # fmt: skip
    identifier(config.languages)  # names an unknown language before any work is done
    files, ignored = sources.list_files(source, reading.split)
    sources.check_reading(source, files, reading)
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    clean_up(folder)
    damaged: list[DamagedFile] = []
    keys = fingerprint({"version": VERSION, "config": dump(config.model_copy(update={"processes": 1, "damaged": "stop"})),
                        "reading": dataclasses.asdict(reading)})  # fmt: skip
    made = _parts(config, settings, _chunks(files, source, config.max_document_bytes, reading, damaged), work, keys)
    if damaged and config.damaged == "stop":
        raise DamagedFile(
            damaged[0].path,
            f"{damaged[0].reason}; {len(damaged)} of {len(files)} input files are damaged, the others are processed and kept. "
            "Replace them and run again, or set damaged=skip",
        )  # fmt: skip
    key = fingerprint([keys, sorted(part.key for part in made), sorted(str(error.path) for error in damaged)])
    done = folder / sources.FUNNEL
    if done.is_file() and read_json(done)["key"] == key:
        funnel: dict[str, Any] = read_json(done)
    else:
        for stale in (path for name in ("train", "heldout", "dropped") for path in folder.glob(f"{name}-*.jsonl.zst")):
            stale.unlink()
        facts = finish(made, work, folder, config.dedup, config.heldout_fraction, config.heldout_unit, config.seed)
        funnel = {"key": key, **facts, "files": len(files), "files_ignored": len(ignored)}
        funnel["files_damaged"] = sorted(f"{Path(str(error.path)).name}: {error.reason}" for error in damaged)
        write_json(done, funnel)
    shutil.rmtree(work)
    _say(funnel, ignored, folder)
    return funnel


def _chunks(
    files: list[sources.SourceFile], source: Path, limit: int, reading: sources.Reading, damaged: list[DamagedFile]
) -> Iterator[list[sources.Item]]:
    listed = sources.promised(source)

    def items() -> Iterator[sources.Item]:
        """Items of every file that is whole; damaged ones are collected, or raised when they may not be skipped."""
        for file in files:
            try:
                sources.check(file, listed, reading)
            except DamagedFile as error:
                progress.say(f"  {error}")
                damaged.append(error)
                continue
            yield from sources.items(file, limit, reading)

    return sources.chunks(items())


def _parts(config: CurateConfig, settings: Settings, chunks: Iterator[list[sources.Item]], work: Path, keys: str) -> list[Part]:
    """The parts of all chunks, those of an earlier run reused. Stops between chunks; those under way are finished first."""
    made: dict[str, Part] = {}
    pending: deque[tuple[int, Part | Future[Part]]] = deque()
    with progress.task("curate", None, "documents") as task, contextlib.ExitStack() as stack:
        workers = stack.enter_context(pool(config.processes)) if config.processes > 1 else None

        def collect() -> None:
            size, result = pending.popleft()
            part = result.result() if isinstance(result, Future) else result
            made[part.key] = part
            task.advance(size)
            interrupt.check()

        for chunk in chunks:
            key = sources.chunk_key(chunk, keys)
            if key in made:
                # The same items once more cannot happen: an item's place is part of the key.
                raise DataError(f"{chunk[0].place} is read twice")
            part = parts.load(work, key)
            arguments = (work, key, chunk, settings, config.dedup, config.seed)
            pending.append((len(chunk), part or (workers.submit(parts.make, *arguments) if workers else parts.make(*arguments))))
            while len(pending) > 2 * config.processes or (workers is None and pending):
                collect()
        while pending:
            collect()
    return list(made.values())


def _say(funnel: dict[str, Any], ignored: list[str], folder: Path) -> None:
    dropped = Counter({rule: count for step in funnel["steps"] for rule, count in step["dropped"].items()})
    rules = ", ".join(f"{rule} {count}" for rule, count in dropped.most_common(5))
    train, heldout = funnel["train"]["documents"], funnel["heldout"]["documents"]
    progress.say(f"  {exactly(funnel['documents'], 'document')}: {sum(dropped.values())} dropped{f' ({rules})' if rules else ''}")
    progress.say(f"  {exactly(train, 'document')} to train on, {exactly(heldout, funnel['heldout_unit'])} held out")
    if bad := sum(dropped[rule] for rule in BAD_ROWS):
        progress.say(f"  {exactly(bad, 'row')} rejected, kept in {folder / 'dropped-*.jsonl.zst'}")
    if ignored:
        progress.say(f"  not read: {exactly(len(ignored), 'file')} of other kinds or splits, for example {ignored[0]}")
    if not train:
        rule = next(iter(dict(dropped.most_common(1))), "")
        first = next((row for row in read_documents(folder, "dropped") if row.meta["rule"] == rule), None) if rule else None
        example = f"; first {first.meta['source']}: {first.meta['reason']}" if first else ""
        advice = ADVICE.get(rule, "quality=reference is less strict.")
        raise DataError(
            "no document is left to train on", found=f"{sum(dropped.values())} dropped ({rules}){example}",
            fix=f"{advice} All of them are in {folder / 'dropped-*.jsonl.zst'} with the reason.",
        )  # fmt: skip


def read_documents(folder: Path, split: Literal["train", "heldout", "dropped"] = "train") -> Iterator[Document]:
    """The documents of a curated corpus, in the order of their ids. Raises DataError when the folder holds none of that split.

    Every shard is checked against the folder's manifest before its first document; DamagedFile names one that differs or is gone.
    """
    folder = Path(folder)
    recover(folder)
    listed = {folder / name for name in sources.promised(folder) if name.startswith(f"{split}-")}
    shards = sorted({*folder.glob(f"{split}-*.jsonl.zst"), *listed})
    if not shards:
        raise DataError(f"no {split} documents in {folder}", expected=f"{split}-00000.jsonl.zst", fix="Run curate first.")
    for path in shards:
        verify_listed(path)
        for row in read_jsonl(path):
            meta = row["meta"] | {key: row[key] for key in ("rule", "reason", "source") if key in row}
            yield Document(row["id"], row["text"], row["url"], row["title"], row["language"], meta)
