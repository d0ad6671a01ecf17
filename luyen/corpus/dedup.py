"""Exact and near duplicates: MinHash signatures (Broder 1997) cut into bands (Leskovec, Rajaraman and Ullman, ch. 3).

Two documents whose word shingles have Jaccard similarity s share at least one of b bands of r rows with probability 1 - (1 - s^r)^b.
Documents that share a band are joined into clusters (connected components), and one of each cluster stays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rensa import RMinHash

from luyen.core.config import Config
from luyen.corpus.words import Hashes, Pieces, mix, ngrams

_WORD = re.compile(r"\w+")


class DedupConfig(Config):
    """What counts as a duplicate."""

    exact: bool = True
    """Drop documents whose text, white space aside, is the same."""
    near: bool = True
    """Drop near-duplicates found by MinHash."""
    bands: int = Field(default=14, ge=1, le=4096)
    """Bands of the signature; two documents meet when one band agrees. 14 x 8 is FineWeb's choice: half are found at similarity 0.72."""
    rows: int = Field(default=8, ge=1, le=4096)
    """Hash values in each band."""
    shingle: int = Field(default=5, ge=1, le=1000)
    """Words in a shingle."""


def hit_probability(similarity: float, bands: int, rows: int) -> float:
    """The chance that two documents of this Jaccard similarity share a band."""
    return float(1 - (1 - similarity**rows) ** bands)


def text_hash(text: str) -> str:
    """sha256 (hex) of the text with white space folded: equal for exact duplicates."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).hexdigest()


def _word_hashes(piece: str) -> bytes:
    words = (piece,) if piece.isalnum() else _WORD.findall(piece)
    return b"".join([hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() for word in words])


HASHES: Pieces[bytes] = Pieces(_word_hashes)
"""64-bit hashes of the words of each piece between white space, one behind the other."""


def shingles(text: str, size: int) -> Hashes:
    """The set of hashed shingles of `size` lower-case words, sorted. A shorter text is one shingle; a text without words has none."""
    hashes = np.frombuffer(b"".join(HASHES.of(text.lower())), "<u8").astype(np.uint64)
    if not len(hashes):
        return hashes
    found = np.sort(mix(ngrams(hashes, min(size, len(hashes)))))
    distinct: Hashes = found[np.concatenate([[True], found[1:] != found[:-1]])]
    return distinct


def signatures(texts: Iterable[str], config: DedupConfig, seed: int) -> NDArray[np.uint32]:
    """MinHash signatures, one row of bands*rows values a text. A text without words has the signature of the empty set."""
    sets = [shingles(text, config.shingle) for text in texts]
    offsets = np.cumsum([0, *map(len, sets)]).astype(np.uint64)
    flat = np.concatenate(sets) if sets else np.empty(0, np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, config.bands * config.rows, seed)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(sets), config.bands * config.rows)


def band_hashes(signature: NDArray[np.uint32], config: DedupConfig) -> Hashes:
    """One 64-bit hash for each band of each row; shape (documents, bands)."""
    rows = signature.reshape(len(signature), config.bands, config.rows).astype(np.uint64)
    result = np.broadcast_to(np.arange(1, config.bands + 1, dtype=np.uint64), rows.shape[:2]).copy()
    for index in range(config.rows):
        result = mix(result * np.uint64(0x9E3779B97F4A7C15) + rows[:, :, index])
    return result


def clusters(bands: Hashes) -> NDArray[np.int64]:
    """For each row of `bands` the smallest row number it is connected to through shared bands."""
    parents = np.arange(len(bands), dtype=np.int64)
    edges = [_pairs(bands[:, column]) for column in range(bands.shape[1])] if len(bands) else []
    left, right = (np.concatenate(side) for side in zip(*edges, strict=True)) if edges else (parents[:0], parents[:0])
    while True:
        low = np.minimum(parents[left], parents[right])
        before = parents.copy()
        np.minimum.at(parents, left, low)
        np.minimum.at(parents, right, low)
        parents = parents[parents]
        if np.array_equal(parents, before):
            return parents


def _pairs(column: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Neighbours among equal values: enough edges to connect all that are equal."""
    order = np.argsort(column, kind="stable")
    same = column[order[1:]] == column[order[:-1]]
    return order[:-1][same], order[1:][same]


def representatives(groups: NDArray[np.int64], sizes: Sequence[int], names: Sequence[str]) -> NDArray[np.int64]:
    """For each document the one that stays of its cluster: the longest, then the smallest name, whatever the order of the documents."""
    best: dict[int, int] = {}
    for index, group in enumerate(groups.tolist()):
        other = best.setdefault(group, index)
        if (-sizes[index], names[index]) < (-sizes[other], names[other]):
            best[group] = index
    return np.array([best[group] for group in groups.tolist()], np.int64)
