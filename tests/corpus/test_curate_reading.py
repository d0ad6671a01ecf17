"""Curation of files as their owner describes them: other column names, splits, lines and paragraphs; bad rows byte for byte."""

import base64
import json
import time
from pathlib import Path

import pytest

from luyen.core.errors import ConfigError, DataError
from luyen.corpus.curate import CurateConfig, curate, read_documents
from luyen.corpus.sources import Reading, SourceFile, items, list_files

CONFIG = CurateConfig(quality="none", heldout_fraction=0)
TEXTS = [f"The {word} runs under the old bridge of stone." for word in ("river", "train", "child", "water", "horse")]


def documents(source: Path, folder: Path, reading: Reading, config: CurateConfig = CONFIG) -> set[tuple[str, str]]:
    folder.mkdir()
    curate(config, source, folder, reading)
    return {(document.url, document.text) for document in read_documents(folder)}


def test_columns_have_the_names_that_the_owner_gives(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"Body": text, "Link": f"u{n}"}) + "\n" for n, text in enumerate(TEXTS)))
    (tmp_path / "a.csv").write_text("Body,Link\n" + "".join(f"{text},u{n}\n" for n, text in enumerate(TEXTS)))
    (tmp_path / "b.csv").write_text("".join(f"u{n},{text}\n" for n, text in enumerate(TEXTS)))
    wanted = {(f"u{n}", text) for n, text in enumerate(TEXTS)}
    named = Reading((("text", "Body"), ("url", "Link")))
    assert documents(tmp_path / "a.jsonl", tmp_path / "1", named) == wanted
    assert documents(tmp_path / "a.csv", tmp_path / "2", named) == wanted
    assert documents(tmp_path / "b.csv", tmp_path / "3", Reading((("text", 2), ("url", 1)))) == wanted
    assert all("Body" not in document.meta for document in read_documents(tmp_path / "1")), "the text is not there twice"
    with pytest.raises(ConfigError, match="unknown column 'txet'. Did you mean 'text'"):
        documents(tmp_path / "a.csv", tmp_path / "4", Reading((("txet", "Body"),)))


def test_a_text_file_gives_lines_or_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"{TEXTS[0]}\n{TEXTS[1]}\n\n \n{TEXTS[2]}\r\n\r\n{TEXTS[3]}", newline="")
    assert {text for _, text in documents(path, tmp_path / "1", Reading(unit="line"))} == set(TEXTS[:4])
    assert {text for _, text in documents(path, tmp_path / "2", Reading(unit="paragraph"))} == {"\n".join(TEXTS[:2]), *TEXTS[2:4]}
    assert len(documents(path, tmp_path / "3", Reading())) == 1
    (tmp_path / "long.txt").write_text("x" * 5000 + "\n" + TEXTS[0] + "\n" + "y " * 2500)
    small = CurateConfig(quality="none", heldout_fraction=0, max_document_bytes=1000)
    assert {text for _, text in documents(tmp_path / "long.txt", tmp_path / "4", Reading(unit="line"), small)} == {TEXTS[0]}
    assert [document.meta["rule"] for document in read_documents(tmp_path / "4", "dropped")] == ["too_large"] * 2
    (tmp_path / "wide.txt").write_text(TEXTS[0], encoding="utf-16")
    with pytest.raises(DataError, match="wide.txt is UTF-16 text"):
        documents(tmp_path / "wide.txt", tmp_path / "5", Reading(unit="line"))


def test_a_split_is_a_word_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "in" / "test").mkdir(parents=True)
    (tmp_path / "in" / "train-0.txt").write_text(TEXTS[0])
    (tmp_path / "in" / "test" / "a.txt").write_text(TEXTS[1])
    assert {text for _, text in documents(tmp_path / "in", tmp_path / "1", Reading(split="train"))} == {TEXTS[0]}
    assert {text for _, text in documents(tmp_path / "in", tmp_path / "2", Reading(split="test"))} == {TEXTS[1]}
    with pytest.raises(DataError, match="no files of the split 'dev'"):
        documents(tmp_path / "in", tmp_path / "3", Reading(split="dev"))


def test_bad_rows_are_kept_byte_for_byte_and_told_when_strict(tmp_path: Path) -> None:
    long, broken, other = b'{"text": "' + b"x" * 5000, b'{"text": "\xff\xfe"}', '["không phải đối tượng"]'.encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([json.dumps({"text": TEXTS[0]}).encode(), long, broken, other]) + b"\n")
    assert len(documents(path, tmp_path / "out", Reading())) == 1
    kept = set()
    for document in read_documents(tmp_path / "out", "dropped"):
        kept.add(base64.b64decode(document.meta["base64"]) if "base64" in document.meta else document.text.encode())
    assert kept == {long, broken, other}
    with pytest.raises(DataError, match=r"^a\.jsonl:2: not JSON.*leave out read.strict"):
        documents(path, tmp_path / "strict", Reading(strict=True))
    (tmp_path / "more.jsonl").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON"):
        two = CurateConfig(quality="none", processes=2)
        documents(path, tmp_path / "two", Reading(strict=True), two)


def test_a_paragraph_of_many_lines_is_held_once(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    seconds = []
    for megabytes in (2, 8):
        path.write_bytes(b"12 bytes it\n" * (megabytes * 1_000_000 // 12) + b"\nnext\n")
        started = time.process_time()
        big, small = items(SourceFile(path, path.name, "text"), 1 << 30, Reading(unit="paragraph"))
        seconds.append(time.process_time() - started)
        assert big.data == path.read_bytes()[:-7] and big.size == len(big.data) + 1 and (big.line, small.data) == (1, b"next")
    assert seconds[1] < 8 * max(seconds[0], 0.05), "four times as much takes about four times as long"
    path.write_bytes(b"12 bytes it\n" * 1000)
    (cut,) = items(SourceFile(path, path.name, "text"), 100, Reading(unit="paragraph"))
    assert cut.data == path.read_bytes()[:100] and cut.size == 12_000 and type(cut.data) is bytes


def test_what_is_read_as_it_is_takes_no_settings(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    documents(tmp_path / "a.txt", tmp_path / "corpus", Reading(unit="line"))
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl" / "pages-00000.jsonl").write_text("{broken\n")
    settings = {
        "read.text_unit=line": Reading(unit="line"),
        "read.columns.text=Body": Reading((("text", "Body"),)),
        "read.split=train": Reading(split="train"),
    }
    for source, kind in (("corpus", "a curated corpus"), ("crawl", "the pages of a crawl")):
        for told, reading in settings.items():
            with pytest.raises(ConfigError, match=rf"^read; found {told};.*{source} holds {kind}.*Leave it out") as raised:
                documents(tmp_path / source, tmp_path / f"out-{source}-{told}", reading)
            assert "\n" not in str(raised.value) and not any((tmp_path / f"out-{source}-{told}").iterdir()), "before any work"
    assert {text for _, text in documents(tmp_path / "corpus", tmp_path / "again", Reading(strict=True))} == set(TEXTS)
    with pytest.raises(DataError, match="not JSON.*leave out read.strict"):
        documents(tmp_path / "crawl", tmp_path / "strict", Reading(strict=True))


def test_a_split_of_a_single_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(TEXTS[0])
    with pytest.raises(DataError, match="read.split=train picks files of a folder; found the file .*train.txt"):
        list_files(tmp_path / "train.txt", "train")
    assert len(list_files(tmp_path, "train")[0]) == 1


@pytest.mark.parametrize(
    ("content", "config", "told"),
    [
        (b"\x00\x9f\x12 no text \x00\x01" * 50, CONFIG, "malformed 1.*a.txt: a NUL character in it, so this is no text.*Mend or convert"),
        (b"word " * 1000, CurateConfig(quality="none", max_document_bytes=1000), "5000 bytes, the limit is 1000.*Raise max_document_bytes"),
        (TEXTS[0].encode(), CurateConfig(quality="none", languages=("ru",)), "dropped.*Set languages"),
        (b"word " * 10, CurateConfig(quality="web"), "quality=reference is less strict"),
    ],
)  # fmt: skip
def test_when_nothing_is_left_the_reason_and_what_helps_are_told(tmp_path: Path, content: bytes, config: CurateConfig, told: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=told):
        documents(tmp_path / "a.txt", tmp_path / "out", Reading(), config)


def test_utf_16_is_text_and_no_binary(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0], encoding="utf-16")
    assert {text for _, text in documents(tmp_path / "a.txt", tmp_path / "out", Reading())} == {TEXTS[0]}
