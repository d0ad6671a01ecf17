"""Rows of .jsonl and .json files, each with the line and the bytes it came from.

A .json file may hold a list of rows, one row, SQuAD's nesting, or {"data": [rows]}; lists are read element by element, so the file may
be larger than the memory. Python's json accepts more than JSON; here NaN, Infinity and a key given twice make a row bad.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from luyen.data.source import (
    BOM,
    LONG_ROW_BYTES,
    RawRow,
    RowSource,
    bad_characters,
    clean_line,
    first_repeated,
    physical_lines,
    rest_of_stream,
    shown,
    too_long,
)

WRAPPERS = ("data", "rows", "examples", "train", "validation", "test")
"""Keys of a top-level object whose list holds the rows."""
_SUSPECT_ESCAPE = re.compile(r"\\u(?:d[89a-f]|0000)", re.IGNORECASE)
_STRING = r'"(?:[^"\\]|\\.)*+"'
_WRAPPED_LIST = re.compile(  # {"version": "1.1", "data": [{
    r"\{\s*(?:" + _STRING + r"\s*:\s*(?:" + _STRING + r"|[-+.\w]+)\s*,\s*)*+" + f'"(?:{"|".join(WRAPPERS)})"' + r"\s*:\s*\[(?=\s*[\]{])"
)
_SPACE = re.compile(r"[ \t\r\n]*")
_FIRST_READ = 1 << 16


class JsonReader:
    """Decodes JSON text; `problem` tells what was wrong with text that Python accepts and JSON does not."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.decoder = json.JSONDecoder(object_pairs_hook=self._pairs, parse_constant=self._constant)
        self.lenient = json.JSONDecoder(object_pairs_hook=self._pairs, parse_constant=self._constant, parse_int=str)

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            self.problem = f"key {shown(first_repeated(name for name, _ in pairs))} stands twice"
        return result

    def _constant(self, name: str) -> None:
        self.problem = f"{name}, which is not JSON"

    def decode(self, text: str) -> tuple[Any, str | None]:
        """The value of a whole text and its problem (a reason, or None)."""
        self.problem = None
        try:
            value = self.decoder.decode(text)
        except RecursionError:
            return None, "nested too deeply"
        except json.JSONDecodeError as error:
            return None, f"not JSON: {error.msg} at column {error.pos + 1}"
        except ValueError as error:
            return None, _unreadable(error)
        return value, self.check(value, text)

    def decode_at(self, text: str, position: int) -> tuple[Any, int, str | None]:
        """(value, end, problem) of the value that starts at `position`; JSONDecodeError or RecursionError when there is none."""
        self.problem = None
        try:
            value, end = self.decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # only to find where the value ends
            _, end = self.lenient.raw_decode(text, position)
            return None, end, _unreadable(error)
        return value, end, self.check(value, text[position:end])

    def check(self, value: Any, text: str) -> str | None:
        """What is wrong with a value that was decoded."""
        if self.problem:
            return self.problem
        return bad_characters(value) if _SUSPECT_ESCAPE.search(text) or not _encodable(text) else None


def _unreadable(error: ValueError) -> str:
    """The reason for a number of more than 4300 digits, which Python does not convert."""
    return f"not readable: {str(error).split(';')[0]}"


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_lines(source: RowSource) -> Iterator[RawRow]:
    """One row per physical line; a blank line is a bad row, so that accepted + rejected = lines."""
    reader = JsonReader()
    for number, line, rest in physical_lines(source):
        if rest is not None:
            yield RawRow(number, problem=too_long(source), raw=chain([line], rest), streamed=True)
            continue
        text, problem = clean_line(line, source)
        value = None
        if problem is None and not text.strip():
            problem = "a blank line"
        if problem is None:
            value, problem = reader.decode(text)
        yield RawRow(number, value, problem, (line,))


class _Text:
    """A growing window on a JSON text: characters before `position` are forgotten, lines counted."""

    def __init__(self, source: RowSource) -> None:
        self.source = source
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.position, self.end = "", 0, False
        self.line, self.counted = 1, 0  # the line of the character at `counted`
        self.more(_FIRST_READ)
        if self.text.startswith(BOM.decode()):
            source.notes["byte order marks removed"] += 1
            self.text = self.text[1:]

    def more(self, size: int) -> bool:
        """Read about `size` bytes on; False at the end of the file."""
        chunk = self.source.stream.read(size)
        self.end = not chunk
        self.line_here()
        self.text = self.text[self.position :] + self.decoder.decode(chunk, final=self.end)
        self.position = self.counted = 0
        return not self.end

    def peek(self) -> str:
        """The next character that is not white space, '' at the end."""
        while True:
            match = _SPACE.match(self.text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more(_FIRST_READ):
                return ""

    def line_here(self) -> int:
        """1-based line of the position."""
        self.line += self.text.count("\n", self.counted, self.position)
        self.counted = self.position
        return self.line

    def take_value(self, reader: JsonReader) -> tuple[Any, str, str | None]:
        """(value, its text, problem) at the position, which moves behind it. Raises JSONDecodeError or RecursionError."""
        size = _FIRST_READ
        while True:
            try:
                value, end, problem = reader.decode_at(self.text, self.position)
                if end < len(self.text) or self.end:  # a number may go on in the next piece
                    text = self.text[self.position : end]
                    self.position = end
                    return value, text, problem
            except json.JSONDecodeError:
                if self.end or len(self.text) - self.position > self.source.max_row_bytes:
                    raise
            self.more(size)
            size *= 2

    def rest(self) -> Iterator[bytes]:
        """All that is left, as bytes."""
        yield self.text[self.position :].encode("utf-8", "surrogateescape")
        yield from rest_of_stream(self.source.stream)


def json_document(source: RowSource) -> Iterator[RawRow]:
    """Rows of a .json file. When a row's text is broken nothing behind it can be told apart: the rest is one bad row."""
    text = _Text(source)
    reader = JsonReader()
    try:
        first = text.peek()
        wrapper = _WRAPPED_LIST.match(text.text, text.position) if first == "{" else None
        if first == "[":
            text.position += 1
            yield from _elements(text, reader)
        elif wrapper:
            text.position = wrapper.end()
            yield from _elements(text, reader)
            _end_of_object(text, reader)
        else:
            while text.peek():  # one row, or JSON lines under the name .json
                yield _row(text, reader)
        if text.peek():
            raise json.JSONDecodeError("text after the end of the list", text.text, text.position)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"not JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        problem = f"{reason}; nothing from here to the end can be read"
        yield RawRow(text.line_here(), problem=problem, raw=text.rest(), streamed=True)


def _elements(text: _Text, reader: JsonReader) -> Iterator[RawRow]:
    """Elements of a list whose bracket was just read, up to its closing bracket."""
    separator = ","
    if text.peek() == "]":
        separator = "]"
        text.position += 1
    while separator == ",":
        text.peek()
        yield _row(text, reader)
        separator = text.peek()
        if separator not in (",", "]"):
            raise json.JSONDecodeError("Expecting ',' or ']'", text.text, text.position)
        text.position += 1


def _end_of_object(text: _Text, reader: JsonReader) -> None:
    """Read over the keys that follow the list of rows, such as SQuAD's version."""
    while (separator := text.peek()) == ",":
        text.position += 1
        text.peek()
        text.take_value(reader)
        if text.peek() != ":":
            raise json.JSONDecodeError("Expecting ':'", text.text, text.position)
        text.position += 1
        text.peek()
        text.take_value(reader)
    if separator != "}":
        raise json.JSONDecodeError("Expecting ',' or '}'", text.text, text.position)
    text.position += 1


def _row(text: _Text, reader: JsonReader) -> RawRow:
    line = text.line_here()
    value, raw, problem = text.take_value(reader)
    if len(raw) > LONG_ROW_BYTES:
        text.source.notes[f"rows over {LONG_ROW_BYTES:,} bytes"] += 1
    return RawRow(line, value, problem, (raw.encode("utf-8", "surrogateescape"),))
