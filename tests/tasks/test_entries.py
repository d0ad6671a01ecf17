"""Reading entries: contexts, order, cleaning, limits, and patterns that take too long."""

import time
from typing import Any

import pytest

from luyen.core.config import load
from luyen.core.errors import ConfigError, DataError
from luyen.core.records import Document
from luyen.tasks import entries
from luyen.tasks.entries import clean, describe, read_entries
from luyen.tasks.template import AnswerRule, Template

GROUP = {"of": ["method"], "ask": ["What is {name}?"], "held_out": ["Explain {name}."], "answer": "{description}"}
BASE: dict[str, Any] = {
    "version": 1,
    "document": [{"name": "module", "source": "url", "pattern": r"(\w+)\.html$"}],
    "contexts": [{"pattern": r"^# class (?P<class>\w+)$"}, {"pattern": "^# Functions$", "clear": ["class"]}],
    "entries": [
        {
            "kind": "method", "pattern": r"^(?P<bare>\w+)(?P<arguments>\(.*\))$", "name": "{module}.{class}.{bare}",
            "requires": ["class"], "skip": [r"\._"],
        },
        {"kind": "function", "pattern": r"^(?P<bare>\w+)(?P<arguments>\(.*\))$", "name": "{module}.{bare}", "refuses": ["class"]},
    ],
    "questions": {"description": GROUP},
}  # fmt: skip
TEXT = """# class Box
open(self)
    Open the   box. It may
    be empty.

_hidden(self)
    Do something secret.

# Functions
pack(items)

    Put items into a new
    box, e.g. Apples and pears. More text.

open(path)
    One
"""


def template(**changes: Any) -> Template:
    return load(Template, {**BASE, **changes})


def document(text: str = TEXT, name: str = "boxes") -> Document:
    return Document(id=name, text=text, url=f"http://localhost/{name}.html")


def test_contexts_name_entries_and_every_match_is_counted() -> None:
    reading = read_entries([document()], template(answer={"minimum_words": 2, "abbreviations": ["e.g."]}))
    assert [(entry.kind, entry.name, entry.description) for entry in reading.entries] == [
        ("method", "boxes.Box.open", "Open the box."),
        ("function", "boxes.pack", "Put items into a new box, e.g. Apples and pears."),
    ]
    assert reading.account == {"documents": 1, "matches": 4, "kept": 2, "name left out by a rule": 1, "description too short": 1}
    assert [entry.name for entry in reading.others] == ["boxes.Box._hidden", "boxes.open"]
    first = reading.entries[0]
    assert first.fields["arguments"] == "(self)" and first.fields["class"] == "Box" and first.fields["topic"] == "open the box"
    assert first.text == "open(self)\n    Open the   box. It may\n    be empty."


def test_the_same_name_twice_is_kept_once() -> None:
    text = "pack(a)\n    Put a into it.\n\npack(b)\n    Put b into it.\n"
    reading = read_entries([document(text)], template())
    assert [entry.description for entry in reading.entries] == ["Put a into it."]
    assert reading.account["same name as an earlier entry"] == 1


def test_limit_within_a_field() -> None:
    rule = {**BASE["entries"][0], "limit": 1, "limit_within": "class"}
    text = "# class A\nf(x)\n    Do one thing.\n\ng(x)\n    Do another thing.\n\n# class B\nf(x)\n    Do a third thing.\n"
    reading = read_entries([document(text)], template(entries=[rule]))
    assert [entry.name for entry in reading.entries] == ["boxes.A.f", "boxes.B.f"]
    assert reading.account["over the limit of 1 per class"] == 1


def test_a_description_may_be_a_group_of_the_pattern() -> None:
    rule = {"kind": "term", "pattern": r"^(?P<bare>\w+): (?P<description>.+)$", "name": "{bare}"}
    terms = template(entries=[rule], questions={"description": {**GROUP, "of": ["term"]}})
    reading = read_entries([document("Apple: A round red fruit\nPear: A green fruit. Sweet.")], terms)
    assert [(entry.name, entry.description) for entry in reading.entries] == [("Apple", "A round red fruit."), ("Pear", "A green fruit.")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return x. And more", ("Return x.", "")),
        ("Really so?  Yes", ("Really so?", "")),
        ("Say it (twice.) Then go", ("Say it (twice.)", "")),
        ("Version 1.5 of it", ("Version 1.5 of it.", "")),
        ("Ends with a comma,", ("Ends with a comma.", "")),
        ("One two three four five six seven", ("", "description too long")),
        ("One", ("", "description too short")),
        ("   ", ("", "no description")),
        ("Helper for pickle.", ("", "description left out by a rule")),
    ],
)
def test_clean(text: str, expected: tuple[str, str]) -> None:
    rule = AnswerRule(minimum_words=2, maximum_words=6, skip=["^Helper"])
    assert clean(text, rule) == expected


def test_later_paragraphs_stand_in_for_empty_and_short_ones_only() -> None:
    rule = AnswerRule(paragraphs=2, minimum_words=2, maximum_words=4, replace=[(r"^\w+\(.*\) ->.*$", "")])
    assert describe("f(x) -> y\n\nReturn the y.\n\nMore text.", rule) == ("Return the y.", "")
    assert describe("Covariance\n\nReturn the covariance.", rule) == ("Return the covariance.", "")
    assert describe("This sentence has too many words.\n\nReturn the y.", rule) == ("", "description too long")
    assert describe("One\n\nTwo\n\nReturn the y.", rule) == ("", "description too short")


def test_a_pattern_that_takes_too_long_is_named_with_its_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "SECONDS_PER_DOCUMENT", 0.2)
    rule = {"kind": "method", "pattern": r"^(?P<bare>(a+)+)$", "name": "{bare}"}
    started = time.process_time()
    with pytest.raises(DataError, match=r"patterns take too long on document 'slow'.*nested repeats"):
        read_entries([document("a" * 60 + "!", "slow")], template(entries=[rule]))
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entires": []}, "unknown key 'entires'.*Did you mean 'entries'"),
        ({"questions": {"d": {**GROUP, "of": ["metod"]}}}, "kind 'metod'.*Did you mean 'method'"),
        ({"questions": {"d": {**GROUP, "ask": ["What is {nam}?"]}}}, r"field \{nam\}.*Did you mean 'name'"),
        ({"questions": {"d": {**GROUP, "held_out": ["what is  {name}?"]}}}, "held-out phrasing .* is also trained on"),
        ({"questions": {"d": {**GROUP, "held_out": []}}}, "at least one phrasing"),
        ({"contexts": [{"pattern": "(oops"}]}, r"contexts\.0.*not a regular expression"),
        ({"admissions": ["[a"]}, "admissions.*not a regular expression"),
        ({"entries": [{**BASE["entries"][0], "requires": ["klass"]}]}, "field 'klass', which nothing sets"),
        ({"unknown": {"group": "nothing"}}, "unknown.group is 'nothing'"),
    ],
)
def test_wrong_templates_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        template(**changes)
