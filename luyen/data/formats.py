"""Data files in, typed records out: the form is detected, and every row is either used or kept with the reason.

Stated rules for what real files hold. Accepted and noted: a byte order mark, CRLF line ends, a row over 1 MB; a file in UTF-16 with a
byte order mark is read as such. Rejected: bytes that are not UTF-8, NUL, lone surrogates, cut JSON, anything behind the value, NaN, a key
given twice, JSON nested deeper than Python reads, a blank line of a .jsonl, a row over 64 MiB, missing or wrong columns, roles out of
order, an empty answer, chosen equal to rejected, a negative margin. In a .json list (not a .jsonl) a row with broken syntax takes the rest
of the file with it, since nothing tells where the next one starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from luyen.core import interrupt, progress
from luyen.core.errors import DamagedFile, DataError
from luyen.core.plural import exactly
from luyen.core.records import Record
from luyen.data.config import ReadConfig
from luyen.data.detect import Detection, detect, explain_nearest, rename
from luyen.data.discover import Found, find, open_rows
from luyen.data.nested import questions
from luyen.data.rejects import Problem, Rejects, check_place
from luyen.data.source import MAX_ROW_BYTES, QUOTED, RawRow, RowSource
from luyen.data.turns import BadRow, kind

DETECTION_ROWS = 200
"""Readable rows of each file that decide its form."""
_ROWS_BETWEEN_CHECKS = 1000


@dataclass
class ReadAccount:
    """What became of every row: rows = accepted + rejected.

    A row is a line of a .jsonl, an element of a .json list, a question of a nested SQuAD file, a row of a table, a sentence of a CoNLL
    file, a document (or bad line) of a text file.
    """

    files: int = 0
    accepted: int = 0
    rejected: int = 0
    records: int = 0
    """More than accepted when a row holds several (Self-Instruct's instances)."""
    reasons: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    """The first bad rows."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was put right, by kind."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Files that break off or do not decompress; the rows before the damage are used."""
    skipped: tuple[str, ...] = ()
    """Files of the folder that are not data, or not of the split."""

    @property
    def rows(self) -> int:
        """All rows found."""
        return self.accepted + self.rejected

    @property
    def complete(self) -> bool:
        """Whether every file could be read to its end."""
        return not self.damaged

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {
            "files": self.files, "rows": self.rows, "accepted": self.accepted, "rejected": self.rejected, "records": self.records,
            "reasons": dict(sorted(self.reasons.items())), "notes": dict(sorted(self.notes.items())), "damaged": dict(self.damaged),
            "skipped": list(self.skipped), "complete": self.complete,
        }  # fmt: skip


@dataclass
class Dataset:
    """Records, what form they were found in, and the account."""

    records: list[Record]
    format: str
    """One sentence per form found, such as "alpaca: instruction/input/output -> conversation"."""
    account: ReadAccount
    origins: list[str] = field(repr=False, default_factory=list)
    """file:line of each record."""

    def report(self) -> list[str]:
        """What to tell the user, one line each: the form, the counts, what was put right, the first bad rows."""
        account = self.account
        counts = f"{account.accepted:,} accepted, {account.rejected:,} rejected"
        lines = [f"detected {self.format}", f"{exactly(account.rows, 'row')} in {exactly(account.files, 'file')}: {counts}"]
        lines += [f"note: {count:,} {what}" for what, count in sorted(account.notes.items())]
        lines += [f"damaged: {name} {reason}" for name, reason in account.damaged.items()]
        lines += [f"skipped: {', '.join(account.skipped[:8])}{', ...' if len(account.skipped) > 8 else ''}"] if account.skipped else []
        lines += [f"rejected {problem}" for problem in account.problems[:5]]
        more = account.rejected - len(account.problems[:5])
        return [*lines, f"... and {more:,} more"] if account.problems and more else lines


def read(
    path: str | Path, config: ReadConfig | None = None, *, rejected: Path | None = None, max_row_bytes: int = MAX_ROW_BYTES
) -> Dataset:
    """Every record of a file, a folder or a hub dataset. `rejected` is where bad rows are kept.

    Raises DataError for a missing or empty input, a `rejected` that would overwrite something (see `check_place`), an unknown form, a bad
    row when strict, or when no row could be used; DamagedFile for a broken archive (in a folder with other files it is reported in the
    account instead).
    """
    config = config or ReadConfig()
    found = find(path, config.split)
    if rejected is not None:
        rejected = rejected.expanduser()
        check_place(rejected, found)
    rejects = Rejects(rejected, strict=config.strict)
    dataset = Dataset([], "", ReadAccount(files=len(found.files), skipped=found.skipped))
    forms: dict[str, None] = {}
    header = not any(isinstance(place, int) for place in config.columns.values())
    with rejects, progress.task("reading", None, "rows") as bar:
        for file in found.files:
            reader = _FileReader(found, file, config.columns, rejects, dataset)
            try:
                with open_rows(file, config.text_unit, header=header, max_row_bytes=max_row_bytes) as (rows, source):
                    reader.read(rows, source, bar)
            except DamagedFile as error:
                if config.strict or len(found.files) == 1:
                    raise
                dataset.account.damaged[found.name(file)] = error.reason
            if reader.detection:
                forms[reader.detection.sentence] = None
    _finish(dataset, rejects, forms, path)
    return dataset


def _finish(dataset: Dataset, rejects: Rejects, forms: Mapping[str, None], path: str | Path) -> None:
    """Close the account, tell the user, and raise if nothing is left."""
    account = dataset.account
    account.rejected, account.reasons, account.problems = rejects.count, dict(rejects.reasons), rejects.first
    account.records, dataset.format = len(dataset.records), "; ".join(forms)
    if not dataset.records and account.damaged:
        name, reason = next(iter(account.damaged.items()))
        raise DamagedFile(Path(path) / name, reason)
    if not dataset.records and rejects.first:
        kept = f"They are kept in {rejects.path}." if rejects.path else ""
        raise DataError(f"{path}: none of its rows ({account.rows:,}) can be used; the first: {rejects.first[0]}", fix=kept)
    if not dataset.records:
        raise DataError(f"{path} is empty: it holds no rows", fix="Give a file with data.")
    for line in dataset.report():
        progress.say(line)
    if account.rejected and rejects.path:
        progress.say(f"{exactly(account.rejected, 'row')} rejected, kept in {rejects.path}")


class _FileReader:
    """One file's rows into the dataset: detect on the first ones, then convert each."""

    def __init__(self, found: Found, file: Path, columns: Mapping[str, str | int], rejects: Rejects, dataset: Dataset) -> None:
        self.found, self.name, self.columns = found, found.name(file), columns
        self.rejects, self.dataset = rejects, dataset
        self.detection: Detection | None = None
        self.encoding = "utf-8"
        self.taken = 0  # rows that the bar does not show yet

    def read(self, rows: Iterator[RawRow], source: RowSource | None, bar: progress.Task) -> None:
        """Take every row of the file, in order."""
        self.encoding = source.encoding if source else "utf-8"
        singles = chain.from_iterable(questions(row) for row in rows)
        try:
            first = self._first(singles)
            values = [row.value for row in first if _usable(row)]
            self.detection = self._detect(values)
            for row in chain(first, singles):
                self._take(row)
                if self.taken >= _ROWS_BETWEEN_CHECKS:
                    self._advance(bar)
                    interrupt.check()
        finally:
            self._advance(bar)
            if source:
                self.dataset.account.notes.update(source.notes)
                source.notes.clear()

    def _advance(self, bar: progress.Task) -> None:
        bar.advance(self.taken)
        self.taken = 0

    def _first(self, rows: Iterator[RawRow]) -> list[RawRow]:
        """Rows for the detection. Bad rows before the first good one are rejected on the way, and a row too long to hold ends the list,
        since its bytes must be written before the next row is read."""
        first: list[RawRow] = []
        for row in rows:
            if not first and not _usable(row):
                self._take(row)
                continue
            first.append(row)
            if len(first) == DETECTION_ROWS or row.streamed:
                break
        return first

    def _detect(self, values: list[Mapping[str, Any]]) -> Detection | None:
        if not values:
            return None
        try:
            return detect(values, self.columns, self.name)
        except DataError:
            if self.rejects.strict or len(self.found.files) == 1:
                raise
            return None  # in a folder the rows of such a file are rejected one by one

    def _take(self, row: RawRow) -> None:
        self.taken += 1
        problem = row.problem
        if problem is None and not _usable(row):
            problem = f"{kind(row.value)}, not an object with columns"
        if problem is not None:
            self.rejects.add(Problem(self.name, row.line, problem), row, self.encoding)
            return
        if self.detection is None:
            self.rejects.add(Problem(self.name, row.line, "no known form", explain_nearest(row.value)), row, self.encoding)
            return
        value = rename(row.value, self.detection.renamed)
        try:
            records = self.detection.form.convert(value)
        except BadRow as error:
            form = self.detection.form
            complete = all(value.get(column) is not None for column in form.columns)
            nearest = "" if complete else explain_nearest(value)
            self.rejects.add(Problem(self.name, row.line, str(error), nearest), row, self.encoding)
            return
        except (ValueError, TypeError, OverflowError, RecursionError, LookupError) as error:  # a value that no form foresaw
            reason = f"cannot be converted ({type(error).__name__}: {str(error)[:QUOTED]})"
            self.rejects.add(Problem(self.name, row.line, reason), row, self.encoding)
            return
        self.dataset.account.accepted += 1
        self.dataset.records += records
        self.dataset.origins += [f"{self.name}:{row.line}"] * len(records)


def _usable(row: RawRow) -> bool:
    return row.problem is None and isinstance(row.value, Mapping)
