"""From what a user names to data files: a file, a folder, or a dataset on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from luyen.core.errors import DataError
from luyen.core.files import COMPRESSED, delimiter_of
from luyen.core.hub import download, has_hub_form
from luyen.core.manifest import existing, verify_listed
from luyen.data.rows_json import json_document, json_lines
from luyen.data.rows_table import TextUnit, conll_rows, parquet_rows, table_rows, text_rows
from luyen.data.source import RawRow, RowSource, open_source

JSON_LINES, JSON, TABLES, TEXTS = (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv"), (".txt", ".text", ".md")
CONLL = (".conll", ".conllu", ".iob", ".iob2", ".bio")
KINDS = (*JSON_LINES, *JSON, *TABLES, ".parquet", *TEXTS, *CONLL)
_NOT_DATA = {"luyen.json", "rejected.jsonl", "dataset_info.json", "dataset_infos.json", "state.json", "readme.md", "license.md"}
_TAG = re.compile(r"O|[BIES]-\S+")


@dataclass(frozen=True)
class Found:
    """The data files behind a name, and the files of a folder that are none."""

    root: Path
    files: tuple[Path, ...]
    skipped: tuple[str, ...] = ()
    single: bool = False
    """A file was named; `root` is only where it lies."""

    def name(self, path: Path) -> str:
        """A file's name as shown: relative to the folder that was given."""
        return path.relative_to(self.root).as_posix()


def kind_of(path: Path) -> str:
    """The suffix that says what a file holds, that of the compression left off: ".jsonl" for a.jsonl.gz."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def locate(name: str | Path) -> Path:
    """The file or folder of that path, else the copy on this machine of the hub's data set of that name. DataError when there is none."""
    path = existing(name)
    if path is not None:
        return path
    if not has_hub_form(str(name)):
        raise DataError(f"no file or folder {str(name)!r}", fix="Check the path; a dataset of the hub is named owner/dataset.")
    return download(str(name), "dataset", [f"*{kind}{compression}" for kind in KINDS for compression in ("", *COMPRESSED)])


def find(name: str | Path, split: str = "") -> Found:
    """The files behind a path or a hub name ("owner/dataset", with "@revision" if wanted); of a folder those of `split`, if given.

    A split is a word of the file's path: train-00000.jsonl, train/a.csv. Raises DataError when there is nothing, and for a split of a
    single file.
    """
    path = locate(name)
    if path.is_file():
        if split:
            fix = "Leave out read.split, or name the folder."
            raise DataError(f"read.split={split} picks files of a folder", found=f"the file {path}", fix=fix)
        return Found(path.parent, (path,), single=True)
    files = sorted((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.relative_to(path).as_posix())
    visible = [file for file in files if _is_visible(file, path)]
    data = [file for file in visible if is_data(file, path)]
    skipped = tuple(file.relative_to(path).as_posix() for file in visible if file not in set(data))
    if split:
        chosen = [file for file in data if split in re.split(r"[^0-9A-Za-z]+", file.relative_to(path).as_posix())]
        if not chosen:
            names = ", ".join(file.name for file in data[:5]) or "no data files"
            raise DataError(f"{path} has no files of the split {split!r}", found=names, expected=f"{split} as a word of their path")
        skipped += tuple(file.relative_to(path).as_posix() for file in data if file not in set(chosen))
        data = chosen
    if not data:
        raise DataError(f"{path} holds no data files", found=", ".join(skipped[:5]) or "an empty folder", expected=", ".join(KINDS))
    return Found(path, tuple(data), skipped)


def is_data(path: Path, folder: Path) -> bool:
    """Whether a file of that name, there or not, is read when the folder is given: it lies below it, is not hidden, and of a known kind."""
    below = path.is_relative_to(folder) and path != folder
    return below and _is_visible(path, folder) and kind_of(path) in KINDS and path.name.lower() not in _NOT_DATA


def _is_visible(path: Path, folder: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)


@contextmanager
def open_rows(path: Path, unit: TextUnit, *, header: bool, max_row_bytes: int) -> Iterator[tuple[Iterator[RawRow], RowSource | None]]:
    """The rows of a data file, whatever its kind, and the source they come from (None for parquet).

    A file that the manifest beside it lists is checked first: DamagedFile when it differs.
    """
    verify_listed(path)
    kind = kind_of(path)
    if kind == ".parquet":
        yield parquet_rows(path), None
        return
    if kind not in KINDS:
        raise DataError(f"cannot read {path}", found=f"the ending {path.suffix!r}", expected=", ".join(KINDS) + ", plain or compressed")
    with open_source(path, max_row_bytes) as source:
        yield _rows(source, kind, unit, header=header), source


def _rows(source: RowSource, kind: str, unit: TextUnit, *, header: bool) -> Iterator[RawRow]:
    start = source.peek()
    if kind in JSON_LINES or (kind in JSON and _looks_like_lines(start)):
        return json_lines(source)
    if kind in JSON:
        return json_document(source)
    if kind in TABLES:
        first_line = start.splitlines()[0] if start.splitlines() else ""
        return table_rows(source, "\t" if kind == ".tsv" else delimiter_of(first_line), header=header)
    if kind in CONLL or _looks_like_tags(start):
        return conll_rows(source)
    return text_rows(source, unit)


def _looks_like_lines(start: str) -> bool:
    """Whether a .json file holds JSON lines: the first line is a whole object and the second starts another."""
    first, _, rest = start.lstrip("\ufeff").partition("\n")
    return first.startswith("{") and first.rstrip().endswith("}") and rest.lstrip().startswith("{")


def _looks_like_tags(start: str) -> bool:
    """Whether a text file holds CoNLL: every line but the last, perhaps cut, is blank or ends in a tag such as O or B-PER."""
    columns = [line.split() for line in start.splitlines()[:-1][:100] if line.strip()]
    return len(columns) >= 3 and all(len(words) >= 2 and _TAG.fullmatch(words[-1]) for words in columns)
