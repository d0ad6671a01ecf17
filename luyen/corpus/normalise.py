"""One form for every text: Unicode NFC, no control or zero-width characters, plain spaces, at most one blank line, no old encodings."""

from __future__ import annotations

import re
import unicodedata

from luyen.corpus import legacy_vietnamese

# Written as code points, so that nothing invisible stands in this file.
_CONTROL = [*range(0x00, 0x09), 0x0B, *range(0x0E, 0x20), *range(0x7F, 0xA0)]
# Soft hyphen, Mongolian vowel separator, zero-width space, direction marks, word joiner and invisible operators, byte-order mark,
# interlinear annotation marks. ZWNJ and ZWJ (200C, 200D) stay: Persian words and emoji need them.
_INVISIBLE = [0xAD, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFC)]
_SPACES = [0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000]
_LINE_ENDS = {0x0C: "\n", 0x85: "\n", 0x2028: "\n", 0x2029: "\n\n"}
_TABLE: dict[int, str | None] = {
    **dict.fromkeys(_CONTROL), **dict.fromkeys(_INVISIBLE), **dict.fromkeys(_SPACES, " "),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"), **_LINE_ENDS,
}  # fmt: skip
_ODD = re.compile("[" + "".join(map(re.escape, map(chr, _TABLE))) + "]")
_BLANK_LINES = re.compile(r"\n{3,}")
_LONG_SPACE = re.compile(r"(?<=\S)[ \t]{80,}")


def _replacement(match: re.Match[str]) -> str:
    return _TABLE[ord(match[0])] or ""


def normalise(text: str) -> tuple[str, str | None]:
    """The normal form of a text, and the old Vietnamese encoding that it was converted from (`tcvn3`, `vni`) or None.

    Indentation and line breaks stay; a run of 80 or more spaces inside a line becomes one.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text, encoding = (text, None) if text.isascii() else legacy_vietnamese.convert(text)
    text = unicodedata.normalize("NFC", _ODD.sub(_replacement, text))
    text = "\n".join(line.rstrip(" \t") for line in _LONG_SPACE.sub(" ", text).split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip("\n").rstrip(), encoding
