"""Parquet and csv as input of curation."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from luyen.core.errors import DamagedFile, DataError
from luyen.core.files import write_jsonl
from luyen.corpus.curate import CurateConfig, curate, read_documents
from luyen.corpus.sources import Reading
from luyen.corpus.tables import rows

CONFIG = CurateConfig(quality="none", heldout_fraction=0, max_document_bytes=5000)
WORDS = "river stone bridge paper boat children town old water wind light morning".split()  # noqa: SIM905


def made() -> list[dict[str, Any]]:
    generator = random.Random(0)
    texts = ["\n".join(" ".join(generator.choices(WORDS, k=9)) + ', "quoted".' for _ in range(6)) for _ in range(7)]
    return [{"id": f"r{index}", "text": text, "url": f"http://a.vn/{index}", "stars": str(index)} for index, text in enumerate(texts)]


def write_csv(path: Path, table: list[dict[str, Any]], delimiter: str = ",") -> None:
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(table)


def documents(source: Path, folder: Path, split: Any = "train") -> list[Any]:
    if not folder.exists():
        folder.mkdir()
        curate(CONFIG, source, folder)
    return [(document.id, document.text, document.url, document.meta) for document in read_documents(folder, split)]


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.tsv", "a.csv.gz", "A.PARQUET"])
def test_a_table_gives_what_json_lines_give(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    if "parquet" in name.lower():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made()), source)
    else:
        write_csv(source, made(), "\t" if ".tsv" in name else ",")
    write_jsonl(tmp_path / "a.jsonl", made())
    assert documents(source, tmp_path / "out") == documents(tmp_path / "a.jsonl", tmp_path / "lines")
    assert len(documents(source, tmp_path / "out")) == 7


def test_empty_cells_lists_and_large_texts(tmp_path: Path) -> None:
    table = made()[:2] + [{"id": "large", "text": "x y " * 20_000}, {"id": "none", "text": None}]
    table[0] |= {"score": float("nan"), "numbers": [1.0, float("nan")]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table, _schema()), tmp_path / "a.parquet")
    assert [row[0] for row in documents(tmp_path / "a.parquet", tmp_path / "out")] == ["r0", "r1"]
    assert {(row[3]["rule"], row[3]["source"]) for row in documents(tmp_path, tmp_path / "out", "dropped")} == {
        ("too_large", "a.parquet:3"), ("malformed", "a.parquet:4"),
    }  # fmt: skip


def _schema() -> Any:
    texts = [(name, pyarrow.string()) for name in ("id", "text", "url", "stars")]
    return pyarrow.schema([*texts, ("score", pyarrow.float64()), ("numbers", pyarrow.list_(pyarrow.float64()))])


def test_a_csv_row_with_too_many_cells_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\na,some words of a text\nb,some, words too many\n")
    assert [row[0] for row in documents(tmp_path / "a.csv", tmp_path / "out")] == ["a"]
    assert [row[3]["rule"] for row in documents(tmp_path, tmp_path / "out", "dropped")] == ["malformed"]


@pytest.mark.parametrize("keep", [10, 200, -10])
def test_a_parquet_file_that_is_not_whole_is_damaged(tmp_path: Path, keep: int) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made()), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:keep])
    with pytest.raises(DamagedFile, match=r"a\.parquet.*not a whole parquet file"):
        documents(tmp_path / "a.parquet", tmp_path / "out")


def test_a_quotation_mark_that_is_never_closed_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luyen.corpus.tables.FIELD_CHARACTERS", 1000)
    (tmp_path / "a.csv").write_text('id,text\na,"' + "some words\n" * 200)
    with pytest.raises(DamagedFile, match="table"):
        list(rows(tmp_path / "a.csv"))
    assert csv.field_size_limit() > 1000


VIETNAMESE = "Con thuyền nhỏ trôi dưới cây cầu đá cũ của thị trấn."


def dropped(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Place -> reason and exact bytes of each bad row."""
    found = {}
    for document in read_documents(folder, "dropped"):
        raw = base64.b64decode(document.meta["base64"]) if "base64" in document.meta else document.text.encode()
        assert document.meta["rule"] == "malformed"
        found[document.meta["source"]] = (document.meta["reason"], raw)
    return found


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_a_row_that_is_not_utf8_is_kept_byte_for_byte_and_says_what_to_do(tmp_path: Path, name: str) -> None:
    comma = "\t" if ".tsv" in name else ","
    bad = f'b{comma}"Le garçon\r\na traversé ""le pont"""\r\n'.encode("cp1252")
    lines = [f"id{comma}text\r\n".encode(), f"a{comma}{VIETNAMESE}\r\n".encode(), bad, f"c{comma}The end of it.\r\n".encode()]
    with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wb") as file:
        file.write(b"".join(lines))
    assert [row[:2] for row in documents(tmp_path / name, tmp_path / "out")] == [("a", VIETNAMESE), ("c", "The end of it.")]
    ((place, (reason, raw)),) = dropped(tmp_path / "out").items()
    assert raw == bad and place == f"{name}:2"
    assert reason == "not UTF-8: byte 0xe7 at byte 10 of the row; save the file as UTF-8"
    (tmp_path / "strict").mkdir()
    with pytest.raises(DataError, match=f"^{name}:2: not UTF-8.*save the file as UTF-8"):
        curate(CONFIG, tmp_path / name, tmp_path / "strict", Reading(strict=True))


def test_byte_order_marks_are_read_and_are_no_text(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be"):
        mark = "\ufeff" if encoding == "utf-16-be" else ""
        (tmp_path / "a.csv").write_bytes(f"{mark}id,text\na,{VIETNAMESE}\n".encode(encoding))
        assert [row[:2] for row in documents(tmp_path / "a.csv", tmp_path / encoding)] == [("a", VIETNAMESE)]
        (tmp_path / "b.csv").write_bytes(f"{mark}{VIETNAMESE}\n".encode(encoding))
        folder = tmp_path / f"{encoding}-places"
        folder.mkdir()
        curate(CONFIG, tmp_path / "b.csv", folder, Reading((("text", 1),)))
        assert [row[1] for row in documents(tmp_path, folder)] == [VIETNAMESE]


def test_a_table_without_a_header_has_bad_rows_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("garçon,x\n".encode("cp1252") + f"{VIETNAMESE},y\n".encode())
    (tmp_path / "out").mkdir()
    curate(CONFIG, tmp_path / "a.csv", tmp_path / "out", Reading((("text", 1),)))
    assert [row[1] for row in documents(tmp_path, tmp_path / "out")] == [VIETNAMESE]
    assert dropped(tmp_path / "out")["a.csv:1"][1] == "garçon,x\n".encode("cp1252")


def test_column_names_that_are_not_utf8_and_cut_utf16_are_damage(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("id,text,garçon\na,b,c\n".encode("cp1252"))
    with pytest.raises(DamagedFile, match="its column names are not UTF-8: byte 0xe7.*save the file as UTF-8"):
        documents(tmp_path / "a.csv", tmp_path / "out")
    (tmp_path / "a.csv").write_bytes(f"id,text\na,{VIETNAMESE}\n".encode("utf-16")[:-1])
    with pytest.raises(DamagedFile, match="not whole UTF-16"):
        documents(tmp_path / "a.csv", tmp_path / "2")


@pytest.mark.parametrize(("mark", "name"), [(",", "a.csv"), (";", "a.csv"), ("\t", "a.csv"), ("\t", "a.tsv")])
def test_the_delimiter_is_found_as_in_training_data(tmp_path: Path, mark: str, name: str) -> None:
    (tmp_path / name).write_text(f"text{mark}url\nOne two.{mark}u1\n")
    assert [json.loads(row.data) for row in rows(tmp_path / name)] == [{"text": "One two.", "url": "u1"}]


def test_utf_16_that_is_cut_in_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfea")
    with pytest.raises(DamagedFile, match="is not whole UTF-16 text"):
        list(rows(tmp_path / "a.csv"))
