"""Fertility: how many tokens a word costs, language by language (the term after Rust et al., 2021, arXiv:2012.15613).

A vocabulary learnt from mostly one language cuts the words of the others into more tokens, down to single bytes of a letter:
their texts are longer to read, dearer to serve and harder to learn from. The table says by how much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

from luyen.tokenizer.bytelevel import SPELLING
from luyen.tokenizer.load import Tokenizer

BATCH = 256
_WORDS = r"[\p{L}\p{M}\p{N}_]+"
"""A run of letters, marks, digits of any script. Scripts written without spaces give one word per phrase."""


@dataclass
class _Counts:
    documents: int = 0
    bytes: int = 0
    words: int = 0
    tokens: int = 0
    single_bytes: int = 0
    unknown: int = 0


def fertility(tokenizer: Tokenizer, texts_by_language: Mapping[str, Iterable[str]]) -> list[dict[str, Any]]:
    """One row per language, in the order given.

    Rows: language, documents, bytes (UTF-8), words, tokens, tokens_per_word, bytes_per_token, single_byte_share (of tokens: one
    byte of a letter that has several) and unknown_share (of tokens). A ratio of nothing is None.
    """
    bytes_alone, unknown = fragment_ids(tokenizer), tokenizer.unknown_id
    splitter = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    rows = []
    for language, texts in texts_by_language.items():
        counts = _Counts()
        for batch in _batches(texts):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                counts.documents += 1
                counts.bytes += len(text.encode())
                counts.words += len(splitter.pre_tokenize_str(text))
                counts.tokens += len(ids)
                counts.single_bytes += sum(index in bytes_alone for index in ids)
                counts.unknown += ids.count(unknown) if unknown is not None else 0
        rows.append(_row(language, counts))
    return rows


def _row(language: str, counts: _Counts) -> dict[str, Any]:
    return {
        "language": language,
        "documents": counts.documents,
        "bytes": counts.bytes,
        "words": counts.words,
        "tokens": counts.tokens,
        "tokens_per_word": _ratio(counts.tokens, counts.words),
        "bytes_per_token": _ratio(counts.bytes, counts.tokens),
        "single_byte_share": _ratio(counts.single_bytes, counts.tokens),
        "unknown_share": _ratio(counts.unknown, counts.tokens),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def fragment_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that hold a single byte of a character which has several (0x80 and above)."""
    names = fragment_names()
    return frozenset(index for index in range(tokenizer.vocab_size) if tokenizer.token(index) in names)


def fragment_names() -> frozenset[str]:
    """How vocabularies spell the bytes 0x80 to 0xFF: byte-level BPE as a letter, SentencePiece's byte fallback as `<0xE1>`."""
    return frozenset([*SPELLING[0x80:], *(f"<0x{byte:02X}>" for byte in range(0x80, 0x100))])
