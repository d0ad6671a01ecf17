"""Broken rows of every kind: each is named by file and line, kept byte for byte, and the counts add up.

The kinds are those of a long night with real data: cut JSON, wrong types, encodings, hostile nesting, roles out of order.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luyen.core.errors import DataError
from luyen.core.records import Conversation, Plain
from luyen.data.config import ReadConfig
from luyen.data.formats import read
from luyen.data.rejects import rejected_rows


def turns(*contents: str, roles: str = "ua") -> list[dict[str, str]]:
    names = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": names[role], "content": content} for role, content in zip(roles, contents, strict=True)]


def line(**row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


GOOD = line(messages=turns("Hỏi?", "Đáp."))
REJECTED: dict[str, tuple[bytes, str]] = {
    "cut": (GOOD[:40], "not JSON: Expecting ':' delimiter at column 41"),
    "wrong type": (line(messages="hello"), "messages is a text, not a list of turns"),
    "not an object": (b"[1, 2]", "a list, not an object"),
    "missing key": (line(message=turns("a", "b")), "messages is null"),
    "empty": (line(messages=[]), "messages is empty"),
    "NUL": (GOOD[:-3] + b"\0" + GOOD[-3:], "a NUL byte"),
    "escaped NUL": (line(messages=turns("a\0", "b")), "a NUL character"),
    "lone surrogate": (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "lone surrogate U+D83D"),
    "bad UTF-8": (GOOD[:-3] + b"\xff" + GOOD[-3:], "not UTF-8: byte 0xff"),
    "UTF-16": ('{"messages": 1}'.encode("utf-16-le"), "a NUL byte (UTF-16"),
    "NaN": (GOOD[:-1] + b', "weight": NaN}', "NaN, which is not JSON"),
    "duplicate key": (GOOD[:-1] + b', "messages": []}', "key 'messages' stands twice"),
    "deep": (b'{"messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deeply"),
    "wrong role order": (line(messages=turns("b", "a", roles="au")), "wrong role order: turn 1 is assistant at the start"),
    "no answer": (line(messages=turns("a", "b", "c", roles="uau")), "wrong role order: the last turn is user"),
    "unknown role": (line(messages=[{"role": "usr", "content": "a"}]), "has the role 'usr'. Did you mean 'user'"),
    "empty answer": (line(messages=turns("a", " ")), "an empty answer"),
    "trailing garbage": (GOOD + b" xyz", "not JSON: Extra data"),
    "blank line": (b"", "a blank line"),
    "huge number": (GOOD[:-1] + b', "n": ' + b"9" * 5000 + b"}", "not readable: Exceeds the limit"),
}
NOTED = {
    "BOM": (b"\xef\xbb\xbf" + GOOD, "byte order marks removed"),
    "CRLF": (GOOD + b"\r", "CRLF line ends"),
    "1 MB": (line(messages=turns("a", "b" * 1_000_001)), "rows over 1,000,000 bytes"),
}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
BAD_PAIRS = {
    "equal": (line(**{**PAIR, "rejected": "b"}), "chosen and rejected are equal"),
    "negative margin": (line(**PAIR, margin=-0.5), "a negative margin (-0.5)"),
    "margin of text": (line(**PAIR, margin="wide"), "the margin is 'wide', not a number"),
    "margin not finite": (line(**PAIR)[:-1] + b', "margin": 1e999}', "the margin is inf, not a number"),
    "grade": (line(**PAIR, grade="fine"), "the grade is 'fine', not one of significantly_better"),
    "safety": (line(**PAIR, safety="rejected safe"), "the safety is 'rejected safe', not one of chosen_safe"),
    "empty answer": (line(**{**PAIR, "chosen": ""}), "an empty answer"),
    "missing": (line(prompt="a", chosen="b"), "'rejected' is missing"),
    "no prompt": (line(chosen="b", rejected="c"), "there is no prompt"),
}


@pytest.mark.parametrize("kind", REJECTED)
def test_each_kind_is_rejected_with_its_line_and_bytes(tmp_path: Path, kind: str) -> None:
    raw, reason = REJECTED[kind]
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + raw + b"\n" + GOOD + b"\n")
    dataset = read(tmp_path / "a.jsonl", rejected=tmp_path / "rejected.jsonl")
    assert dataset.account.as_dict()["rows"] == 3 and (dataset.account.accepted, dataset.account.rejected) == (2, 1)
    (problem,) = dataset.account.problems
    assert (problem.file, problem.line) == ("a.jsonl", 2) and reason in problem.reason
    ((facts, kept),) = rejected_rows(tmp_path / "rejected.jsonl")
    assert kept == raw + b"\n" and (facts["file"], facts["line"], facts["reason"]) == ("a.jsonl", 2, problem.reason)
    with pytest.raises(DataError, match="^a.jsonl:2: ") as raised:
        read(tmp_path / "a.jsonl", ReadConfig(strict=True))
    assert raised.value.exit_code == 2 and "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", NOTED)
def test_harmless_kinds_are_accepted_and_noted(tmp_path: Path, kind: str) -> None:
    raw, note = NOTED[kind]
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + raw + b"\n")
    dataset = read(tmp_path / "a.jsonl", ReadConfig(strict=True))
    assert dataset.account.accepted == 2 and dataset.account.notes == {note: 1}
    assert any(line.startswith("note: 1 ") for line in dataset.report())


@pytest.mark.parametrize("kind", BAD_PAIRS)
def test_bad_preference_pairs(tmp_path: Path, kind: str) -> None:
    raw, reason = BAD_PAIRS[kind]
    (tmp_path / "a.jsonl").write_bytes(line(**PAIR) + b"\n" + raw + b"\n")
    account = read(tmp_path / "a.jsonl").account
    assert (account.accepted, account.rejected) == (1, 1) and reason in account.problems[0].reason
    nearest = "the nearest form chosen/rejected (preference); 'rejected' is missing"
    assert account.problems[0].nearest == (nearest if kind == "missing" else "")


def test_transcripts_whose_prompts_differ(tmp_path: Path) -> None:
    good = line(chosen="\n\nHuman: a\n\nAssistant: b", rejected="\n\nHuman: a\n\nAssistant: c")
    bad = line(chosen="\n\nHuman: a\n\nAssistant: b", rejected="\n\nHuman: x\n\nAssistant: c")
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + bad + b"\n")
    assert "different prompts" in read(tmp_path / "a.jsonl").account.problems[0].reason


def make_rows(count: int, bad: int, path: Path) -> tuple[int, list[bytes]]:
    """A file of `count` lines of which `bad` are of the kinds above, in random places; returns accepted and the rejected lines."""
    generator = random.Random(0)
    kinds = [raw for raw, _ in (*REJECTED.values(), *NOTED.values())]
    places = set(generator.sample(range(10, count), bad))
    small = [raw for raw in kinds if len(raw) < 100_000]
    rejected: list[bytes] = []
    with open(path, "wb") as out:
        for number in range(count):
            turn = kinds if len(rejected) < 500 else small  # a few long rows are enough
            raw = turn[len(rejected) % len(turn)] if number in places else GOOD
            if number in places:
                rejected.append(raw)
            out.write(raw + b"\n")
    expected = [raw + b"\n" for raw in rejected if raw not in {noted for noted, _ in NOTED.values()}]
    return count - len(expected), expected


def check_many(tmp_path: Path, count: int, bad: int) -> None:
    accepted, expected = make_rows(count, bad, tmp_path / "a.jsonl")
    dataset = read(tmp_path / "a.jsonl", rejected=tmp_path / "rejected.jsonl")
    assert len(dataset.records) == dataset.account.accepted == accepted
    assert dataset.account.accepted + dataset.account.rejected == count
    assert sum(dataset.account.reasons.values()) == len(expected)
    kept = list(rejected_rows(tmp_path / "rejected.jsonl"))
    assert [raw for _, raw in kept] == expected
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    assert all(lines[facts["line"] - 1] == raw for facts, raw in kept if not raw.endswith(b"\r\n") and b"\r" not in raw)
    before = (tmp_path / "rejected.jsonl").read_bytes()
    read(tmp_path / "a.jsonl", rejected=tmp_path / "rejected.jsonl")
    assert (tmp_path / "rejected.jsonl").read_bytes() == before


def test_two_thousand_rows_with_two_hundred_broken(tmp_path: Path) -> None:
    check_many(tmp_path, 2000, 200)


@pytest.mark.slow
def test_a_hundred_thousand_rows_with_ten_thousand_broken(tmp_path: Path) -> None:
    check_many(tmp_path, 100_000, 10_000)


def huge_line(path: Path, megabytes: int, tail: bytes) -> None:
    with open(path, "wb") as out:
        out.write(GOOD + b"\n")
        for _ in range(megabytes):
            out.write(b"x" * (1 << 20))
        out.write(tail)


MEASURED = """
import resource, sys
from pathlib import Path
from luyen.data.formats import read
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1 << 20)
before = peak()
account = read(sys.argv[1], rejected=Path(sys.argv[2])).account
print(account.accepted, account.rejected, peak() - before, account.problems[0].reason)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv", "a.conll"])
def test_a_row_over_the_limit_is_kept_without_being_held(tmp_path: Path, name: str) -> None:
    content: Callable[[bytes], bytes] = {
        "a.jsonl": lambda big: GOOD + b"\n" + big + b"\n" + GOOD + b"\n",
        "a.json": lambda big: b"[" + GOOD + b',\n"' + big,
        "a.txt": lambda big: b"one\n" + big + b"\ntwo\n",
        "a.csv": lambda big: b"text\none\n" + big + b"\ntwo\n",
        "a.conll": lambda big: b"one O\n\n" + big + b"\n\ntwo O\n",
    }[name]
    big = b"z" * 2_000_001
    (tmp_path / name).write_bytes(content(big))
    dataset = read(tmp_path / name, rejected=tmp_path / "rejected.jsonl", max_row_bytes=100_000)
    ((facts, kept),) = rejected_rows(tmp_path / "rejected.jsonl")
    assert facts["line"] == (3 if name in ("a.csv", "a.conll") else 2)
    assert dataset.account.rejected == 1 and dataset.account.accepted >= 1
    if name != "a.csv":
        assert kept.strip(b'"\n') == big
    assert dataset.origins[-1] != dataset.origins[0] or name in ("a.json", "a.txt")


@pytest.mark.slow
def test_a_gibibyte_without_a_line_end_takes_bounded_memory_and_time(tmp_path: Path) -> None:
    huge_line(tmp_path / "a.jsonl", 1024, b"")
    started = time.monotonic()
    command = [sys.executable, "-c", MEASURED, tmp_path / "a.jsonl", tmp_path / "rejected.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    accepted, rejected, mebibytes, reason = done.stdout.split(maxsplit=3)
    assert (accepted, rejected) == ("1", "1") and "longer than the limit of 67,108,864 bytes" in reason
    assert int(mebibytes) < 512
    assert (tmp_path / "rejected.jsonl").stat().st_size > (1 << 30) * 4 // 3
    assert time.monotonic() - started < 60  # a few seconds where the disk is idle


def test_utf16_files_are_read_and_their_bad_rows_kept_as_they_were(tmp_path: Path) -> None:
    text = GOOD.decode() + '\r\n{"messages": 1}\r\n' + GOOD.decode() + "\r\n"
    for encoding in ("utf-16-le", "utf-16-be"):
        raw = ("\ufeff" + text).encode(encoding)
        (tmp_path / "a.jsonl").write_bytes(raw)
        dataset = read(tmp_path / "a.jsonl", rejected=tmp_path / "rejected.jsonl")
        assert len(dataset.records) == 2 and isinstance(dataset.records[0], Conversation)
        assert dataset.records[0].messages[1].content == "Đáp."
        ((_, kept),) = rejected_rows(tmp_path / "rejected.jsonl")
        assert kept == '{"messages": 1}\r\n'.encode(encoding)
        (tmp_path / "a.jsonl").write_bytes(raw[:-3])
        assert read(tmp_path / "a.jsonl").account.rejected == 2  # cut in the middle of a character


def test_a_list_that_breaks_off_keeps_the_rest(tmp_path: Path) -> None:
    text = b'[{"text": "x"},\n {"text": "\xff"},\n {"text": "y"},\n {"text": z}, {"text": "w"}]'
    (tmp_path / "a.json").write_bytes(text)
    dataset = read(tmp_path / "a.json", rejected=tmp_path / "rejected.jsonl")
    assert dataset.records == [Plain("x"), Plain("y")]
    assert [problem.line for problem in dataset.account.problems] == [2, 4]
    assert [raw for _, raw in rejected_rows(tmp_path / "rejected.jsonl")] == [b'{"text": "\xff"}', b'{"text": z}, {"text": "w"}]']
    (tmp_path / "a.json").write_bytes(b'[{"text": "x"}] {"text": "y"}')
    assert read(tmp_path / "a.json").account.rejected == 1


def test_a_number_at_the_border_of_two_reads_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"text": "x"},' + b" " * ((1 << 16) - 20) + b"1234567890]")
    read(tmp_path / "a.json", rejected=tmp_path / "rejected.jsonl")
    assert [raw for _, raw in rejected_rows(tmp_path / "rejected.jsonl")] == [b"1234567890"]


def test_a_bad_line_of_text_leaves_the_text_around_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("một\n".encode() + b"\xff\n" + b"hai\n")
    dataset = read(tmp_path / "a.txt")
    assert dataset.records == [Plain("một\nhai\n")] and dataset.account.problems[0].line == 2


def test_words_and_spaces_without_end(tmp_path: Path) -> None:
    row = line(messages=turns("a" * 400_000 + " " * 25_000, "b"))
    (tmp_path / "a.jsonl").write_bytes(row + b"\n" + b" " * 25_000 + b"\n")
    started = time.monotonic()
    dataset = read(tmp_path / "a.jsonl")
    assert (dataset.account.accepted, dataset.account.rejected) == (1, 1) and time.monotonic() - started < 5
