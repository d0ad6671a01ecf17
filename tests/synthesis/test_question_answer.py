"""Questions from documents: what is held out stays out, every row is counted, equal input gives equal bytes."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from luyen.core.config import load
from luyen.core.errors import ConfigError, DataError
from luyen.core.files import read_jsonl
from luyen.core.records import Document
from luyen.synthesis.question_answer import Questions, SynthConfig, generate, write
from luyen.tasks.question_answering import read_examples


def make(documents: list[Document], path: Path, **changes: Any) -> Questions:
    return generate(documents, load(SynthConfig, {"template": str(path), "heldout_entries": 0.25, "invented": 12, **changes}))


def texts(rows: list[dict[str, Any]], role: str) -> list[str]:
    return [message["content"] for row in rows for message in row["messages"] if message["role"] == role]


def test_held_out_phrasings_and_entries_never_reach_training(documents: list[Document], template: Path) -> None:
    made = make(documents, template)
    trained = texts(made.train, "user")
    everything = "\n".join(trained + texts(made.train, "assistant") + texts(made.train, "system"))
    assert not [text for text in trained if re.match("Describe|And |Name it|How to", text)]
    assert len(made.account["untaught"]) == round(0.25 * made.account["chosen"]) == 6
    for name in made.account["untaught"]:
        assert not re.search(rf"\b{re.escape(name)}\b", everything), name
    asked = {(row["set"], row["entry"]) for row in made.evaluation}
    assert {entry for name, entry in asked if name == "untaught"} == set(made.account["untaught"])
    assert not {entry for name, entry in asked if name == "taught"} & set(made.account["untaught"])
    questions = {row["messages"][-1]["content"] for row in made.evaluation if row["set"] != "training"}
    assert not questions & set(trained)
    assert {row["messages"][-1]["content"] for row in made.evaluation if row["set"] == "training"} <= set(trained)


def test_every_taught_phrasing_is_in_training_once(documents: list[Document], template: Path) -> None:
    made = make(documents, template, grounded=0.2, multi_turn=0.3, conversation_copies=2)
    # 22 entries, 16 taught, three phrasings of `what`, one of `reverse` (not for twins) and one of `call`.
    twins = sum(name not in made.account["untaught"] for name in ("tools.twin", "works.twin"))
    count = Counter(texts(made.train, "user"))
    assert count.pop("Hello!") == 2
    count.pop("How do I call it?", None)
    assert len(count) == 16 * 5 - twins and set(count.values()) == {1}
    sources = Counter(row["source"] for row in made.train)
    assert sources["grounded"] == round(0.2 * len(count))
    talks = [row for row in made.train if row["source"] == "multi_turn"]
    turns = sum(text in count for text in texts(talks, "user"))
    assert round(0.3 * len(count)) - 1 <= turns <= round(0.3 * len(count))
    assert made.account["train"] == {"rows": len(made.train), **sources}


def test_answers_are_what_the_page_says(documents: list[Document], template: Path) -> None:
    made = make(documents, template)
    pages = " ".join(" ".join(document.text.split()) for document in documents)
    for row in made.evaluation:
        if row["source"] == "what" and row["set"] != "invented":
            assert row["answer"] in pages
    for row in made.train:
        if row["source"] == "call":
            assert row["messages"][-1]["content"] == f"{row['entry']}(x, size=1)" or row["entry"].endswith("twin")


def test_rows_with_a_passage_hold_the_answer_to_read(documents: list[Document], template: Path) -> None:
    rows = [row for row in make(documents, template, grounded=0.5, groups=["what"]).train if row["source"] == "grounded"]
    assert rows
    for row in rows:
        system, user, assistant = row["messages"]
        assert (system["role"], user["role"], assistant["role"]) == ("system", "user", "assistant")
        assert system["content"].startswith(row["entry"]) and assistant["content"] in system["content"]


def test_a_description_that_two_entries_share_is_not_asked_in_reverse(documents: list[Document], template: Path) -> None:
    made = make(documents, template, heldout_entries=0)
    assert made.account["left_out"]["reverse: description belongs to several entries"] == 4  # two entries, in training and evaluation
    assert "Which does this: both pages say exactly this?" not in texts(made.train, "user")
    assert "What is tools.twin?" in texts(made.train, "user")


def test_a_question_with_two_answers_is_left_out(documents: list[Document], template: Path) -> None:
    text = template.read_text(encoding="utf-8").replace("'What is {name}?'", "'What is {bare}?'")
    template.write_text(text, encoding="utf-8")
    page = Document(id="more", text="apple_tools(y)\n    Something else entirely here.", url="more.html")
    made = make([*documents, page], template, heldout_entries=0)
    assert "What is apple_tools?" not in texts(made.train, "user") and "What is apple_works?" in texts(made.train, "user")
    assert made.account["left_out"]["the same question has several answers"] == 2


def test_invented_names_look_alike_and_do_not_exist(documents: list[Document], template: Path) -> None:
    made = make(documents, template, invented=12)
    rows = [row for row in made.evaluation if row["set"] == "invented"]
    names = [row["entry"] for row in rows]
    assert len(set(names)) == 12 and all(row["answer"] == "" for row in rows)
    pages = {document.id: document.text for document in documents}
    for name in names:
        module, _, last = name.partition(".")
        assert module in pages and not re.search(rf"\b{last}\b", pages[module]), name
    assert {row["messages"][0]["content"].split()[0] for row in rows} == {"Describe", "And"}


def test_admissions_are_taught_only_when_the_template_says_so(documents: list[Document], template: Path) -> None:
    assert not [text for text in texts(make(documents, template).train, "assistant") if "do not know" in text]
    template.write_text(template.read_text(encoding="utf-8").replace("enabled: false", "enabled: true"), encoding="utf-8")
    made = make(documents, template)
    unknown = {row["messages"][-1]["content"] for row in made.train if row["source"] == "unknown"}
    assert len(unknown) == 3
    assert not unknown & {f"I do not know {row['entry']}." for row in made.evaluation if row["set"] == "invented"}


def test_limits(documents: list[Document], template: Path) -> None:
    limits = {"max_entries": 6, "phrasings_per_entry": 1, "evaluation_phrasings": 2}
    made = make(documents, template, heldout_entries=0, groups=["what"], grounded=0, multi_turn=0, **limits)
    assert made.account["chosen"] == 6
    assert Counter(row["entry"].split(".")[0] for row in made.train if row["source"] == "what") == {"tools": 3, "works": 3}
    taught = [row["messages"][0]["content"].split()[0] for row in made.evaluation if row["set"] == "taught"]
    assert Counter(taught) == {"Describe": 6, "And": 6}


def test_same_input_same_bytes_other_seed_other_choice(documents: list[Document], template: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(make(documents, template), tmp_path / folder)
    write(make(documents, template, seed=1), tmp_path / "c")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["account.json", "evaluation.jsonl", "passages.jsonl", "template.json", "train.jsonl"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    untaught = [json.loads((tmp_path / folder / "account.json").read_text(encoding="utf-8"))["untaught"] for folder in "ac"]
    assert untaught[0] != untaught[1]
    assert len(read_examples(tmp_path / "a" / "evaluation.jsonl")) == len(list(read_jsonl(tmp_path / "a" / "evaluation.jsonl")))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"template": "python_referense"}, ConfigError, "Did you mean 'python_reference'"),
        ({"groups": ["wat"]}, ConfigError, "no group 'wat'.*Did you mean 'what'"),
        ({"heldout_entries": 1.5}, ConfigError, "heldout_entries is a share; found 1.5"),
        ({"grounded": 0.9, "multi_turn": 0.5}, ConfigError, "grounded is a share; found 0.9; expected a number from 0 to 0.5"),
    ],
)
def test_wrong_configs(documents: list[Document], template: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(documents, template, **changes)


def test_documents_without_entries(template: Path) -> None:
    with pytest.raises(DataError, match="finds no entries; found 1 document and 0 matches"):
        make([Document(id="a", text="Nothing here.", url="a.html")], template)


PAGE = """# statistics

Basic statistics module.

## Classes

builtins.object

    NormalDist

### class NormalDist(builtins.object)

NormalDist(mu=0.0, sigma=1.0)

Normal distribution of a random variable

Methods defined here:

__add__(x1, x2)
    Add a constant or another NormalDist instance.

cdf(self, x)
    Cumulative distribution function.  P(X <= x)

Readonly properties defined here:

mean
    Arithmetic mean of the normal distribution.

Methods inherited from builtins.Other:

other(self)
    Say something inherited here.

## Functions

fmean(data, weights=None)
    Convert data to floats and compute the arithmetic mean.

    This runs faster.

tail(...)
    tail(data) -> integer -- return the last of the data.
"""


def test_the_built_in_template_reads_pydoc_pages() -> None:
    made = generate([Document(id="s", text=PAGE, url="http://pydoc.localhost/statistics.html")], SynthConfig(heldout_entries=0, invented=0))
    assert {(row["title"], row["answer"]) for row in made.passages if row["answer"]} == {
        ("statistics", "Basic statistics module."),
        ("statistics.NormalDist", "Normal distribution of a random variable."),
        ("statistics.NormalDist.cdf", "Cumulative distribution function."),
        ("statistics.NormalDist.mean", "Arithmetic mean of the normal distribution."),
        ("statistics.fmean", "Convert data to floats and compute the arithmetic mean."),
        ("statistics.tail", "return the last of the data."),
        ("statistics.NormalDist.__add__", "Add a constant or another NormalDist instance."),
    }
    assert made.account["kinds"] == {"class": 1, "function": 2, "method": 1, "module": 1, "property": 1}
    assert "statistics.fmean(data, weights=None)" in texts(made.train, "assistant")
    assert not any("(...)" in text for text in texts(made.train, "assistant"))
