"""SQuAD's nesting (Rajpurkar et al., 2016, arXiv:1606.05250): an article with paragraphs with questions, as one row per question."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luyen.data.source import RawRow
from luyen.data.turns import kind

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class _Part:
    """The bytes of one value inside a row's JSON, found only when they are asked for."""

    raw: tuple[bytes, ...]
    path: tuple[str | int, ...]

    def __iter__(self) -> Iterator[bytes]:
        text = b"".join(self.raw).decode("utf-8-sig", "surrogateescape")
        start, end = locate(text, self.path)
        yield text[start:end].encode("utf-8", "surrogateescape")


def questions(row: RawRow) -> Iterator[RawRow]:
    """The questions of an article (a row with "paragraphs"), each a row; any other row as it is."""
    if row.problem or not isinstance(row.value, Mapping) or not isinstance(row.value.get("paragraphs"), list):
        yield row
        return
    raw = tuple(row.raw)
    for number, paragraph in enumerate(row.value["paragraphs"]):
        path: tuple[str | int, ...] = ("paragraphs", number)
        if not isinstance(paragraph, Mapping) or not isinstance(paragraph.get("qas"), list):
            yield RawRow(row.line, None, f"paragraphs[{number}] is {kind(paragraph)}, not an object with context and qas", _Part(raw, path))
            continue
        for index, question in enumerate(paragraph["qas"]):
            part = _Part(raw, (*path, "qas", index))
            if isinstance(question, Mapping):
                yield RawRow(row.line, _flat(question, paragraph), None, part)
            else:
                yield RawRow(row.line, None, f"paragraphs[{number}].qas[{index}] is {kind(question)}, not an object", part)


def _flat(question: Mapping[str, Any], paragraph: Mapping[str, Any]) -> dict[str, Any]:
    columns = ("id", "question", "answers")
    return {"context": paragraph.get("context")} | {key: question[key] for key in columns if key in question}


def locate(text: str, path: Sequence[str | int]) -> tuple[int, int]:
    """Start and end of the value at `path` (keys and list indices) inside valid JSON."""
    position = _skip(text, 0)
    for step in path:
        position = _skip(text, position + 1)
        if isinstance(step, int):
            for _ in range(step):
                position = _next(text, position)
            continue
        while True:
            key, end = _DECODER.raw_decode(text, position)
            position = _skip(text, _skip(text, end) + 1)
            if key == step:
                break
            position = _next(text, position)
    return position, _DECODER.raw_decode(text, position)[1]


def _next(text: str, position: int) -> int:
    """The start of the element or key behind the value at `position`."""
    return _skip(text, _skip(text, _DECODER.raw_decode(text, position)[1]) + 1)


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
