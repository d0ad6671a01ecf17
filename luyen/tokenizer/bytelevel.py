"""What byte-level vocabularies share: how a byte is spelt in `tokenizer.json`, how text is cut before merging, its normal form."""

from __future__ import annotations

import functools
import unicodedata

from tokenizers import normalizers

PRETOKENIZERS = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
"""How Qwen2, Llama 3 and GPT-2 cut text; llama.cpp implements the three under names of its own."""

_COMPOSED = normalizers.NFC()
_NEWER_THAN_PYTHON = (
    "\U00011935\U00011930",  # Unicode 13: composes
    "a\u0898\u0316",  # 14: the marks change places, as below
    "a\u0301\U00010efd",  # 15
    "\U000105d2\u0307",  # 16: composes
    "a\u0897\u0316",  # 16
    "a\u1acf\u0316",  # 17
)
"""Not in normal form by the tables of that version of Unicode, in normal form by older ones."""


def _spelling() -> tuple[str, ...]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(byte if byte in printable else 0x100 + others.index(byte)) for byte in range(256))


SPELLING = _spelling()
"""The letter for each byte. GPT-2 spells a printable Latin-1 character as itself and the others, in order, from U+0100 on."""
_BYTES = {letter: byte for byte, letter in enumerate(SPELLING)}


def spell(token: bytes) -> str:
    """Bytes as `tokenizer.json` writes them."""
    return "".join(SPELLING[byte] for byte in token)


def unspell(name: str) -> bytes:
    """The bytes of an entry of a byte-level vocabulary."""
    return bytes(_BYTES[letter] for letter in name)


def composed(text: str) -> str:
    """A text in normal form NFC, exactly as tokenizers composes it.

    Python tells twenty times faster that nothing is to be done, as nearly always; its word is taken only where its tables of Unicode
    know what those of tokenizers know.
    """
    if _python_knows_enough() and unicodedata.is_normalized("NFC", text):
        return text
    return str(_COMPOSED.normalize_str(text))


@functools.cache
def _python_knows_enough() -> bool:
    return not any(unicodedata.is_normalized("NFC", text) and _COMPOSED.normalize_str(text) != text for text in _NEWER_THAN_PYTHON)
