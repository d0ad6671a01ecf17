"""Pairs and judgements on disk: one line each, forced to the disk before anybody is told that it is kept.

FOLDER/label.json                   the seed
FOLDER/pairs.jsonl                  pairs to judge, in their order
FOLDER/2026-W48/judgements.jsonl    a week's clicks (ISO 8601 weeks, UTC); a row holds all that it is about
FOLDER/2026-W48/preferences.jsonl, luyen.json    when the week is closed: its pairs for training, and the manifest

A process that is killed while it writes leaves at most a line without its end, which nobody was told is kept; it is cut off, and said so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luyen.core import lock, manifest, progress
from luyen.core.errors import ConfigError, DamagedFile, UserError
from luyen.core.files import replace_jsonl
from luyen.core.plural import exactly
from luyen.core.storage import fsync, read_object, storage_errors, write_json
from luyen.data.turns import BadRow
from luyen.serving.label_formats import preference_rows
from luyen.serving.label_records import Judgement, Pair

STATE, PAIRS, JUDGEMENTS, PREFERENCES = "label.json", "pairs.jsonl", "judgements.jsonl", "preferences.jsonl"
WEEK = re.compile(r"(\d{4}-W\d\d)(?:-(\d+))?")
HELD_SECONDS = 900.0
"""How long a pair that is shown to somebody is kept from others, where not everybody judges all."""


class Conflict(Exception):
    """A judgement of a pair that this person has judged otherwise meanwhile, in another window."""


class Store:
    """A folder of pairs and judgements. Methods may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.seed = 0
        self.pairs: dict[str, Pair] = {}
        self.made: set[str] = set()
        self._given: dict[tuple[str, str], list[Judgement]] = defaultdict(list)
        self._judged: dict[str, set[str]] = defaultdict(set)
        self._shown: dict[str, dict[str, float]] = defaultdict(dict)
        self.changed = threading.Condition(threading.RLock())

    @classmethod
    def read(cls, folder: Path) -> Store:
        """What a folder holds, to look at. UserError when it holds nothing of this kind, DamagedFile for rows that are none."""
        found = manifest.existing(folder)
        if found is None or not (found / STATE).is_file():
            raise UserError(f"{folder} holds no judgements", expected=f"a folder of `luyen label` with a {STATE}")
        store = cls(found)
        store._load(mend=False)
        return store

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, seed: int = 0, *, keep_seed: bool = False) -> Iterator[Store]:
        """A folder to write to, made when it is not there; one process at a time. `keep_seed` takes whichever seed it has.

        Raises UserError when another process serves it or it holds something else, ConfigError for another seed than it was begun with.
        """
        folder = manifest.existing(folder) or Path(folder).expanduser()
        if folder.exists() and not (folder / STATE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not empty and was not made by luyen label", expected="a folder that is new or empty")
        if folder.is_dir() and lock.owned(folder):
            raise UserError(f"{folder} is in use by another luyen label", fix="Stop that one, or choose another folder with --out.")
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        try:
            lock.own(descriptor)
            store = cls(folder)
            if not (folder / STATE).is_file():
                write_json(folder / STATE, {"seed": seed})
                fsync(folder.parent)
            store._load(mend=True)
            if store.seed != seed and not keep_seed:
                fix = f"Its answers were placed by that seed: give seed={store.seed}, or another --out."
                raise ConfigError(f"{folder} was begun with another seed", found=seed, expected=store.seed, fix=fix)
            yield store
        finally:
            lock.release(descriptor)
            os.close(descriptor)

    def _load(self, *, mend: bool) -> None:
        self.seed = _seed(self.folder / STATE)
        for pair in _rows(self.folder / PAIRS, Pair.from_row, mend):
            self._remember_pair(pair)
        for batch in self.batches():
            if self.closed(batch):
                manifest.verify(self.folder / batch)
            for judgement in _rows(self.folder / batch / JUDGEMENTS, Judgement.from_row, mend and not self.closed(batch)):
                self._remember(judgement)

    def _remember_pair(self, pair: Pair) -> None:
        self.pairs.setdefault(pair.id, pair)
        self.made |= {pair.made} if pair.made else set()

    def _remember(self, judgement: Judgement) -> None:
        self._given[judgement.annotator, judgement.pair.id].append(judgement)
        if judgement.preferred is not None:
            self._judged[judgement.pair.id].add(judgement.annotator)

    def add(self, pairs: Iterable[Pair]) -> int:
        """Keep pairs that are not there yet. Returns how many were new."""
        with self.changed:
            new = {pair.id: pair for pair in pairs if pair.id not in self.pairs or (pair.made and pair.made not in self.made)}
            if new:
                append(self.folder / PAIRS, [pair.as_row() for pair in new.values()])
            for pair in new.values():
                self._remember_pair(pair)
            self.changed.notify_all()
            return len(new)

    def next_pair(self, annotator: str, judges: int = 0) -> Pair | None:
        """The first pair that this person has not seen and that is not judged by `judges` others (0: no limit); None: there is none now."""
        with self.changed:
            for pair in self.pairs:
                if self._free(pair, annotator, judges):
                    self._shown[pair][annotator] = time.monotonic()
                    return self.pairs[pair]
            return None

    def _taken(self, pair: str, annotator: str) -> set[str]:
        """Who else has judged a pair or is looking at it."""
        now = time.monotonic()
        looking = {name for name, since in self._shown[pair].items() if now - since < HELD_SECONDS and (name, pair) not in self._given}
        return (self._judged[pair] | looking) - {annotator}

    def given(self, annotator: str, pair: str) -> list[Judgement]:
        """This person's judgements of a pair, the newest last."""
        with self.changed:
            return list(self._given.get((annotator, pair), ()))

    def last(self, annotator: str) -> Pair | None:
        """The pair that this person judged or skipped last."""
        with self.changed:
            own = [given[-1] for (name, pair), given in self._given.items() if name == annotator and pair in self.pairs]
            return max(own, key=lambda judgement: judgement.time).pair if own else None

    def waiting(self, judges: int = 0) -> int:
        """Pairs that are there for whoever has the fewest left, of all who have judged; all of them when nobody has."""
        with self.changed:
            people = {name for name, _ in self._given}
            return min((sum(self._free(pair, name, judges) for pair in self.pairs) for name in people), default=len(self.pairs))

    def _free(self, pair: str, annotator: str, judges: int) -> bool:
        return (annotator, pair) not in self._given and (not judges or len(self._taken(pair, annotator)) < judges)

    def judge(self, judgement: Judgement, moment: str = "") -> bool:
        """Keep a judgement; it is on the disk when this returns. False: it was there already, as when it is sent again.

        It goes to the week of `moment`, else to that of its own time. Raises Conflict for another judgement under a revision that is
        taken or not yet due, StorageError when the disk refuses.
        """
        with self.changed:
            given = self._given.get((judgement.annotator, judgement.pair.id), [])
            if judgement.revision < len(given) and given[judgement.revision].same(judgement):
                return False
            if judgement.revision != len(given):
                raise Conflict(f"you have judged this pair {len(given)} times, this is number {judgement.revision + 1}")
            append(self._batch(moment or judgement.time) / JUDGEMENTS, [judgement.as_row()])
            self._remember(judgement)
            self.changed.notify_all()
            return True

    def take(self, judgement: Judgement, moment: str) -> bool:
        """Keep an imported judgement, as a correction where this person has judged the pair otherwise. False: it was there already."""
        with self.changed:
            given = self._given.get((judgement.annotator, judgement.pair.id), [])
            if given and given[-1].same(judgement):
                return False
            return self.judge(replace(judgement, revision=len(given)), moment)

    def current(self, pick: str = "") -> list[Judgement]:
        """The newest judgement of every person and pair, skipped ones too; `pick`: of one domain."""
        with self.changed:
            newest = [given[-1] for given in self._given.values()]
        return [judgement for judgement in newest if pick in ("", judgement.domain)]

    def batches(self) -> list[str]:
        """Names of the weeks' folders, the oldest first."""
        names = [path.name for path in self.folder.iterdir() if path.is_dir() and WEEK.fullmatch(path.name)]
        return sorted(names, key=_place)

    def closed(self, batch: str) -> bool:
        """Whether a week has its manifest."""
        return (self.folder / batch / manifest.MANIFEST).is_file()

    def _batch(self, moment: str) -> Path:
        """The folder that a click goes to; weeks that are over are closed."""
        week = week_of(moment)
        self.close(but=week)
        taken = [name for name in self.batches() if name.startswith(week)]
        free = [name for name in taken if not self.closed(name)]
        name = free[0] if free else f"{week}-{len(taken) + 1}" if taken else week
        folder = self.folder / name
        if not folder.is_dir():
            with storage_errors(folder):
                folder.mkdir()
                fsync(self.folder)
        return folder

    def close(self, but: str = "") -> list[str]:
        """Seal every week that is open, except `but`: its preferences for training, then a manifest. Returns their names."""
        with self.changed:
            done = [name for name in self.batches() if not self.closed(name) and not (but and name.startswith(but))]
            for name in done:
                self._seal(self.folder / name)
            return done

    def _seal(self, folder: Path) -> None:
        found = list(_rows(folder / JUDGEMENTS, Judgement.from_row, mend=True))
        newest = {(judgement.annotator, judgement.pair.id): judgement for judgement in found}
        rows = list(preference_rows(newest.values()))
        replace_jsonl(folder / PREFERENCES, rows)
        manifest.seal(
            folder, "preferences", week=folder.name, judgements=len(found), preferences=len(rows), seed=self.seed,
            skipped=sum(judgement.preferred is None for judgement in newest.values()),
            annotators=sorted({judgement.annotator for judgement in found}),
            models=sorted({str(answer.writer["model"]) for item in found for answer in item.pair.answers if "model" in answer.writer}),
            first=min((judgement.time for judgement in found), default=""), last=max((judgement.time for judgement in found), default=""),
        )  # fmt: skip


def now() -> str:
    """This moment, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def week_of(moment: str) -> str:
    """The ISO 8601 week of a moment in UTC, such as 2026-W48."""
    year, week, _ = datetime.fromisoformat(moment).astimezone(UTC).isocalendar()
    return f"{year}-W{week:02d}"


def _place(name: str) -> tuple[str, int]:
    match = WEEK.fullmatch(name)
    return (match[1], int(match[2] or 1)) if match else (name, 0)


def _seed(path: Path) -> int:
    seed = read_object(path).get("seed")
    if not isinstance(seed, int):
        raise DamagedFile(path, "has no seed")
    return seed


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add lines to a file; they are on the disk when this returns, and none of them is there when it raises. Raises StorageError."""
    data = b"".join(manifest.canonical(row).encode("utf-8", "surrogatepass") + b"\n" for row in rows)
    with storage_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < len(data):
                    written += os.write(descriptor, data[written:])
                os.fsync(descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
        if not before:
            fsync(path.parent)


def _rows(path: Path, make: Callable[[Mapping[str, Any]], Any], mend: bool) -> Iterator[Any]:
    """Rows of a file that only grows; `mend` cuts off a last line that a kill left without its end."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        what = "is cut off" if mend else "is passed over"
        progress.say(f"{path}: {exactly(len(data) - whole, 'byte')} of a line that a kill left unfinished, which {what}")
        if mend:
            with storage_errors(path):
                os.truncate(path, whole)
                fsync(path)
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
        try:
            made = make(json.loads(line))
        except (BadRow, ValueError, LookupError, TypeError) as error:
            raise DamagedFile(path, f"line {number} cannot be read ({type(error).__name__}: {error})") from error
        yield made
