"""`luyen inspect` as a person meets it: what may be named as data and as model, the limit, and rows that hold no answer."""

import json
from pathlib import Path

import pytest
import yaml
from toy_models import write_model, write_tokenizer

from luyen.cli import inspect as command
from luyen.cli.arguments import field_help
from luyen.core import manifest
from luyen.core.errors import UserError
from luyen.data.config import ReadConfig
from luyen.tokenizer import folder as tokenizer_folder

CHAT = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]}


def write_rows(path: Path, *rows: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a questions stage, a model with 100 tokens of context, a tokenizer and pages."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    write_rows(folder / "questions" / "train.jsonl", CHAT)
    write_rows(folder / "questions" / "evaluation.jsonl", {"question": "Why?"})
    write_model(folder / "chat" / "model", context=100)
    manifest.seal(folder / "chat", "model")
    write_tokenizer(folder / "tokenizer")
    write_model(folder / "large", context=4096)
    write_rows(folder / "pages" / "pages-00000.jsonl", {"url": "x"})
    manifest.seal(folder / "pages", "pages")
    stages = {"questions": {"do": "synth"}, "chat": {"do": "sft"}}
    (folder / "recipe.resolved.yaml").write_text(yaml.safe_dump({"version": 1, "name": "mine", "stages": stages}))
    return folder


def inspect(*words: object, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    command._inspect(tuple(map(str, words)))
    return capsys.readouterr().out


def refused(*words: object) -> str:
    with pytest.raises(UserError) as error:
        command._inspect(tuple(map(str, words)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_limit_and_where_it_comes_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run / "questions"
    assert f"limit 100: the context of {run}/chat/model" in inspect(data, f"model={run}/chat", capsys=capsys)
    assert "limit 512: the context of" in (out := inspect(data, f"model={run}/large", capsys=capsys)) and "is 4,096, so" in out
    assert "names no context" in inspect(data, f"model={run}/tokenizer", capsys=capsys)
    given = inspect(data, f"model={run}/large", "length=77", capsys=capsys)
    assert "limit 77\n" in given and "limit 77:" not in given
    assert "train.jsonl:1 is too long" in refused(data, f"model={run}/chat", "length=4", "truncation=raise")


def test_a_run_is_data_by_its_questions_and_a_model_by_its_last(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data in (run, run / "questions", run / "questions" / "train.jsonl"):
        out = inspect(data, f"model={run}", capsys=capsys)
        assert "{+That." in out and "1 row in 1 file" in out, "evaluation.jsonl is not read"


def test_what_is_no_data_is_told_in_one_line(run: Path, tmp_path: Path) -> None:
    for folder in (run / "chat", run / "chat" / "model", run / "large"):
        assert refused(folder) == (
            f"{folder} is a model, not data. Look at data with it: luyen inspect DATA model={folder}; talk to it: luyen chat {folder}"
        )
    assert f"{run}/tokenizer is a tokenizer, not data" in refused(run / "tokenizer")
    assert "holds the pages of a stage" in refused(run / "pages")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    assert "begun is a model, not data" in refused(tmp_path / "begun")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.resolved.yaml").write_text("name: crawl")
    assert "is a run, not data; found stages with training rows: none" in refused(tmp_path / "run")


def test_weights_beside_data_do_not_make_it_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", CHAT)
    (tmp_path / "adapter.safetensors").write_bytes(b"")
    assert "user: What?" in inspect(tmp_path, capsys=capsys)
    (tmp_path / "config.json").write_text("{}")
    assert "is a model, not data" in refused(tmp_path)


def test_the_help_keeps_no_rows_that_nobody_asked_to_keep() -> None:
    told = field_help(command.InspectConfig)
    assert "rejected.jsonl" not in told and "none is kept" in told and "naming it and going on" in told
    assert set(command.InspectReadConfig.model_fields) == set(ReadConfig.model_fields)


def test_one_bad_row_is_one_row(run: Path) -> None:
    assert refused(run, f"model={run}", "length=4", "truncation=truncate").startswith("1 row would teach nothing")


def test_of_a_corpus_the_training_documents_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "heldout", "dropped"):
        write_rows(tmp_path / f"{name}-00000.jsonl", {"text": f"This is {name}."})
    manifest.seal(tmp_path, "corpus")
    out = inspect(tmp_path, capsys=capsys)
    assert "This is train." in out and "read.split=heldout shows the others" in out and "text: This is heldout" not in out
    assert "text: This is heldout." in inspect(tmp_path, "read.split=heldout", capsys=capsys)


def test_a_hub_name_is_fetched_without_its_weights(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def download(name: str, kind: str, patterns: tuple[str, ...]) -> Path:
        asked.extend([name, kind, patterns])
        return run / "chat" / "model"

    monkeypatch.setattr(tokenizer_folder, "download", download)
    assert "{+That." in inspect(run, "model=owner/model", capsys=capsys)
    assert asked == ["owner/model", "model", ("*.json", "*.jinja")]
    assert "no model or tokenizer 'nowhere'" in refused(run, "model=nowhere")


def test_both_answers_of_a_preference_are_shown(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", {"prompt": "What?", "chosen": "That.", "rejected": "Nothing."})
    out = inspect(data, f"model={run}", capsys=capsys)
    assert "pairs.jsonl:1 chosen: " in out and "pairs.jsonl:1 rejected: " in out
    assert "{+That." in out and "{+Nothing." in out and "each answer is a row here" in out


@pytest.mark.parametrize(
    ("row", "kind"), [({"text": "Good.", "label": "praise"}, "labelled"), ({"tokens": ["Anna"], "tags": ["B-PER"]}, "tagged")]
)
def test_rows_without_an_answer_are_shown_as_they_are(
    row: dict[str, object], kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = inspect(write_rows(tmp_path / "rows.jsonl", row), f"model={run}", capsys=capsys)
    assert f"{kind} texts, for classifiers: 1 of 1 row\n" in out and ("[praise] Good." in out or "Anna/B-PER" in out)


def test_a_model_without_a_template_takes_one(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = write_model(tmp_path / "bare", template=False)
    assert "has no chat template, which says how a conversation becomes tokens. Set template=" in refused(run, f"model={bare}")
    assert "{+That." in inspect(run, f"model={bare}", "template=luyen", capsys=capsys)
    own = write_tokenizer(tmp_path / "other")
    assert own.has_template
    assert "{+That." in inspect(run, f"model={bare}", f"template={tmp_path}/other/chat_template.jinja", capsys=capsys)
    assert "prompt" in inspect(write_rows(tmp_path / "c.jsonl", {"prompt": "prompt", "completion": "b"}), f"model={bare}", capsys=capsys)


def test_a_table_without_names_says_how_to_give_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("a.csv", "hello,greeting\nbye,farewell\n"), ("b.tsv", "hello\thello\nbye\tfarewell\n")):
        (tmp_path / name).write_text(text)
        told = refused(tmp_path / name)
        assert "first row" in told and "read.columns.prompt=1 read.columns.completion=2" in told
        out = inspect(tmp_path / name, "read.columns.prompt=1", "read.columns.completion=2", capsys=capsys)
        assert "2 accepted" in out and "prompt: hello" in out
    named = write_rows(tmp_path / "c.jsonl", {"hello": "a", "greeting": "b"})
    assert "first row" not in refused(named)
