"""Near-duplicates: the S-curve of the theory, clusters of windows, and independence of order."""

import itertools
import math
import random

import numpy as np
import pytest

from luyen.corpus.dedup import DedupConfig, band_hashes, clusters, hit_probability, representatives, shingles, signatures, text_hash

VOCABULARY = [f"w{index}" for index in range(4000)]


def band_rows(texts: list[str], config: DedupConfig, seed: int = 0) -> np.ndarray:
    return band_hashes(signatures(texts, config, seed), config)


@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (20, 5)])
def test_hits_follow_the_s_curve(bands: int, rows: int) -> None:
    """Pairs of sets with exactly known Jaccard similarity meet as often as 1 - (1 - s^r)^b says, within three sigma."""
    config = DedupConfig(bands=bands, rows=rows, shingle=1)
    generator = random.Random(1)
    pairs = 400
    for shared, own in ((70, 15), (80, 10), (90, 5)):  # s = shared / (shared + 2 own)
        similarity = shared / (shared + 2 * own)
        texts: list[str] = []
        for _ in range(pairs):
            words = generator.sample(VOCABULARY, shared + 2 * own)
            texts += [" ".join(words[: shared + own]), " ".join(words[:shared] + words[shared + own :])]
        bands_of = band_rows(texts, config)
        hits = int((bands_of[0::2] == bands_of[1::2]).any(axis=1).sum())
        expected = hit_probability(similarity, bands, rows)
        sigma = math.sqrt(pairs * expected * (1 - expected))
        assert abs(hits - pairs * expected) <= 3 * sigma + 1e-9, (similarity, hits, pairs * expected)


def test_estimated_similarity_is_unbiased() -> None:
    config = DedupConfig(bands=32, rows=8, shingle=1)
    words = VOCABULARY[:300]
    rows = signatures([" ".join(words[:200]), " ".join(words[100:300])], config, 3)
    assert abs(float((rows[0] == rows[1]).mean()) - 1 / 3) < 3 * math.sqrt(1 / 3 * 2 / 3 / 256)


def test_windows_of_one_text_leave_one_per_cluster() -> None:
    """Windows that overlap almost wholly fall together, also through a chain; others stay apart (the layout of datatrove's test)."""
    generator = random.Random(5)
    words = [generator.choice(VOCABULARY) for _ in range(3000)]
    groups = [[0, 3, 6], [400, 403], [800, 804, 808, 812, 816, 820], [1205, 1210, 1215], [1600], [2000]]
    starts = list(itertools.chain.from_iterable(groups))
    texts = [" ".join(words[start : start + 300]) for start in starts]
    labels = clusters(band_rows(texts, DedupConfig(bands=20, rows=5)))
    expected = [min(i for i, other in enumerate(starts) if other in group) for group in groups for _ in group]
    assert labels.tolist() == expected
    assert len(set(labels.tolist())) == 6


def test_kept_documents_do_not_depend_on_order() -> None:
    generator = random.Random(2)
    base = [generator.choices(VOCABULARY, k=120) for _ in range(20)]
    documents = {f"{number}-{copy}": " ".join([*words, *["tail"] * copy]) for number, words in enumerate(base) for copy in range(3)}
    kept = []
    for seed in range(4):
        names = list(documents)
        random.Random(seed).shuffle(names)
        texts = [documents[name] for name in names]
        best = representatives(clusters(band_rows(texts, DedupConfig())), [len(text) for text in texts], names)
        kept.append({names[index] for index in best.tolist()})
    assert kept[0] == kept[1] == kept[2] == kept[3]
    assert kept[0] == {f"{number}-2" for number in range(20)}  # the longest of each three


def test_ties_are_broken_by_name() -> None:
    groups = np.array([0, 0, 0], np.int64)
    assert representatives(groups, [5, 5, 4], ["b", "a", "c"]).tolist() == [1, 1, 1]


def test_clusters_connects_long_chains() -> None:
    """A chain of 500 documents, each sharing one band with the next, is one cluster."""
    bands = np.array([[index // 2 + 1, 10_000 + (index + 1) // 2] for index in range(500)], np.uint64)
    order = np.random.default_rng(0).permutation(500)
    assert set(clusters(bands[order]).tolist()) == {0}
    assert clusters(np.empty((0, 14), np.uint64)).tolist() == []


def test_shingles() -> None:
    assert len(shingles("a b c d e f", 5)) == 2
    assert np.array_equal(shingles("A, b; C d e!", 5), shingles("a b c d e", 5))
    assert len(shingles("a b", 5)) == 1 and len(shingles("...", 5)) == 0
    assert len(np.intersect1d(shingles("ab c", 2), shingles("a bc", 2))) == 0  # no joining without a separator


def test_signature_is_the_same_in_every_batch() -> None:
    texts = [" ".join(VOCABULARY[i : i + 40]) for i in range(0, 200, 20)]
    together = signatures(texts, DedupConfig(), 7)
    alone = np.concatenate([signatures([text], DedupConfig(), 7) for text in texts])
    assert np.array_equal(together, alone)
    assert not np.array_equal(together, signatures(texts, DedupConfig(), 8))


def test_exact_hash_ignores_white_space_only() -> None:
    assert text_hash("a  b\n c ") == text_hash("a b c") != text_hash("a b C")
