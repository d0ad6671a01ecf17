"""A model made to answer, one that babbles, and baselines, on the same questions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from luyen.core.errors import DataError
from luyen.core.files import read_jsonl, write_jsonl
from luyen.core.records import Document, Message
from luyen.evaluation.before_after import Material, evaluate, limited
from luyen.evaluation.generative import answer
from luyen.evaluation.perplexity import BitsPerByte
from luyen.evaluation.respondents import ModelRespondent, NGramRespondent, RetrievalRespondent, load_model, load_models
from luyen.inference.config import SamplingConfig
from luyen.models import hf
from luyen.models.attention import Layout
from luyen.models.transformer import Transformer
from luyen.retrieval.index import Index, Passage
from luyen.tasks.question_answering import Answer, Example
from luyen.tokenizer.chat import render
from luyen.tokenizer.load import Tokenizer

SAMPLING = SamplingConfig(max_new_tokens=12)
PASSAGES = [
    Passage("1", "math.sin", "math.sin\nsin(x)\n    Return the sine of x.", "", "Return the sine of x."),
    Passage("2", "json.dumps", "json.dumps\ndumps(obj)\n    Serialize obj.", "", "Serialize obj."),
]


def example(number: int, name: str, question: str, expected: str, source: str = "description") -> Example:
    return Example(str(number), (Message("user", question),), expected, {"set": name, "source": source, "entry": "math.sin"})


EXAMPLES = [
    example(1, "taught", "What is math.sin?", "Return the sine of x."),
    example(2, "taught", "Which one does this: serialize obj?", "json.dumps", "reverse"),
    example(3, "invented", "What is math.sin_dumps?", ""),
]


@dataclass(frozen=True)
class Scripted:
    """A baseline that says given texts."""

    texts: Sequence[str]
    note: str = "says what it is told"

    def answers(self, examples: Sequence[Example], name: str) -> list[Answer]:
        return [Answer(text, stopped=bool(text)) for text in self.texts]

    def cost(self, documents: Sequence[Document]) -> BitsPerByte | None:
        return None


def test_results_of_scripted_answers(tmp_path: Path) -> None:
    material = Material(EXAMPLES, [r"do not know"])
    people = {"good": Scripted(["return the sine of x", "json.dumps", "I do not know."]), "bad": Scripted(["", "json.loads", "Adds one."])}
    result = evaluate({}, people, material, tmp_path)
    rows = {(row["model"], row["set"]): row for row in result["rows"]}
    assert list(rows) == [("good", "taught"), ("good", "invented"), ("bad", "taught"), ("bad", "invented")]
    good, bad = rows["good", "taught"], rows["bad", "taught"]
    assert (good["examples"], good["exact_match"], good["f1"], good["stopped"]) == (2, 1.0, 1.0, 1.0)
    assert (bad["exact_match"], bad["f1"], bad["stopped"]) == (0.0, 0.0, 0.5)
    assert (rows["good", "invented"]["invented"], rows["good", "invented"]["said_unknown"]) == (0.0, 1.0)
    assert rows["bad", "invented"]["invented"] == 1.0 and "exact_match" not in rows["bad", "invented"]
    low, high = bad["intervals"]["stopped"]
    assert 0.0 <= low <= 0.5 <= high <= 1.0
    assert [(row["model"], row["set"], row["source"]) for row in result["by_source"]][:2] == [
        ("good", "taught", "description"), ("good", "taught", "reverse"),
    ]  # fmt: skip
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == result
    kept = list(read_jsonl(tmp_path / "answers.jsonl"))
    assert len(kept) == 6
    assert kept[3] | {"chrf": 0} == {
        "model": "bad", "id": "1", "set": "taught", "source": "description", "entry": "math.sin", "question": "What is math.sin?",
        "expected": "Return the sine of x.", "answer": "", "exact_match": 0.0, "f1": 0.0, "chrf": 0, "said_unknown": 0.0, "stopped": False,
    }  # fmt: skip


def test_models_baselines_and_held_out_text(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [Document("a", "Return the sine of x."), Document("b", "What does json.dumps do?")]
    material = Material(EXAMPLES, [], documents, Index.build(PASSAGES))
    respondent = ModelRespondent(model, tokenizer, SAMPLING)
    ngram = NGramRespondent.fit(tokenizer, documents, [[Message("user", "Hi"), Message("assistant", "Return x.")]], max_new_tokens=8)
    result = evaluate({"base": respondent, "chat": respondent}, {"n-gram": ngram}, material, tmp_path)
    assert list(result["asked"]) == ["base", "chat", "chat with pages", "retrieval", "n-gram"]
    assert [row["model"] for row in result["forgetting"]] == ["base", "chat", "n-gram"]
    assert result["forgetting"][1]["difference"] == 0.0
    assert result["forgetting"][2]["heldout_bits_per_byte"] < result["forgetting"][0]["heldout_bits_per_byte"]  # it was fitted on them
    answers = {(row["model"], row["id"]): row["answer"] for row in read_jsonl(tmp_path / "answers.jsonl")}
    assert answers["retrieval", "1"] == "Return the sine of x." and answers["retrieval", "2"] == "json.dumps"
    assert answers["base", "1"] == answers["chat", "1"]
    first = (tmp_path / "results.json").read_bytes(), (tmp_path / "answers.jsonl").read_bytes()
    evaluate({"base": respondent, "chat": respondent}, {"n-gram": ngram}, material, tmp_path)
    assert first == ((tmp_path / "results.json").read_bytes(), (tmp_path / "answers.jsonl").read_bytes())


def teach(model: Transformer, tokenizer: Tokenizer, rows: list[tuple[str, str]]) -> None:
    """Overfit the model to a few conversations."""
    talks = [render(tokenizer, [Message("user", question), Message("assistant", text)]).ids for question, text in rows]
    tokens = torch.tensor([[token for ids in talks for token in ids[:-1]]])
    targets = torch.tensor([token for ids in talks for token in ids[1:]])
    layout = Layout.packed([len(ids) - 1 for ids in talks])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.logits(model(tokens, layout=layout))[0], targets).backward()
        optimizer.step()


def test_a_model_that_was_taught_answers_and_stops(model: Transformer, tokenizer: Tokenizer) -> None:
    teach(model, tokenizer, [("What is math.sin?", "Return the sine of x."), ("Which one does this: serialize obj?", "json.dumps")])
    model.train()
    given = answer(model, tokenizer, EXAMPLES[:2], SamplingConfig(max_new_tokens=24), batch_size=1)
    assert given == [Answer("Return the sine of x."), Answer("json.dumps")]
    assert model.training
    short = answer(model, tokenizer, EXAMPLES[:1], SamplingConfig(max_new_tokens=2))
    assert not short[0].stopped and "Return the sine of x.".startswith(short[0].text)


def test_passages_stand_before_the_question_only_where_they_fit(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def record(model: Transformer, prompts: list[list[int]], *rest: object, **more: object) -> list[object]:
        seen.extend(prompts)
        return []

    monkeypatch.setattr("luyen.evaluation.generative.generate", record)
    index = Index.build([Passage("1", "math.sin", "sine of x"), Passage("2", "json.dumps", "json.dumps " * 100)])
    answer(model, tokenizer, EXAMPLES[:2], SamplingConfig(max_new_tokens=8), index=index)
    texts = [tokenizer.decode(ids, skip_control=False) for ids in seen]
    assert "sine of x" in texts[0] and texts[0].index("sine of x") < texts[0].index("What is math.sin?")
    assert "json.dumps json.dumps" not in texts[1]


def test_a_tokenizer_without_a_template_is_asked_in_plain_text(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    plain = Tokenizer.load(tmp_path)
    assert not plain.has_template
    seen: list[list[int]] = []

    def say(model: Transformer, prompts: list[list[int]], *rest: object, **more: object) -> list[object]:
        seen.extend(prompts)
        return [type("Generation", (), {"ids": plain.encode(" Return x.\nQuestion: more"), "stopped": False})() for _ in prompts]

    monkeypatch.setattr("luyen.evaluation.generative.generate", say)
    respondent = ModelRespondent(model, plain, SAMPLING)
    assert respondent.answers(EXAMPLES[:1], "x") == [Answer("Return x.", stopped=True)]
    assert plain.decode(seen[0]) == "Question: What is math.sin?\nAnswer:"
    assert "plain text" in respondent.note


def test_load_model_reads_a_folder(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    hf.save(model, tmp_path)
    tokenizer.save(tmp_path)
    respondent = load_model(tmp_path, SAMPLING)
    assert respondent.answers(EXAMPLES, "x") == ModelRespondent(model, tokenizer, SAMPLING).answers(EXAMPLES, "x")


def test_models_that_are_one_are_loaded_once(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    hf.save(model, tmp_path)
    tokenizer.save(tmp_path)
    loaded = load_models({"a": tmp_path, "b": tmp_path}, SAMPLING)
    tables = [each.model.get_parameter("model.embed_tokens.weight") for each in loaded.values()]
    assert list(loaded) == ["a", "b"] and tables[0].data_ptr() == tables[1].data_ptr()
    assert loaded["b"].answers(EXAMPLES, "x") == ModelRespondent(model, tokenizer, SAMPLING).answers(EXAMPLES, "x")


def test_retrieval_says_nothing_when_nothing_is_found() -> None:
    respondent = RetrievalRespondent(Index.build(PASSAGES))
    assert respondent.answers([example(1, "taught", "Zzz?", "x")], "r") == [Answer("")]


def test_material_from_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no evaluation\.jsonl"):
        Material.read(tmp_path)
    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": "Why?"}], "answer": "So.", "set": name, "source": "d", "entry": "e"}
        for name in ("taught", "untaught")
        for n in range(10)
    ]
    write_jsonl(tmp_path / "evaluation.jsonl", rows)
    (tmp_path / "template.json").write_text('{"admissions": ["no idea"]}', encoding="utf-8")
    material = Material.read(tmp_path, limit=4)
    assert len(material.examples) == 8 and material.admissions == ["no idea"] and material.index is None
    assert [example.meta["set"] for example in material.examples] == ["taught"] * 4 + ["untaught"] * 4
    assert material.examples == limited(Material.read(tmp_path).examples, 4)
    assert Material.read(None).examples == ()
