"""What users give as data: every verb reads it by the same section `read`, keeps bad rows, and takes data sets of the hub."""

import json
import sys
from pathlib import Path

import huggingface_hub
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from alone import LOOP, lines, verb  # noqa: E402
from toy import write_recipe  # noqa: E402

from luyen.core import manifest, progress  # noqa: E402
from luyen.core.errors import DataError, UserError  # noqa: E402
from luyen.data.config import HeldOutConfig, ReadConfig  # noqa: E402
from luyen.data.rejects import rejected_rows  # noqa: E402
from luyen.recipe.documents import Texts  # noqa: E402
from luyen.recipe.graph import plan  # noqa: E402

SIZE = ("model.preset=llama-1m", "model.num_layers=1", "model.context_length=64")
BAD = b'{"text": "broken \xff"}\n'


class Said(progress._Silent):
    """Remembers what the user is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    display = Said()
    monkeypatch.setattr(progress, "_display", display)
    return display.lines


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "words.txt"
    text.write_text("\n".join(f"Sum the numbers of page {place} and return the result." for place in range(40)))
    return verb("tokenizer", folder / "run", f"data={text}", "vocab_size=300", "read.text_unit=line")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "words.txt").write_text("Sum the numbers of a page and return the result.")
    return verb("pretrain", folder / "run", f"data={folder / 'words.txt'}", f"tokenizer={tokenizer}", *SIZE, *LOOP)


def facts(folder: Path) -> dict[str, object]:
    return dict(manifest.verify(folder)["metrics"])


DOCUMENTS = [{"Body": f"Document {place} says that the sum of its numbers is {place}."} for place in range(30)]


@pytest.mark.parametrize("name", ["tokenizer", "pretrain"])
def test_columns_text_units_and_splits_reach_the_verbs_of_documents(name: str, tokenizer: Path, tmp_path: Path, said: list[str]) -> None:
    needs = ["vocab_size=300"] if name == "tokenizer" else [f"tokenizer={tokenizer}", *SIZE, *LOOP]
    table = lines(tmp_path / "table.jsonl", DOCUMENTS)
    read = facts(verb(name, tmp_path / "one", f"data={table}", "read.columns.text=Body", *needs))["read"]
    assert read["accepted"] == 30 and read["files"] == 1
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(str(row["Body"]) for row in DOCUMENTS))
    read = facts(verb(name, tmp_path / "two", f"data={book}", "read.text_unit=paragraph", *needs))["read"]
    assert read["accepted"] == 30
    assert any("documents to train on" in line and "held out" in line for line in said)
    assert facts(verb(name, tmp_path / "two", f"data={book}", *needs))["read"]["accepted"] == 1, "read.* decides what is up to date"
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        lines(folder / f"{split}-00000.jsonl", [{"text": f"{split} {place} of all"} for place in range(5)])
    read = facts(verb(name, tmp_path / "three", f"data={folder}", "read.split=train", *needs))["read"]
    assert read["accepted"] == 5 and read["skipped"] == ["test-00000.jsonl"]


def test_a_table_of_questions_is_learnt_by_its_own_column_names(base: Path, tmp_path: Path, said: list[str]) -> None:
    table = tmp_path / "x.csv"
    table.write_text("Nr,Question,Answer\n1,What is one and one?,two\n2,What is two and two?,four\n")
    columns = ("read.columns.prompt=Question", "read.columns.completion=Answer")
    done = verb("sft", tmp_path / "run", f"model={base}", f"data={table}", *columns, *LOOP)
    (source,) = facts(done)["data"].values()
    assert source["format"].startswith("prompt and completion") and source["tokens"]["rows"] == 2
    assert "  rows of 64 tokens" in said, "the model's context, which is less than 512"


def test_bad_rows_are_kept_by_every_verb_and_the_user_is_told_where(base: Path, tokenizer: Path, tmp_path: Path, said: list[str]) -> None:
    good = lines(tmp_path / "good.jsonl", [{"text": f"Document {place} is good."} for place in range(25)]).read_bytes()
    (tmp_path / "x.jsonl").write_bytes(good + BAD + b"[1, 2]\n")
    data, needs = tmp_path / "x.jsonl", [f"tokenizer={tokenizer}", *SIZE, *LOOP]
    done = {
        verb("tokenizer", tmp_path / "1", f"data={data}", "vocab_size=300"): "rejected.jsonl",
        verb("pretrain", tmp_path / "2", f"data={data}", *needs): "rejected.jsonl",
        verb("evaluate", tmp_path / "3", f"models.one={base}", f"heldout={data}", "sampling.max_new_tokens=2"): "rejected.jsonl",
        verb("sft", tmp_path / "4", f"model={base}", f"data={data}", f"heldout={data}", *LOOP): "rejected-0.jsonl",
    }
    for folder, name in done.items():
        assert [raw for _, raw in rejected_rows(folder / name)] == [BAD, b"[1, 2]\n"], folder
        assert name in manifest.verify(folder)["files"]
        assert f"2 rows rejected, kept in {folder / name}" in said
    assert (tmp_path / "4" / "sft" / "rejected-heldout.jsonl").is_file()
    (tmp_path / "all_bad.jsonl").write_bytes(BAD)
    with pytest.raises(DataError, match="none of its rows .1. can be used.*kept in .*rejected.jsonl"):
        verb("tokenizer", tmp_path / "5", f"data={tmp_path / 'all_bad.jsonl'}")
    with pytest.raises(DataError, match="x.jsonl:26"):
        verb("tokenizer", tmp_path / "6", f"data={data}", "read.strict=true")


def test_synth_reads_its_documents_so_too(tmp_path: Path) -> None:
    template = tmp_path / "soups.yaml"
    page = (Path(__file__).parents[2] / "docs" / "questions-template.md").read_text()
    template.write_text(page.split("```yaml\n")[1].split("```")[0])
    soups = page.split("```text\n")[1].split("```")[0]
    data = tmp_path / "soups.jsonl"
    data.write_bytes(json.dumps({"Recipe": soups}).encode() + b"\n" + BAD)
    done = verb(
        "synth", tmp_path / "run", f"source={data}", "read.columns.text=Recipe", f"template={template}", "heldout_entries=0", "invented=0"
    )
    assert facts(done)["taught"] == 2 and facts(done)["read"]["rejected"] == 1
    assert [raw for _, raw in rejected_rows(done / "rejected.jsonl")] == [BAD]


def test_a_data_set_of_the_hub_is_data(base: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    (copy / "data").mkdir(parents=True)
    for split in ("train", "test"):
        lines(copy / "data" / f"{split}-00000.jsonl", [{"text": f"{split} {place} of all documents of the hub."} for place in range(25)])

    def fetch(name: str, *, repo_type: str, **_: object) -> str:
        assert (name, repo_type) == ("owner/dataset", "dataset")
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    data = ("data=owner/dataset", "read.split=train")
    done = [
        verb("tokenizer", tmp_path / "1", *data, "vocab_size=300"),
        verb("pretrain", tmp_path / "2", *data, f"tokenizer={tokenizer}", *SIZE, *LOOP),
    ]
    assert [facts(folder)["read"]["accepted"] for folder in done] == [25, 25]
    (source,) = facts(verb("sft", tmp_path / "3", *data, f"model={base}", *LOOP))["data"].values()
    assert source["rows"]["accepted"] == 25


def test_evaluation_without_held_out_text_is_refused_and_its_device_makes_nothing_stale(
    base: Path, tmp_path: Path, said: list[str]
) -> None:
    few = lines(tmp_path / "few.jsonl", [{"text": "only one"}])
    with pytest.raises(DataError, match="yields no held-out text.*heldout_read.text_unit=paragraph"):
        verb("evaluate", tmp_path / "1", f"models.one={base}", f"heldout={few}")
    many = lines(tmp_path / "many.jsonl", [{"text": f"Document {place} is good."} for place in range(40)])
    settings = (f"models.one={base}", f"heldout={many}")
    verb("evaluate", tmp_path / "2", *settings)
    verb("evaluate", tmp_path / "2", *settings, "device=cpu")
    assert said[-1] == "evaluate: up to date"
    whole = json.loads((tmp_path / "2" / "evaluate" / "results.json").read_text())
    verb("evaluate", tmp_path / "2", *settings, "precision=bf16")
    assert said[-1] != "evaluate: up to date", "another precision gives other figures"
    half = json.loads((tmp_path / "2" / "evaluate" / "results.json").read_text())
    bits = [results["forgetting"][0]["heldout_bits_per_byte"] for results in (whole, half)]
    assert bits[0] != bits[1] and abs(bits[0] - bits[1]) < 0.05 * bits[0]
    with pytest.raises(UserError, match="device; found 'tpu'"):
        verb("evaluate", tmp_path / "3", *settings, "device=tpu")


def test_a_row_is_as_long_as_the_model_allows_unless_more_is_asked(base: Path, tmp_path: Path) -> None:
    table = lines(tmp_path / "x.jsonl", [{"prompt": "one and one", "completion": "two"}])
    with pytest.raises(UserError, match="batch.length; found 65; expected at most the model's 64. Set batch.length=64"):
        verb("sft", tmp_path / "run", f"model={base}", f"data={table}", "batch.length=65", *LOOP)
    path = write_recipe(tmp_path)
    values = yaml.safe_load(path.read_text())
    values["stages"]["base"]["batch"]["length"] = 129
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="batch.length 129 is more than the model's context_length 128"):
        plan(path, {})


def test_curation_takes_the_same_section_and_data_sets_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for split in ("train", "test"):
        lines(copy / f"{split}.jsonl", [{"Body": f"The {split} {n} runs under the old bridge of stone."} for n in range(30)])
    with open(copy / "train.jsonl", "ab") as file:
        file.write(b"{broken\n")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(copy))
    monkeypatch.chdir(tmp_path)
    settings = ("source=owner/dataset", "quality=none", "dedup.near=false")
    done = verb("curate", tmp_path / "run", *settings, "read.columns.text=Body", "read.split=train")
    assert facts(done)["documents"] == 31 and facts(done)["train"]["documents"] + facts(done)["heldout"]["documents"] == 30
    assert f"  1 row rejected, kept in {done / 'dropped-*.jsonl.zst'}" in said
    with pytest.raises(DataError, match="train.jsonl:31: not JSON"):
        verb("curate", tmp_path / "run", *settings, "read.columns.text=Body", "read.split=train", "read.strict=true")


def test_text_that_measures_forgetting_is_read_by_its_own_section(base: Path, tmp_path: Path, said: list[str]) -> None:
    """The same held-out documents as in pretraining on the same file, and an error instead of no figure."""
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Chapter {place} tells of the numbers." for place in range(60)))
    table = lines(tmp_path / "x.jsonl", [{"prompt": "one and one", "completion": "two"}])
    settings = (f"data={table}", f"model={base}", f"heldout={book}", *LOOP)
    with pytest.raises(DataError, match="yields no held-out text; found 1 document.*heldout_read.text_unit=paragraph"):
        verb("sft", tmp_path / "1", *settings)
    folder = verb("sft", tmp_path / "2", *settings, "heldout_read.text_unit=paragraph")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("heldout_bits_per_byte" in row for row in rows)
    asked, trained = HeldOutConfig(text_unit="paragraph"), ReadConfig(text_unit="paragraph")
    assert len(Texts(book, asked, tmp_path / "r").measured) == len(Texts(book, trained, tmp_path / "r").heldout) > 0


def test_rows_that_are_lost_are_told_with_why_and_what_to_do(base: Path, tmp_path: Path, said: list[str]) -> None:
    rows = [{"prompt": "one", "completion": "two"}, {"prompt": "one", "completion": "word " * 200}]
    table = lines(tmp_path / "x.jsonl", rows)
    verb("sft", tmp_path / "1", f"data={table}", f"model={base}", *LOOP)
    place = next(index for index, line in enumerate(said) if "1 row used" in line)
    assert "1 dropped (1 longer than 64 tokens)" in said[place]
    assert "of its answer tokens are lost. Set batch.length (rows are up to" in said[place + 1]
    long = lines(tmp_path / "long.jsonl", rows[1:])
    with pytest.raises(DataError, match=r"long.jsonl: no row is left to train on; found 1 longer than 64 tokens.*truncation=truncate"):
        verb("sft", tmp_path / "2", f"data={long}", f"model={base}", *LOOP)
