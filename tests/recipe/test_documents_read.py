"""Documents of a corpus or of plain files: what is held out, and settings that would be ignored."""

import json
from pathlib import Path

import pytest

from luyen.core.errors import ConfigError, DataError
from luyen.core.records import Plain
from luyen.corpus.curate import CurateConfig, curate
from luyen.data.config import HeldOutConfig, ReadConfig
from luyen.recipe.documents import Texts, read_whole


def plain(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts(path: Path, config: ReadConfig | None = None, section: str = "read") -> Texts:
    return Texts(path, config or ReadConfig(), path.parent / "rejected.jsonl", section)


def corpus(folder: Path, fraction: float) -> Path:
    words = ("river", "train", "child", "water", "horse", "paper", "light")
    source = plain(folder / "source.jsonl", [f"The {word} runs under the old bridge of stone." for word in words])
    (folder / "corpus").mkdir()
    curate(CurateConfig(quality="none", heldout_fraction=fraction), source, folder / "corpus")
    return folder / "corpus"


@pytest.mark.parametrize(
    ("told", "config"),
    [
        ("text_unit=paragraph", ReadConfig(text_unit="paragraph")),
        ("columns.text=Body", ReadConfig(columns={"text": "Body"})),
        ("split=train", ReadConfig(split="train")),
        ("columns.text=1 read.split=dev", ReadConfig(split="dev", columns={"text": 1})),
    ],
)
def test_a_corpus_takes_no_settings_and_says_so_before_any_work(tmp_path: Path, told: str, config: ReadConfig) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "funnel.json").write_text("{}")
    for section in ("read", "heldout_read"):
        named = told.replace("read.", f"{section}.")
        match = (
            rf"^{section}; found {section}\.{named}; expected nothing: .*corpus is a curated corpus, which is read as it is. Leave it out"
        )
        with pytest.raises(ConfigError, match=match) as raised:
            texts(tmp_path / "corpus", config, section)
        assert "\n" not in str(raised.value)


def test_a_corpus_is_always_read_strictly(tmp_path: Path) -> None:
    path = corpus(tmp_path, 0.2)
    assert len(texts(path, ReadConfig(strict=True)).train) + len(texts(path).heldout) == 7


def test_text_to_measure_on_is_never_silently_nothing(tmp_path: Path) -> None:
    few = plain(tmp_path / "few.jsonl", [f"text {place}" for place in range(19)])
    assert texts(few).heldout == [] and len(texts(few).train) == 19
    match = (
        "few.jsonl yields no held-out text; found 19 documents; expected at least 20 .one in twenty is held out.. "
        "Give a curated corpus or a larger file; heldout_read.text_unit=paragraph"
    )
    with pytest.raises(DataError, match=match) as raised:
        _ = texts(few, section="heldout_read").measured
    assert "\n" not in str(raised.value)
    alike = plain(tmp_path / "alike.jsonl", ["the same"] * 25)
    assert len(texts(alike).train) == 25
    with pytest.raises(DataError, match="found 25 documents with the same text"):
        _ = texts(alike).measured
    many = texts(plain(tmp_path / "many.jsonl", [f"text {place}" for place in range(40)]))
    assert many.measured == many.heldout != []


def test_a_corpus_that_held_nothing_out_says_so(tmp_path: Path) -> None:
    path = corpus(tmp_path, 0)
    assert texts(path).heldout == []
    with pytest.raises(
        DataError, match="corpus yields no held-out text; found 7 documents to train on.*Curate it again with heldout_frac"
    ) as raised:
        _ = texts(path).measured
    assert "text_unit" not in str(raised.value), "a corpus takes no settings"


@pytest.mark.parametrize("start", range(0, 400, 20))
def test_twenty_texts_always_hold_some_out_and_never_all(tmp_path: Path, start: int) -> None:
    names = [f"text {place}" for place in range(start, start + 20)]
    found = texts(plain(tmp_path / "a.jsonl", names))
    assert found.heldout and found.train and len(found.heldout) + len(found.train) == 20
    turned = texts(plain(tmp_path / "b.jsonl", names[::-1]))
    assert {document.text for document in turned.heldout} == {document.text for document in found.heldout}
    two = texts(plain(tmp_path / "c.jsonl", names[:2] * 10))
    assert len(two.heldout) == len(two.train) == 10, "all copies of a text stand on one side"


def test_all_documents_of_files_that_nothing_was_trained_on(tmp_path: Path) -> None:
    few = plain(tmp_path / "few.jsonl", ["one", "two", "three"])
    whole = texts(few, HeldOutConfig(all_documents=True), "heldout_read")
    assert [document.text for document in whole.measured] == ["one", "two", "three"] and whole.train == []
    many = plain(tmp_path / "many.jsonl", [f"text {place}" for place in range(60)])
    assert texts(many, HeldOutConfig()).measured == texts(many).heldout
    with pytest.raises(ConfigError, match="heldout_read.all_documents=true"):
        texts(corpus(tmp_path, 0.3), HeldOutConfig(all_documents=True), "heldout_read")


def test_a_corpus_as_training_data_is_its_documents_for_training(tmp_path: Path) -> None:
    folder = corpus(tmp_path, 0.3)
    found = read_whole(folder, ReadConfig(), tmp_path / "rejected.jsonl")
    assert [record.text for record in found.records if isinstance(record, Plain)] == [document.text for document in texts(folder).train]
    with pytest.raises(ConfigError, match="read.split=heldout"):
        read_whole(folder, ReadConfig(split="heldout"), tmp_path / "rejected.jsonl")
