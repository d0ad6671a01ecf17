"""Rows and files that used to end in a traceback, in a wrong form or in minutes of waiting."""

import contextlib
import json
import math
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from luyen.core import progress
from luyen.core.errors import ConfigError, DamagedFile, DataError
from luyen.core.files import open_bytes, read_jsonl, write_lines
from luyen.core.records import Conversation, Feedback, Labelled, Message, Plain
from luyen.data import rows_table
from luyen.data.formats import Dataset, ReadAccount, read
from luyen.data.inspect import inspect
from luyen.data.rejects import rejected_rows
from luyen.tokenizer.load import Tokenizer

GOOD_PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
GOOD_ANSWER = {"question": "q", "context": "c", "answers": ["c"]}
GOOD_CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "answers that start like a list": (GOOD_ANSWER, {"answers": "[1] see"}, "'answers' is text that is not JSON"),
    "answers as pandas prints them": (GOOD_ANSWER, {"answers": "{'text': array(['x'])}"}, "'answers' is text that is not JSON"),
    "answers nested": (GOOD_ANSWER, {"answers": "[" * 100_000}, "'answers' is text nested too deeply"),
    "a number as history": ({"instruction": "a", "output": "b"}, {"history": 5}, "history is a number, not a list"),
    "a margin of 400 digits": (GOOD_PAIR, {"margin": 10**400}, "the margin is 1000"),
    "turns nested": (GOOD_CHAT, {"messages": "[" * 100_000}, "messages is text nested too deeply"),
}


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_raised_is_a_rejected_row(tmp_path: Path, name: str) -> None:
    good, change, reason = BAD[name]
    account = read(write_jsonl(tmp_path / "a.jsonl", good, {**good, **change})).account
    assert (account.accepted, account.rejected) == (1, 1)
    assert account.problems[0].line == 2 and reason in account.problems[0].reason


@pytest.mark.parametrize("error", [ValueError("odd"), TypeError("odd"), OverflowError("odd"), RecursionError("odd"), KeyError("odd")])
def test_what_no_form_foresaw_is_a_rejected_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def check(*arguments: object) -> None:
        raise error

    path = write_jsonl(tmp_path / "a.jsonl", {"text": "### Human: a### Assistant: b"})
    monkeypatch.setattr("luyen.data.convert.check_turns", check)
    with pytest.raises(DataError, match=rf"a.jsonl:1: cannot be converted \({type(error).__name__}: .*odd"):
        read(path)


def test_a_number_of_5000_digits_in_a_list_is_one_bad_row(tmp_path: Path) -> None:
    number = "9" * 5000
    (tmp_path / "a.json").write_text(f'[{{"text": "x"}},\n{{"text": "y", "n": {number}}},\n{{"text": "z"}}]')
    dataset = read(tmp_path / "a.json", rejected=tmp_path / "rejected.jsonl")
    assert dataset.records == [Plain("x"), Plain("z")]
    ((facts, raw),) = rejected_rows(tmp_path / "rejected.jsonl")
    assert raw.decode() == f'{{"text": "y", "n": {number}}}' and facts["line"] == 2
    assert facts["reason"].startswith("not readable: Exceeds the limit")


def test_a_table_of_floats_may_hold_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "a", "score": 0.5}, {"text": "b", "score": math.nan}, {"text": " ", "score": math.nan}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.PARQUET")
    encoded: list[object] = []
    before = rows_table._as_json
    monkeypatch.setattr(rows_table, "_as_json", lambda value: encoded.append(value) or before(value))
    dataset = read(tmp_path / "a.PARQUET", rejected=tmp_path / "rejected.jsonl")
    assert dataset.records == [Plain("a"), Plain("b")]
    assert [raw for _, raw in rejected_rows(tmp_path / "rejected.jsonl")] == [b'{"score":NaN,"text":" "}']
    assert len(encoded) == 1, "only rows that are rejected are written as JSON"


def test_a_missing_class_of_a_table_is_no_class(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1.0}, {"text": "b", "label": math.nan}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    dataset = read(tmp_path / "a.parquet")
    assert dataset.records == [Labelled("a", "1.0")] and dataset.account.problems[0].reason == "'label' is nan, not a class"


TRUTHS: list[tuple[Any, Any]] = [(1, 0), ("1", "0"), ("True", "False"), (" true", "false"), (1.0, 0.0), ("1.0", "0.0"), ("good", "bad")]


@pytest.mark.parametrize(("good", "bad"), TRUTHS)
def test_judged_answers_are_feedback_whatever_holds_them(tmp_path: Path, good: object, bad: object) -> None:
    expected = [Feedback((Message("user", "p"),), (Message("assistant", "c"),), desirable) for desirable in (True, False)]
    rows = [{"prompt": "p", "completion": "c", "label": label} for label in (good, bad)]
    assert read(write_jsonl(tmp_path / "a.jsonl", *rows)).records == expected
    (tmp_path / "a.csv").write_text(f"prompt,completion,label\np,c,{good}\np,c,{bad}\n")
    assert read(tmp_path / "a.csv").records == expected


def test_a_label_that_is_no_judgement_makes_no_feedback(tmp_path: Path) -> None:
    assert not isinstance(read(write_jsonl(tmp_path / "a.jsonl", {"prompt": "p", "completion": "c", "label": 2})).records[0], Feedback)


def test_small_rows_behind_a_large_one_are_read_in_linear_time(tmp_path: Path) -> None:
    small = ['{"text": "y"}'] * 150_000
    (tmp_path / "a.json").write_text("[\n" + ",\n".join([json.dumps({"text": "x" * 4_000_000}), *small, '{"text": 5}']) + "]")
    started = time.process_time()
    dataset = read(tmp_path / "a.json")
    assert time.process_time() - started < 6
    assert dataset.origins[-1] == "a.json:150002" and dataset.account.problems[0].line == 150_003


def test_a_row_of_many_keys_is_checked_in_linear_time(tmp_path: Path) -> None:
    keys = [f'"k{number}": 1' for number in range(100_000)]
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{' + ", ".join([*keys, keys[-1]]) + "}\n{" + ", ".join(keys) + "}\n")
    started = time.process_time()
    account = read(tmp_path / "a.jsonl").account
    assert time.process_time() - started < 6
    assert account.problems[0].reason == "key 'k99999' stands twice" and account.rejected == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"text,caf\xe9\nx,y\n", "not UTF-8: byte 0xe9"),
        (b"\ntext,label\nx,y\n", "the header is blank"),
        (b",,\nx,y,z\n", "the header is blank"),
        (b'"text\nx\n', "not a table row"),
        (b"text,label, text\nx,y,z\n", "column 'text' stands twice"),
    ],
)
def test_a_header_that_cannot_name_the_columns_is_told(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"a.csv: .*{reason}"):
        read(tmp_path / "a.csv")


def test_columns_without_a_name_are_named_by_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",text,\n0,x,\n")
    dataset = read(tmp_path / "a.csv")
    assert dataset.records == [Plain("x")] and dataset.format.endswith("(not used: 1)")


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "c", "label": LONG},
        {**GOOD_PAIR, "margin": LONG},
        {**GOOD_PAIR, "grade": LONG},
        {"messages": [{"role": LONG, "content": "a"}]},
        {"messages": [{LONG: "a"}]},
    ],
)
def test_a_reason_does_not_repeat_a_megabyte(tmp_path: Path, row: dict[str, Any]) -> None:
    goods = {"prompt": {"prompt": "p", "completion": "c", "label": True}, "messages": GOOD_CHAT}
    good = GOOD_PAIR if "chosen" in row else goods[next(iter(row))]
    started = time.process_time()
    account = read(write_jsonl(tmp_path / "a.jsonl", good, good, row)).account
    assert account.rejected == 1 and len(account.problems[0].reason) < 400 and time.process_time() - started < 2
    assert "x" * 70 in account.problems[0].reason


def test_a_key_given_twice_is_quoted_in_short(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{{"{LONG}": 1, "{LONG}": 2}}\n')
    assert len(read(tmp_path / "a.jsonl").account.problems[0].reason) < 200


class Counting:
    """A display that adds up what tasks advance by."""

    total = 0.0

    @contextlib.contextmanager
    def task(self, name: str, total: float | None, unit: str) -> Iterator["Counting"]:
        yield self

    def advance(self, amount: float = 1.0) -> None:
        self.total += amount

    def note(self, text: str) -> None: ...

    def say(self, text: str) -> None: ...


def test_the_bar_ends_at_the_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    display = Counting()
    monkeypatch.setattr(progress, "_display", display)
    read(write_jsonl(tmp_path / "a.jsonl", 1, 2, *[{"text": "a"}] * 1234, 3))
    assert display.total == 1237


def test_a_suffix_in_capitals_is_the_same_suffix(tmp_path: Path) -> None:
    for suffix in (".GZ", ".Bz2", ".XZ", ".ZST"):
        path = tmp_path / f"a.jsonl{suffix}"
        write_lines(path, [b'{"text": "x"}'])
        assert b"text" not in path.read_bytes()[:8]
        assert read(path).records == [Plain("x")] and list(read_jsonl(path)) == [{"text": "x"}]


def test_a_line_of_a_table_over_the_limit_says_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\none\n" + b"z" * 300_000 + b"\n")
    dataset = read(tmp_path / "a.csv", rejected=tmp_path / "rejected.jsonl", max_row_bytes=100_000)
    assert dataset.account.problems[0].reason == "longer than the limit of 100,000 bytes; only its first 100,000 bytes are kept"
    assert next(rejected_rows(tmp_path / "rejected.jsonl"))[1] == b"z" * 100_000


def test_a_deflate_stream_that_is_broken_is_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    write_lines(path, [str(number).encode() * 40 for number in range(3000)])
    whole = bytearray(path.read_bytes())
    whole[10] |= 0b110  # block type 3, which does not exist
    path.write_bytes(bytes(whole))
    with pytest.raises(zlib.error):
        zlib.decompress(bytes(whole[10:]), -15)
    with pytest.raises(DamagedFile, match="a.jsonl.gz"), open_bytes(path) as stream:
        stream.read()


@pytest.mark.parametrize("length", [1, 0, -5])
def test_a_row_of_one_token_cannot_be_inspected(tokenizer: Tokenizer, length: int) -> None:
    turns = (Message("user", "a"), Message("assistant", "b"))
    for record in (Plain("hello"), Conversation(turns)):
        with pytest.raises(ConfigError, match=f"length.*found {length}.*at least 2"):
            inspect(Dataset([record], "toy", ReadAccount(), ["toy:1"]), tokenizer, length)
