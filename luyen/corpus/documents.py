"""One raw item through the steps that look at a document alone: read, extract, normalise, language, quality, PII."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luyen.core.errors import DataError
from luyen.corpus.extract import decode, extract
from luyen.corpus.funnel import Funnel
from luyen.corpus.language import LanguageConfig, detect
from luyen.corpus.normalise import normalise
from luyen.corpus.pages import unpack_body
from luyen.corpus.pii import Kind, mask
from luyen.corpus.quality import judge
from luyen.corpus.sources import Item
from luyen.corpus.words import Words

STEPS = ("read", "extract", "normalise", "language", "quality", "pii")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
EXCERPT = 2000
"""Bytes of an item kept in the dropped shard when it was never made text."""
BAD_ROWS = ("malformed", "damaged")
"""Rules that drop a row for its form: such rows are kept byte for byte, whatever their length."""


@dataclass(frozen=True)
class Settings:
    """What the steps need to know."""

    languages: tuple[str, ...]
    language: LanguageConfig
    limits: Mapping[str, float]
    pii: tuple[Kind, ...]
    max_document_bytes: int
    columns: tuple[tuple[str, str | int], ...] = ()
    """Our column names and the file's, where they differ."""
    strict: bool = False
    """Stop at the first bad row."""


@dataclass
class Outcome:
    """The rows that stay and the rows that were dropped with rule and reason, and the counts."""

    kept: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    funnel: Funnel = field(default_factory=lambda: Funnel(STEPS))
    masked: Counter[str] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)


class _Dropped(Exception):
    """A rule dropped the document."""

    def __init__(self, rule: str, reason: str) -> None:
        self.rule, self.reason = rule, reason


@dataclass
class _Raw:
    """A document before extraction."""

    id: str
    url: str
    title: str
    content_type: str
    body: bytes
    text: str | None
    meta: dict[str, Any]


def process(item: Item, settings: Settings, outcome: Outcome) -> None:
    """Take one item through the steps and add what came of it to `outcome`. Raises DataError for a bad row when strict."""
    row: dict[str, Any] = {"id": "", "url": "", "title": "", "language": "", "text": "", "meta": {}, "source": item.place}
    step, size = "read", item.size
    try:
        raw = _read(item, settings)
        row |= {"id": raw.id, "url": raw.url, "title": raw.title, "meta": raw.meta, "text": raw.text or ""}
        outcome.funnel["read"].keep(size, size)
        for step, work in zip(STEPS[1:], (_extract, _normalise, _language, _quality, _pii), strict=True):
            work(raw, row, settings, outcome)
            after = _size(row["text"])
            outcome.funnel[step].keep(size, after)
            size = after
    except _Dropped as reason:
        outcome.funnel[step].drop(size, reason.rule)
        if reason.rule in BAD_ROWS:
            if settings.strict:
                fix = "Mend the row, or leave out read.strict to keep it in the dropped shard and go on."
                raise DataError(f"{item.place}: {reason.reason}", fix=fix) from None
            row |= _exactly(item.data)
        row["text"] = row["text"] or item.data[:EXCERPT].decode("utf-8", "replace")
        row["id"] = row["id"] or hashlib.sha256(item.data).hexdigest()[:16]
        outcome.dropped.append({**row, "rule": reason.rule, "reason": reason.reason})
        return
    del row["source"]
    outcome.kept.append(row)


def _exactly(data: bytes) -> dict[str, Any]:
    """The bytes of a bad row: as `text`, or in base64 when they are not UTF-8."""
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"meta": {"base64": base64.b64encode(data).decode()}}


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _identity(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def _read(item: Item, settings: Settings) -> _Raw:
    limit = settings.max_document_bytes
    if item.kind in ("html", "text"):
        if item.size > limit:
            raise _Dropped("too_large", f"{item.size} bytes, the limit is {limit}")
        kind = "text/html" if item.kind == "html" else "text/plain"
        return _Raw(_identity(item.source, hashlib.sha256(item.data).hexdigest()), item.source, "", kind, item.data, None, {})
    if item.size > len(item.data) + 2:
        raise _Dropped("too_large", f"a line of {item.size} bytes, the limit is {limit} bytes of text")
    if item.problem:
        raise _Dropped("malformed", item.problem)
    try:
        row = json.loads(item.data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise _Dropped("malformed", f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise _Dropped("malformed", f"a JSON {type(row).__name__} instead of an object")
    raw = _page(row) if item.kind == "page" else _row(row, settings.columns)
    try:  # what is written later must be JSON and UTF-8 (the text and the title are mended, not refused)
        json.dumps([raw.id, raw.url, raw.meta], ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise _Dropped("malformed", f"a value that cannot be written: {error}") from None
    size = len(raw.body) if raw.text is None else _size(raw.text)
    if size > limit:
        raise _Dropped("too_large", f"{size} bytes, the limit is {limit}")
    return raw


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value")


def _page(row: dict[str, Any]) -> _Raw:
    """A row of a crawl's pages."""
    try:
        body = unpack_body(row)
        url, digest = str(row["url"]), str(row["sha256"])
        charset = row.get("charset")
        content_type = f"{row['content_type']}; charset={charset}" if charset else str(row["content_type"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _Dropped("malformed", f"not a row of pages: {error!r}") from None
    if hashlib.sha256(body).hexdigest() != digest:
        raise _Dropped("damaged", "the body does not have its sha256")
    if row.get("status", 200) not in (200, 203):
        raise _Dropped("status", f"the server answered {row.get('status')}")
    return _Raw(_identity(url, digest), url, "", content_type, body, None, {})


def _row(row: dict[str, Any], columns: tuple[tuple[str, str | int], ...]) -> _Raw:
    """A row of JSON lines: `text`, and if present `id`, `url`, `title`, `meta`; other simple values go into meta."""
    ours = {str(theirs): name for name, theirs in columns}
    row = {**{key: value for key, value in row.items() if key not in ours}, **{ours[key]: row[key] for key in ours if key in row}}
    text = row.get("text")
    if not isinstance(text, str):
        raise _Dropped("malformed", f'no "text" string, keys are {sorted(map(str, row))[:8]}')
    url, title = str(row.get("url") or ""), _LONE_SURROGATE.sub("\ufffd", str(row.get("title") or ""))
    meta = dict(row["meta"]) if isinstance(row.get("meta"), dict) else {}
    simple = {key: value for key, value in row.items() if isinstance(value, str | int | float | bool)}
    meta |= {key: value for key, value in simple.items() if key not in ("id", "text", "url", "title", "language", "meta")}
    identity = str(row["id"]) if isinstance(row.get("id"), str | int) else _identity(url, title, text)
    return _Raw(identity, url, title, "text/plain", b"", text, meta)


def _extract(raw: _Raw, row: dict[str, Any], settings: Settings, outcome: Outcome) -> None:
    if raw.text is None and raw.content_type.startswith("text/plain"):
        row["text"] = decode(raw.body, raw.content_type)[0]
        if "\0" in row["text"]:
            row["text"] = ""
            raise _Dropped("malformed", "a NUL character in it, so this is no text")
    elif raw.text is None:
        page = extract(raw.body, raw.content_type)
        row["text"], row["title"] = page.text, page.title
    if not row["text"].strip():
        raise _Dropped("empty", "no text in it")


def _normalise(raw: _Raw, row: dict[str, Any], settings: Settings, outcome: Outcome) -> None:
    text, encoding = normalise(row["text"])
    row["title"] = " ".join(normalise(row["title"])[0].split())
    if not text:
        raise _Dropped("empty", "nothing but white space and invisible characters")
    row["text"] = text
    if encoding:
        outcome.converted[encoding] += 1
        row["meta"] = {**row["meta"], "converted_from": encoding}


def _language(raw: _Raw, row: dict[str, Any], settings: Settings, outcome: Outcome) -> None:
    config = settings.language
    language, probability = detect(row["text"], settings.languages if config.only_listed else ())
    row["language"] = language
    if not settings.languages:
        return
    letters = sum(map(str.isalpha, row["text"][: 20 * config.min_characters]))
    if letters < config.min_characters:
        raise _Dropped("too_short_to_tell", f"{letters} letters, at least {config.min_characters} are needed to tell the language")
    if language not in settings.languages:
        raise _Dropped("other_language", f"{language} with probability {probability:.2f}, wanted {', '.join(settings.languages)}")
    if probability < config.min_probability:
        raise _Dropped("uncertain_language", f"{language} with probability {probability:.2f}, below {config.min_probability:g}")


def _quality(raw: _Raw, row: dict[str, Any], settings: Settings, outcome: Outcome) -> None:
    failed = judge(Words(row["text"], row["language"]), settings.limits)
    if failed:
        raise _Dropped(*failed)


def _pii(raw: _Raw, row: dict[str, Any], settings: Settings, outcome: Outcome) -> None:
    row["text"], counts = mask(row["text"], row["language"], settings.pii)
    outcome.masked.update(counts)
