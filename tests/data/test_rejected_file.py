"""Where bad rows are kept: never over data, never inside it, never over a file that is not ours, and only when the reading went well."""

import json
import os
from pathlib import Path

import pytest

from luyen.core.errors import DataError
from luyen.core.manifest import clean_up
from luyen.data.config import ReadConfig
from luyen.data.formats import read
from luyen.data.rejects import Problem, Rejects, rejected_rows
from luyen.data.source import RawRow

GOOD, BAD = b'{"text": "a"}\n', b'{"text": "\xff"}\n'


def data_file(path: Path, content: bytes = GOOD + BAD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def refused(data: Path, rejected: Path, match: str) -> None:
    """Refused in one line, and nothing on the disk is touched."""
    before = {path: path.read_bytes() for path in data.parent.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=match) as raised:
        read(data, rejected=rejected)
    assert "\n" not in str(raised.value) and "rejected" in str(raised.value)
    assert {path: path.read_bytes() for path in data.parent.rglob("*") if path.is_file()} == before


def test_the_data_file_itself_is_never_the_rejected_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_file(tmp_path / "a.jsonl")
    refused(data, data, "is read as data")
    monkeypatch.chdir(tmp_path)
    refused(data, Path("a.jsonl"), "is read as data")
    refused(data, tmp_path / "." / "x" / ".." / "a.jsonl", "is read as data")
    (tmp_path / "soft.jsonl").symlink_to(data)
    refused(data, tmp_path / "soft.jsonl", "is read as data")
    refused(tmp_path / "soft.jsonl", data, "is read as data")
    os.link(data, tmp_path / "hard.jsonl")
    refused(data, tmp_path / "hard.jsonl", "is read as data")
    empty = data_file(tmp_path / "empty.jsonl", b"")
    refused(empty, empty, "is read as data")


def test_a_rejected_file_that_the_next_reading_would_take_for_data_is_refused(tmp_path: Path) -> None:
    data = data_file(tmp_path / "in" / "deep" / "a.jsonl").parent.parent
    for name in ("deep/a.jsonl", "bad.jsonl", "deep/bad.jsonl", "new/bad.txt", "bad.jsonl.gz"):
        refused(data, data / name, "data")
    (tmp_path / "link").symlink_to(data)
    refused(data, tmp_path / "link" / "bad.jsonl", "lies in the data folder")
    refused(tmp_path / "link", data / "bad.jsonl", "lies in the data folder")
    (data / "out.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    refused(data, data / "out.jsonl", "lies in the data folder")
    for name in ("rejected.jsonl", ".bad.jsonl", "_bad/bad.jsonl", "bad.log"):
        read(data, rejected=data / name)
        assert [raw for _, raw in rejected_rows(data / name)] == [BAD]
    read(data / "deep" / "a.jsonl", rejected=data / "deep" / "bad.jsonl")
    assert (data / "deep" / "bad.jsonl").is_file(), "beside a single file nothing else is read"


@pytest.mark.parametrize(
    "content",
    [GOOD, b"my notes\n", b'{"file": "a", "line": 1}\n', b'{"file": "a.py", "line": 1, "reason": "unused import"}\n', b"\n", b"\xff\xfe"],
)
def test_a_file_that_is_not_ours_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    data = data_file(tmp_path / "a.jsonl")
    refused(data, data_file(tmp_path / "other.jsonl", content), "is not a file of rejected rows")


def test_what_is_no_plain_file_is_never_replaced(tmp_path: Path) -> None:
    data = data_file(tmp_path / "a.jsonl")
    (tmp_path / "folder").mkdir()
    refused(data, Path("/"), "is not a file of rejected rows")
    refused(data, tmp_path / "folder", "is not a file of rejected rows")
    refused(data, data_file(tmp_path / "plain") / "bad.jsonl", "is not a folder")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is not a file of rejected rows"):
        read(data, rejected=tmp_path / "pipe")


def test_our_own_file_is_replaced_and_removed_when_nothing_was_rejected(tmp_path: Path) -> None:
    data, kept = data_file(tmp_path / "a.jsonl"), tmp_path / "bad.jsonl"
    read(data, rejected=kept)
    data.write_bytes(GOOD + b"[1]\n" + b'["' + b"x" * 200_000 + b'"]\n')
    read(data, rejected=kept)
    assert [raw[:4] for _, raw in rejected_rows(kept)] == [b"[1]\n", b'["xx']
    data.write_bytes(b'["' + b"x" * 200_000 + b'"]\n' + GOOD)
    for _ in range(2):  # its first line is long
        read(data, rejected=kept, max_row_bytes=100_000)
    data.write_bytes(GOOD)
    read(data, rejected=kept)
    assert left(tmp_path) == {"a.jsonl"}
    kept.touch()
    read(data, rejected=kept)
    assert left(tmp_path) == {"a.jsonl"}, "an empty file is ours"


def test_rejected_rows_appear_whole_and_only_when_the_reading_went_well(tmp_path: Path) -> None:
    kept, row = tmp_path / "bad.jsonl", RawRow(1, raw=(BAD,))
    kept.write_text("")
    before = kept.read_bytes()
    with Rejects(kept, strict=False) as rejects:
        rejects.add(Problem("a", 1, "no"), row)
        assert kept.read_bytes() == before and len(left(tmp_path)) == 2, "until the end they are in a temporary file"
    assert [raw for _, raw in rejected_rows(kept)] == [BAD] and left(tmp_path) == {"bad.jsonl"}
    before = kept.read_bytes()
    with pytest.raises(KeyboardInterrupt), Rejects(kept, strict=False) as rejects:
        rejects.add(Problem("a", 2, "no"), row)
        raise KeyboardInterrupt
    assert kept.read_bytes() == before and left(tmp_path) == {"bad.jsonl"}


def test_what_a_kill_left_is_cleaned_up_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    kept, row = tmp_path / "bad.jsonl", RawRow(1, raw=(BAD,))
    with Rejects(kept, strict=False) as rejects:
        rejects.add(Problem("a", 1, "no"), row)
        clean_up(tmp_path)
    assert left(tmp_path) == {"bad.jsonl"}
    child = os.fork()
    if child == 0:
        Rejects(kept, strict=False).add(Problem("a", 1, "no"), row)
        os._exit(0)
    os.waitpid(child, 0)
    assert len(left(tmp_path)) == 2
    clean_up(tmp_path)
    assert left(tmp_path) == {"bad.jsonl"}


def test_a_reading_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    data, kept = data_file(tmp_path / "a.jsonl", BAD + b'{"x": 1}\n'), tmp_path / "bad.jsonl"
    with pytest.raises(DataError, match="no known form"):
        read(data, rejected=kept)
    assert left(tmp_path) == {"a.jsonl"}
    data.write_bytes(GOOD + BAD)
    with pytest.raises(DataError, match="not UTF-8"):
        read(data, ReadConfig(strict=True), rejected=kept)
    assert left(tmp_path) == {"a.jsonl"}
    data.write_bytes(BAD)
    with pytest.raises(DataError, match="none of its rows .1. can be used.*kept in"):
        read(data, rejected=kept)
    assert json.loads(kept.read_text())["line"] == 1 and left(tmp_path) == {"a.jsonl", "bad.jsonl"}


def test_a_split_picks_files_of_a_folder(tmp_path: Path) -> None:
    data = data_file(tmp_path / "train.jsonl", GOOD)
    with pytest.raises(DataError, match="read.split.*picks files of a folder"):
        read(data, ReadConfig(split="train"))
    assert len(read(tmp_path, ReadConfig(split="train")).records) == 1
