"""The verb `synth` with preferences: both domains, answers of models, a judge both ways round, and what it refuses."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from alone import lines, verb  # noqa: E402

from luyen.core.config import load  # noqa: E402
from luyen.core.errors import ConfigError, DataError  # noqa: E402
from luyen.core.files import read_jsonl  # noqa: E402
from luyen.core.records import Preference  # noqa: E402
from luyen.data.formats import read  # noqa: E402
from luyen.models import hf  # noqa: E402
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.recipe.configs import SynthVerbConfig  # noqa: E402
from luyen.tokenizer.train import TokenizerConfig, train  # noqa: E402

WORDS = ("apple", "bridge", "candle", "desk", "engine", "forest", "garden", "harbour")
TEMPLATE = r"""
version: 1
document: [{name: module, source: text, pattern: '\A# (\w+)'}]
entries:
  - {kind: function, pattern: '^(?P<bare>\w+)(?P<arguments>\(.*\))$', name: '{module}.{bare}'}
questions:
  what: {of: [function], ask: ['What is {name}?', 'Explain {name}.'], held_out: ['Describe {name}.'], answer: '{description}'}
unknown: {answer: 'I do not know {name}.'}
admissions: ['do not know']
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for module in ("tools", "works"):
        entries = "\n\n".join(f"{word}_{module}(x)\n    Make a new {word} for the {module} of the house." for word in WORDS)
        (folder / f"{module}.txt").write_text(f"# {module}\n\n{entries}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def questions(pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    (folder / "template.yaml").write_text(TEMPLATE, encoding="utf-8")
    return verb("synth", folder / "run", f"source={pages}", f"template={folder / 'template.yaml'}", "invented=4", "multi_turn=0.2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    train(["What is tools.apple_tools? Make a new bridge for the works of the house."] * 3, TokenizerConfig(vocab_size=300)).save(folder)
    torch.manual_seed(0)
    size = TransformerConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, context_length=128)
    hf.save(Transformer(size), folder)
    return folder


def made(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and account, which agree with each other, with the manifest, and with what a reader of preferences takes."""
    rows = list(read_jsonl(folder / "preferences.jsonl"))
    account = json.loads((folder / "account.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "luyen.json").read_text(encoding="utf-8"))
    dataset = read(folder / "preferences.jsonl")
    assert manifest["kind"] == "preferences" and manifest["metrics"]["pairs"] == len(rows) == account["pairs"]
    assert account["questions"] == account["pairs"] + sum(account["left_out"].values())
    assert len(dataset.records) == len(rows) and all(isinstance(record, Preference) for record in dataset.records)
    assert [record.grade for record in dataset.records] == [row.get("grade") for row in rows]  # type: ignore[union-attr]
    return rows, account


def test_right_answers_over_spoilt_ones(questions: Path, tmp_path: Path) -> None:
    rows, account = made(verb("synth", tmp_path, f"source={questions}", "preferences.pairs=9"))
    assert len(rows) == 9 and account["made"] == {"right over cut": 3, "right over other": 3, "right over shuffled": 3}
    taught = {(row["messages"][0]["content"], row["messages"][1]["content"]) for row in read_jsonl(questions / "train.jsonl")}
    assert {(row["prompt"][0]["content"], row["chosen"][0]["content"]) for row in rows} <= taught
    grades = {way: {row["grade"] for row in rows if row["rejected_by"] == way} for way in ("cut", "shuffled")}
    assert grades["cut"] != grades["shuffled"]


def test_made_up_names_are_not_those_of_the_evaluation(questions: Path, pages: Path, tmp_path: Path) -> None:
    settings = ("preferences.domain=safety", f"preferences.documents={pages}", "preferences.pairs=12")
    rows, account = made(verb("synth", tmp_path / "a", f"source={questions}", *settings))
    assert account["made"] == {"admission over invention": 6, "right over admission": 6}
    evaluated = {row["entry"] for row in read_jsonl(questions / "evaluation.jsonl") if row["set"] == "invented"}
    real = {row["title"] for row in read_jsonl(questions / "passages.jsonl")}
    invented = {row["entry"] for row in rows if row["safety"] == "chosen_safe"}
    assert len(evaluated) == 4 and len(invented) == 6 and not invented & (evaluated | real)
    assert {row["entry"] for row in rows if row["safety"] == "both_safe"} <= real
    again = verb("synth", tmp_path / "b", f"source={questions}", *settings)
    assert (again / "preferences.jsonl").read_bytes() == (tmp_path / "a" / "synth" / "preferences.jsonl").read_bytes()


def test_answers_of_models_take_the_place_of_spoilt_and_invented_ones(questions: Path, pages: Path, model: Path, tmp_path: Path) -> None:
    asked = (f"source={questions}", f"preferences.answers.models=[{model}]", "preferences.answers.sampling.max_new_tokens=6")
    rows, _ = made(verb("synth", tmp_path / "helpful", *asked, "preferences.pairs=6"))
    assert {(row["chosen_by"], row["rejected_by"]) for row in rows} == {("right", str(model))}
    assert all(0 < row["margin"] <= 1 for row in rows)
    safe = ("preferences.domain=safety", f"preferences.documents={pages}", "preferences.pairs=6")
    rows, _ = made(verb("synth", tmp_path / "safe", *asked, *safe))
    pairs = {(row["safety"], row["chosen_by"], row["rejected_by"]) for row in rows}
    assert pairs == {("chosen_safe", "admission", str(model)), ("both_safe", "right", "admission")}
    alone = ("preferences.gold=false", "preferences.answers.samples=3", "preferences.least=0", "preferences.pairs=6")
    rows, _ = made(verb("synth", tmp_path / "alone", *asked, *alone))
    assert {(row["chosen_by"], row["rejected_by"]) for row in rows} == {(str(model), str(model))}


@pytest.fixture
def judge() -> Iterator[tuple[str, list[str]]]:
    """An endpoint that likes the longer answer, or with the name `first` always A; and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][0]["content"]
            asked.append(question)
            first, second = question.split("Answer A: ")[1].split("\n\nChoose")[0].split("\n\nAnswer B: ")
            letter = "A" if body["model"] == "first" or len(first) > len(second) else "B"
            reply = json.dumps({"choices": [{"message": {"content": letter}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_is_asked_both_ways_round(judge: tuple[str, list[str]], questions: Path, tmp_path: Path) -> None:
    url, asked = judge
    settings = (f"source={questions}", "preferences.pairs=4", "preferences.corruptions=[cut]", f"preferences.judge.url={url}")
    rows, _ = made(verb("synth", tmp_path / "fair", *settings, "preferences.judge.name=longer"))
    assert len(asked) == 8 and {(row["chosen_by"], row["rejected_by"]) for row in rows} == {("right", "cut")}
    assert not any("grade" in row for row in rows)
    with pytest.raises(DataError, match="no pair came out of 4 questions"):
        verb("synth", tmp_path / "partial", *settings, "preferences.judge.name=first")


def test_prompts_of_any_form_have_one_domain(tmp_path: Path, model: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"What is {n}?", "completion": f"It is the number {n}."} for n in range(4)]
    prompts = lines(tmp_path / "prompts.jsonl", rows)
    found, _ = made(verb("synth", tmp_path / "run", f"source={prompts}", "preferences.corruptions=[other]"))
    assert len(found) == 4 and all(row["rejected"][0]["content"] != row["chosen"][0]["content"] for row in found)
    with pytest.raises(ConfigError, match="needs a stage of questions"):
        verb("synth", tmp_path / "safe", f"source={prompts}", "preferences.domain=safety", f"preferences.documents={tmp_path}")


@pytest.mark.parametrize(("keys", "told"), [
    ({"grounded": 0.3, "preferences": {}}, "grounded decides what questions are made"),
    ({"preferences": {"domain": "safety"}}, "safety needs the documents"),
    ({"preferences": {"documents": "x"}}, "nothing else reads them"),
    ({"preferences": {"gold": False, "answers": {"models": ["m"]}}}, "give two answers.models"),
    ({"preferences": {"judge": {"url": "http://x/v1"}}}, "both url and name"),
    ({"preferences": {"judge": {}}}, "judge.model or judge.url"),
])  # fmt: skip
def test_a_config_that_means_nothing_is_refused(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(SynthVerbConfig, {"source": "q", **keys})
