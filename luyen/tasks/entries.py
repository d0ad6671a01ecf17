"""Documents to entries: what a template's patterns find, and the one clean sentence each entry is described by.

A pattern may be slow on some text (nested repeats need exponential time), so the search of one document is given
`SECONDS_PER_DOCUMENT` of processor time; Python's matcher looks for signals while it works. The limit holds in the main
thread, where signals are delivered; elsewhere patterns run without it.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType

from luyen.core.errors import DataError
from luyen.core.records import Document
from luyen.tasks.template import AnswerRule, EntryRule, Template, fill

SECONDS_PER_DOCUMENT = 10.0
EMPTY, TOO_SHORT = "no description", "description too short"
SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s)")
LINE_BREAK = re.compile(r"\r\n?")
BLANK = re.compile(r"\n[^\S\n]*\n")


@dataclass(frozen=True)
class Entry:
    """Something a document describes under a name."""

    kind: str
    name: str
    description: str
    """The clean first sentence; empty when the cleaning rules left nothing (see `Reading.account`)."""
    fields: dict[str, str]
    """Every value that a phrasing may use."""
    text: str
    """The whole passage as the document has it."""
    url: str
    document: str


@dataclass(frozen=True)
class Reading:
    """What was found in some documents."""

    entries: list[Entry]
    """Entries that can be asked about, in the documents' order."""
    others: list[Entry]
    """Entries that were left out (each is counted in `account`), kept because they are still worth searching."""
    account: dict[str, int]
    """How many matches were kept and why the others were not; `matches` is the sum of the rest."""


@dataclass(frozen=True)
class _Found:
    start: int
    end: int
    rule: EntryRule | None
    match: re.Match[str]
    clear: list[str]


def read_entries(documents: Iterable[Document], template: Template) -> Reading:
    """Find and clean every entry of the documents. DataError when a pattern takes too long on a document."""
    kept: list[Entry] = []
    others: list[Entry] = []
    account: Counter[str] = Counter()
    names: set[str] = set()
    within: Counter[tuple[str, str]] = Counter()
    for document in documents:
        account["documents"] += 1
        with _time_limit(document):
            found = list(_read_document(document, template))
        for entry, rule, reason in found:
            account["matches"] += 1
            if not reason and entry.name in names:
                reason = "same name as an earlier entry"
            place = (rule.kind, entry.fields.get(rule.limit_within, ""))
            if not reason and rule.limit is not None and within[place] >= rule.limit:
                reason = f"over the limit of {rule.limit} per {rule.limit_within}"
            account[reason or "kept"] += 1
            if reason:
                others.append(entry)
                continue
            within[place] += 1
            names.add(entry.name)
            kept.append(entry)
    return Reading(kept, others, dict(account))


def describe(text: str, rule: AnswerRule) -> tuple[str, str]:
    """The description in a text's opening paragraphs, and "" or why there is none; empty and too short ones are passed over."""
    reason = EMPTY
    for paragraph in BLANK.split(text.strip("\n"))[: rule.paragraphs]:
        description, reason = clean(paragraph, rule)
        if reason not in (EMPTY, TOO_SHORT):
            return description, reason
    return "", reason


def clean(text: str, rule: AnswerRule) -> tuple[str, str]:
    """The description made of one paragraph, and "" or the reason why there is none."""
    for pattern, replacement in rule.replace:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    text = " ".join(text.split())
    if rule.first_sentence:
        text = _first_sentence(text, rule.abbreviations)
    if not text:
        return "", EMPTY
    if text[-1] not in ".!?" and not (len(text) > 1 and text[-1] in "\"')]" and text[-2] in ".!?"):
        text = text.rstrip(" ,;:-") + "."
    if any(re.search(pattern, text) for pattern in rule.skip):
        return "", "description left out by a rule"
    words = len(text.split())
    if words < rule.minimum_words:
        return "", TOO_SHORT
    if words > rule.maximum_words or len(text) > rule.maximum_characters:
        return "", "description too long"
    return text, ""


def _first_sentence(text: str, abbreviations: list[str]) -> str:
    for match in SENTENCE_END.finditer(text):
        word = text[: match.end()].rsplit(maxsplit=1)[-1].lstrip("(\"'[")
        if word not in abbreviations:
            return text[: match.end()]
    return text


def _read_document(document: Document, template: Template) -> Iterator[tuple[Entry, EntryRule, str]]:
    text = LINE_BREAK.sub("\n", document.text).replace("\u00a0", " ")
    values = {"title": document.title, "url": document.url, "id": document.id}
    for fact in template.document:
        source = text if fact.source == "text" else str(getattr(document, fact.source))
        match = re.search(fact.pattern, source, re.MULTILINE)
        if match and match[1] and fact.name not in values:
            values[fact.name] = match[1]
    found = _find(text, template)
    taken = 0
    for index, item in enumerate(found):
        for name in item.clear:
            values.pop(name, None)
        groups = {name: value for name, value in item.match.groupdict().items() if value is not None}
        if item.rule is None:
            values.update(groups)
            continue
        if any(name not in values and name not in groups for name in item.rule.requires):
            continue
        if item.start < taken or any(name in values for name in item.rule.refuses):
            continue
        taken = item.end
        following = next((other.start for other in found[index + 1 :] if other.start >= item.end), len(text))
        yield _entry(document, item, {**values, **groups}, text[item.start : following], template)


def _find(text: str, template: Template) -> list[_Found]:
    """Matches of contexts and entries from top to bottom; at one place contexts come first, then entries in the file's order."""
    found = [
        _Found(match.start(), match.end(), None, match, context.clear)
        for context in template.contexts
        for match in re.finditer(context.pattern, text, re.MULTILINE)
    ]
    for rule in template.entries:
        found += [_Found(match.start(), match.end(), rule, match, []) for match in re.finditer(rule.pattern, text, re.MULTILINE)]
    return sorted(found, key=lambda item: (item.start, item.rule is not None))


def _entry(document: Document, item: _Found, fields: dict[str, str], passage: str, template: Template) -> tuple[Entry, EntryRule, str]:
    rule = item.rule
    assert rule is not None
    below = fields.get("description") or passage[item.end - item.start :]
    description, reason = describe(below, template.answer)
    try:
        name = fill(rule.name, fields)
    except KeyError as error:
        name, reason = item.match[0].split("\n")[0].strip(), f"no value for {error.args[0]}"
    if any(re.search(pattern, name) for pattern in rule.skip):
        reason = "name left out by a rule"
    topic = description[:1].lower() + description[1:] if description[1:2].islower() or description[1:2] == " " else description
    fields = {**fields, "name": name, "description": description, "topic": topic.rstrip(".")}
    return Entry(rule.kind, name, description, fields, passage.strip(), document.url, document.id), rule, reason


@contextlib.contextmanager
def _time_limit(document: Document) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise DataError(
            f"the template's patterns take too long on document {document.id!r}",
            found=f"more than {SECONDS_PER_DOCUMENT:g} s",
            fix="Look for nested repeats such as (a+)+ in its patterns.",
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS_PER_DOCUMENT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
