"""Search by words: names in parts, ties, scripts, and files that are read back or refused."""

import json
import math
from pathlib import Path

import numpy
import pytest

from luyen.core.errors import DamagedFile, DataError
from luyen.core.manifest import seal
from luyen.core.records import Document
from luyen.retrieval.index import Index, Passage, split, words

PASSAGES = [
    Passage("1", "json", "JSON data. json.dumps and json.loads and json.dumps and json.dump: json.dumps everywhere."),
    Passage("2", "json.dumps", "dumps(obj)\n    Serialize obj to a JSON formatted str.", "http://x/json.html", "Serialize obj."),
    Passage("3", "math.isqrt", "isqrt(n)\n    Return the integer part of the square root."),
    Passage("4", "copy_file", "Copy one file to another place."),
    Passage("5", "tiếng Việt", "Học sâu và dữ liệu lớn."),
    Passage("6", "Русский", "Обучение больших моделей."),
]


@pytest.fixture(scope="module")
def index() -> Index:
    return Index.build(PASSAGES)


def titles(index: Index, query: str, k: int = 3) -> list[str]:
    return [hit.passage.title for hit in index.search(query, k)]


def test_words() -> None:
    assert words("What does json.dumps do?") == ["what", "does", "json.dumps", "json", "dumps", "do"]
    assert words("copy_file __init__") == ["copy_file", "copy", "file", "__init__", "init"]
    assert words("Việt học. ÉTÉ") == words("việt học été") == ["việt", "học", "été"]
    assert words("... --- !") == []


def test_a_name_finds_its_own_passage_before_those_that_mention_it(index: Index) -> None:
    assert titles(index, "What does json.dumps do?")[:2] == ["json.dumps", "json"]
    assert titles(index, "isqrt")[0] == "math.isqrt"
    assert titles(index, "copy a file")[0] == titles(index, "copy_file?")[0] == "copy_file"
    assert titles(index, "integer square root")[0] == "math.isqrt"


def test_any_script_and_no_words_in_common(index: Index) -> None:
    assert titles(index, "HỌC SÂU")[0] == "tiếng Việt"
    assert titles(index, "обучение")[0] == "Русский"
    assert index.search("zzz") == index.search("") == index.search("?!") == index.search("json", 0) == []


def test_score_is_lucene_bm25_by_hand() -> None:
    index = Index.build([Passage("a", "", "red red blue"), Passage("b", "", "green"), Passage("c", "", "blue green")])
    # "red": one of three documents has it, twice; its length is 3, the mean length is 2. idf = ln(1 + (3 - 1 + 0.5) / (1 + 0.5)).
    expected = math.log(1 + 2.5 / 1.5) * 2 / (2 + 1.5 * (1 - 0.75 + 0.75 * 3 / 2))
    (hit,) = index.search("red", 5)
    assert (hit.passage.id, hit.score) == ("a", pytest.approx(expected, rel=1e-5))


def test_equal_scores_keep_the_order() -> None:
    index = Index.build([Passage(str(number), "", "same words") for number in range(5)])
    assert [hit.passage.id for hit in index.search("words", 3)] == ["0", "1", "2"]


def test_saved_and_read_back_without_pickle(index: Index, tmp_path: Path) -> None:
    index.save(tmp_path / "one")
    index.save(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.suffix in (".npy", ".json", ".jsonl")
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        if path.suffix == ".npy":
            numpy.load(path, allow_pickle=False)
    read = Index.load(tmp_path / "one")
    for query in ("What does json.dumps do?", "square", "dữ liệu"):
        assert read.search(query) == index.search(query)
    assert Index.from_file(tmp_path / "one" / "passages.jsonl").search("square") == index.search("square")


def test_damaged_and_missing_files(index: Index, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no index"):
        Index.load(tmp_path)
    with pytest.raises(DataError, match="no file"):
        Index.from_file(tmp_path / "passages.jsonl")
    with pytest.raises(DataError, match="no passages to index"):
        Index.build([Passage("1", "?", "...")])
    index.save(tmp_path)
    lines = (tmp_path / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "passages.jsonl").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(DamagedFile, match="5 passages, 6 promised and 6 indexed"):
        Index.load(tmp_path)
    index.save(tmp_path)
    (tmp_path / "data.csc.index.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DamagedFile, match="cannot be read as an index"):
        Index.load(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"title": "x"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="rows that are no passages"):
        Index.from_file(tmp_path / "rows.jsonl")


def test_split_keeps_every_paragraph_under_its_heading() -> None:
    text = "Before.\n\n# First\n\nOne.\n\nTwo.\n\n## Second\n" + "Long. " * 30 + "\n\nAfter."
    passages = list(split([Document("d", text, "http://x", "Page")], max_characters=40))
    assert [(passage.title, passage.text) for passage in passages] == [
        ("Page", "Before."), ("Page: First", "One.\n\nTwo."), ("Page: Second", ("Long. " * 30).strip()), ("Page: Second", "After."),
    ]  # fmt: skip
    assert [passage.id for passage in passages] == ["d#0", "d#1", "d#2", "d#3"] and passages[0].url == "http://x"


def test_a_passage_is_given_only_when_it_has_to_do_with_the_question() -> None:
    index = Index.build(
        [
            Passage("1", "math.floor", "floor(x)\n    Return the floor of x as an Integral."),
            Passage("2", "math.ceil", "ceil(x)\n    Return the ceiling of x as an Integral."),
            Passage("3", "textwrap.shorten", "shorten(text)\n    Collapse and truncate the text, for example hello there."),
        ]
    )
    for question, title in (
        ("Could you explain to me what math.floor is used for?", "math.floor"),
        ("What does this: collapse and truncate the text?", "textwrap.shorten"),
    ):
        hit = index.relevant(question)
        assert hit is not None and hit.passage.title == title
    for question in ("Hello!", "What does math.frobnicate do?", "Tell me a story about dragons."):
        assert index.relevant(question) is None, question


@pytest.mark.parametrize("name", ["passages.jsonl", "index.json", "data.csc.index.npy", "vocab.index.json"])
def test_every_part_of_a_sealed_index_is_checked(index: Index, tmp_path: Path, name: str) -> None:
    """Sealed itself, or as the folder `index` of a sealed stage."""
    for folder, sealed in ((tmp_path / "one", tmp_path / "one"), (tmp_path / "two" / "index", tmp_path / "two")):
        index.save(folder)
        seal(sealed, "index")
        assert Index.load(folder).passages == index.passages
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        with pytest.raises(DamagedFile, match=name):
            Index.load(folder)
        (folder / name).unlink()
        with pytest.raises(DamagedFile, match=f"{name}: is missing"):
            Index.load(folder)


def test_passages_of_a_sealed_stage_are_checked(index: Index, tmp_path: Path) -> None:
    index.save(tmp_path)
    seal(tmp_path, "questions")
    path = tmp_path / "passages.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("Copy one file", "Delete a file"), encoding="utf-8")
    with pytest.raises(DamagedFile, match=r"passages\.jsonl: .*bytes|sha256"):
        Index.from_file(path)
    path.unlink()
    with pytest.raises(DamagedFile, match=r"passages\.jsonl: is missing"):
        Index.from_file(path)


def test_an_index_whose_replacement_was_cut_is_found_again(index: Index, tmp_path: Path) -> None:
    index.save(tmp_path / ".tmp-old-4194304-0-mine")
    assert Index.load(tmp_path / "mine").passages == index.passages
