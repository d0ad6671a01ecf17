"""The template language: a YAML file that says where a document's entries are and how to ask about them.

A template has four parts. *Reading*: `document` and `contexts` give named values (a module, a class), `entries` are regular
expressions that find what can be asked about. *Cleaning*: `answer` makes one sentence of the text below an entry. *Asking*:
`questions` are groups of phrasings with fields in braces; `conversation` are turns that need no entry. *Judging*: `unknown`
and `admissions` say how "I do not know" is worded. Everything in the file is data: fields are replaced by name, nothing is run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from luyen.core.config import Config, load, read_yaml
from luyen.core.errors import ConfigError, nearest

FIELD = re.compile(r"\{(\w+)\}")
STANDARD_FIELDS = frozenset({"name", "description", "topic", "title", "url", "id"})


class DocumentFact(Config):
    """One named value for a whole document."""

    name: str
    """Field that it fills."""
    source: Literal["url", "title", "id", "text"] = "url"
    """Part of the document that is searched."""
    pattern: str
    """Regular expression; its first group is the value."""


class Context(Config):
    """A line that changes named values for everything below it."""

    pattern: str
    """Regular expression (multi-line mode); each named group sets the field of that name."""
    clear: list[str] = []
    """Fields that are no longer set from here on."""


class EntryRule(Config):
    """How one kind of entry looks in a document."""

    kind: str
    """Name of the kind; `questions` refer to it."""
    pattern: str
    """Regular expression (multi-line mode). Without a group `description`, the text below the match gives it."""
    name: str
    """The entry's full name, with fields in braces."""
    requires: list[str] = []
    """Fields that must be set where the entry stands."""
    refuses: list[str] = []
    """Fields that must not be set there."""
    skip: list[str] = []
    """Regular expressions; an entry whose name matches one of them is left out."""
    limit: int | None = None
    """Most entries of this kind within one value of `limit_within`; the first ones are kept."""
    limit_within: str = "id"
    """Field that `limit` counts by."""


class AnswerRule(Config):
    """How the text below an entry becomes an answer."""

    replace: list[tuple[str, str]] = []
    """Regular expressions (multi-line mode) and their replacements, applied in this order before anything else."""
    paragraphs: int = 1
    """Opening paragraphs below an entry that may be tried while they are empty or too short."""
    first_sentence: bool = True
    """Keep only the first sentence."""
    abbreviations: list[str] = []
    """Words whose full stop does not end a sentence."""
    minimum_words: int = 3
    """Shorter descriptions are left out."""
    maximum_words: int = 25
    """Longer first sentences are left out."""
    maximum_characters: int = 200
    """Longer answers, of whatever group, are left out."""
    skip: list[str] = []
    """Regular expressions; an entry whose description matches one of them is left out."""


class QuestionGroup(Config):
    """One thing to ask about entries, in many words."""

    of: list[str]
    """Kinds of entries that are asked about."""
    ask: list[str]
    """Phrasings that are trained on."""
    held_out: list[str]
    """Phrasings that only the evaluation uses."""
    answer: str
    """The answer, with fields in braces."""
    follow_up: list[str] = []
    """Phrasings for a second turn about the entry of the turn before."""
    unique: str | None = None
    """Field whose value must belong to one entry only; other entries are not asked about."""
    skip: list[str] = []
    """Regular expressions; a question is left out when its answer matches one of them."""


class Exchange(Config):
    """A turn that needs no entry, such as a greeting."""

    ask: list[str]
    """Phrasings that are trained on."""
    answer: str
    """The answer."""


class Unknown(Config):
    """Rows about names that do not exist."""

    enabled: bool = False
    """Add such rows to the training data."""
    group: str = ""
    """Group whose phrasings ask about made-up names, here and in the evaluation; empty: the first group."""
    count: int = 50
    """Number of made-up names; none of them is used for evaluation."""
    answer: str = "I do not know {name}: it is not in the pages that I learnt from."
    """The answer."""


class Template(Config):
    """A whole template file."""

    version: Literal[1]
    """Version of the language."""
    document: list[DocumentFact] = []
    """Values for a whole document; the first rule that matches wins for each name."""
    contexts: list[Context] = []
    """Values that change while reading downwards."""
    entries: list[EntryRule]
    """What can be asked about."""
    answer: AnswerRule = AnswerRule()
    """Cleaning of descriptions."""
    questions: dict[str, QuestionGroup]
    """Groups of questions by name."""
    conversation: list[Exchange] = []
    """Turns that need no entry."""
    unknown: Unknown = Unknown()
    """Rows about names that do not exist."""
    admissions: list[str] = []
    """Regular expressions; an answer that matches one of them admits that it does not know."""

    @property
    def main_group(self) -> str:
        """The group whose phrasings ask about names that do not exist."""
        return self.unknown.group or next(iter(self.questions))

    @model_validator(mode="after")
    def _check(self) -> Template:
        _check_patterns(self)
        known = _fields(self)
        for index, rule in enumerate(self.entries):
            known_here = known["*"] | _groups(rule.pattern)
            _check_fields(rule.name, known_here - {"name", "description", "topic"}, f"entries.{index}.name")
            for name in [*rule.requires, *rule.refuses, rule.limit_within]:
                if name not in known_here:
                    raise ValueError(f"entries.{index} names the field {name!r}, which nothing sets. {nearest(name, known_here)}")
        for name, group in self.questions.items():
            _check_group(name, group, known)
        if not self.questions:
            raise ValueError("questions is empty; nothing would be asked")
        if self.main_group not in self.questions:
            raise ValueError(f"unknown.group is {self.unknown.group!r}. {nearest(self.unknown.group, self.questions)}")
        _check_fields(self.unknown.answer, {"name"}, "unknown.answer")
        return self


def load_template(name: str, folder: Path) -> Template:
    """A template by path (something with a `/` or `.yaml`) or by the name of a file in `folder`. ConfigError if wrong."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and "/" not in name:
        built_in = sorted(file.stem for file in folder.glob("*.yaml"))
        if name not in built_in:
            raise ConfigError(f"no template {name!r}", fix=nearest(name, built_in) + " Or give the path of a YAML file.")
        path = folder / f"{name}.yaml"
    return load(Template, read_yaml(path), str(path))


def fill(text: str, fields: dict[str, str]) -> str:
    """`text` with every `{field}` replaced. A field without a value raises KeyError."""
    return FIELD.sub(lambda match: fields[match[1]], text)


def _groups(pattern: str) -> set[str]:
    return set(re.compile(pattern).groupindex)


def _fields(template: Template) -> dict[str, set[str]]:
    """Fields that a question may use: under "*" those of every entry, under a kind those of its entries as well."""
    common = set(STANDARD_FIELDS) | {fact.name for fact in template.document}
    for context in template.contexts:
        common |= _groups(context.pattern)
    known = {"*": common}
    for rule in template.entries:
        known[rule.kind] = known.get(rule.kind, set()) | common | _groups(rule.pattern)
    return known


def _check_patterns(template: Template) -> None:
    places = [(f"document.{i}", fact.pattern) for i, fact in enumerate(template.document)]
    places += [(f"contexts.{i}", context.pattern) for i, context in enumerate(template.contexts)]
    for i, rule in enumerate(template.entries):
        places += [(f"entries.{i}", pattern) for pattern in [rule.pattern, *rule.skip]]
    places += [(f"questions.{name}.skip", pattern) for name, group in template.questions.items() for pattern in group.skip]
    places += [("answer.replace", pattern) for pattern, _ in template.answer.replace]
    places += [("answer.skip", pattern) for pattern in template.answer.skip]
    places += [("admissions", pattern) for pattern in template.admissions]
    for place, pattern in places:
        try:
            compiled = re.compile(pattern, re.MULTILINE)
        except re.error as error:
            raise ValueError(f"{place}: {pattern!r} is not a regular expression ({error})") from None
        if place.startswith("document") and not compiled.groups:
            raise ValueError(f"{place}: {pattern!r} has no group to take the value from")


def _check_fields(text: str, known: set[str], place: str) -> None:
    for name in FIELD.findall(text):
        if name not in known:
            raise ValueError(f"{place} uses the field {{{name}}}, which nothing sets. {nearest(name, known)}")


def _check_group(name: str, group: QuestionGroup, known: dict[str, set[str]]) -> None:
    for kind in group.of:
        if kind not in known:
            raise ValueError(f"questions.{name}.of names the kind {kind!r}. {nearest(kind, set(known) - {'*'})}")
        texts = [*group.ask, *group.held_out, *group.follow_up, group.answer] + ([f"{{{group.unique}}}"] if group.unique else [])
        for text in texts:
            _check_fields(text, known[kind], f"questions.{name}")
    if not group.ask or not group.held_out:
        raise ValueError(f"questions.{name} needs at least one phrasing under ask and one under held_out")
    trained = {" ".join(text.split()).casefold() for text in group.ask}
    for text in group.held_out:
        if " ".join(text.split()).casefold() in trained:
            raise ValueError(f"questions.{name}: the held-out phrasing {text!r} is also trained on; keep it in one list")
