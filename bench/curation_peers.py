"""The other packages that bench/curation.py compares with, each at its documented settings, and how often datatrove decides as we do."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from resiliparse.extract.html2text import extract_plain_text

from luyen.corpus import extract, quality
from luyen.corpus.dedup import DedupConfig
from luyen.corpus.published import FILTERS
from luyen.corpus.words import STOP_WORDS, Words, split_words

Work = Callable[[], object]
CODES = {"en": "eng", "vi": "vie", "ru": "rus"}
"""Our names of languages and datatrove's."""


def each(function: Callable[..., object], *items: Sequence[Any]) -> Work:
    """Call a function on every item."""

    def work() -> None:
        for row in zip(*items, strict=True):
            function(*row)

    return work


def installed(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Versions of the packages that are there, and the names of the others."""
    there = {name for name in names if importlib.util.find_spec(name) is not None}
    return {name: importlib.metadata.version(name) for name in names if name in there}, [name for name in names if name not in there]


def html_peers(pages: Sequence[bytes]) -> dict[str, Work]:
    """Main text of a page. trafilatura gets text that is already decoded, resiliparse decodes as we do."""
    found: dict[str, Work] = {name: each(function, pages) for name, function in _extractors().items()}
    return found


def _extractors() -> dict[str, Callable[[bytes], str]]:
    found: dict[str, Callable[[bytes], str]] = {
        "resiliparse": lambda page: str(extract_plain_text(extract.decode(page)[0], main_content=True, preserve_formatting=True))
    }
    if importlib.util.find_spec("trafilatura"):
        peer: Any = importlib.import_module("trafilatura")
        found["trafilatura"] = lambda page: peer.extract(extract.decode(page)[0]) or ""
        found["trafilatura fast"] = lambda page: peer.extract(extract.decode(page)[0], fast=True) or ""
    return found


def minhash_peers(texts: Sequence[str], config: DedupConfig) -> dict[str, Work]:
    """Signatures of one document of as many hashes over shingles of as many words. datatrove's default hash, xxhash, does not work with
    version 4 of that package, so the other one it documents, sha1, is taken."""
    size, hashes = config.shingle, config.bands * config.rows
    found: dict[str, Work] = {}

    def shingles(text: str) -> set[str]:
        tokens = re.findall(r"\w+", text.lower())
        return {" ".join(tokens[index : index + size]) for index in range(len(tokens) - size + 1)}

    if importlib.util.find_spec("datasketch"):
        datasketch: Any = importlib.import_module("datasketch")
        found["datasketch"] = each(
            lambda text: datasketch.MinHash(num_perm=hashes).update_batch([x.encode() for x in shingles(text)]), texts
        )
    if importlib.util.find_spec("rensa"):
        rensa: Any = importlib.import_module("rensa")

        def digest(text: str) -> object:
            signature = rensa.RMinHash(hashes, 42)
            signature.update(list(shingles(text)))
            return signature.digest()

        found["rensa"] = each(digest, texts)
    if importlib.util.find_spec("datatrove"):
        peer: Any = importlib.import_module("datatrove.pipeline.dedup.minhash")
        kind = importlib.import_module("datatrove.utils.hashing").HashConfig(hash_fc="sha1")
        settings = peer.MinhashConfig(n_grams=size, num_buckets=config.bands, hashes_per_bucket=config.rows, hash_config=kind)
        step = peer.MinhashDedupSignature(tempfile.gettempdir(), config=settings)
        found["datatrove minhash"] = each(lambda text: step.get_signature(step.get_shingles(text)), texts)
    return found


class Filters:
    """datatrove's four filters, made once for each language."""

    def __init__(self) -> None:
        self.module: Any = importlib.import_module("datatrove.pipeline.filters")
        self.document: Any = importlib.import_module("datatrove.data").Document
        self.parts: Any = importlib.import_module("datatrove.utils.text").split_into_parts
        self.made: dict[tuple[str, str], Any] = {}

    def reason(self, name: str, text: str, language: str) -> str:
        """Why a filter drops a text, or an empty string. Stop words are ours for the language, words are datatrove's."""
        if (name, language) not in self.made:
            extra = {"stop_words": sorted(STOP_WORDS[language])} if name == "GopherQualityFilter" else {}
            self.made[name, language] = getattr(self.module, name)(language=CODES[language], **extra)
        result = self.made[name, language].filter(self.document(text, "x"))
        return str(result[1]) if isinstance(result, tuple) else ""

    def words(self, language: str) -> Callable[[str], list[str]]:
        """datatrove's way to split."""
        return lambda text: list(self.parts(text, mode="WORDS", language=CODES[language]))

    def work(self, names: Sequence[str], texts: Sequence[str], languages: Sequence[str]) -> Work:
        """Each text through the filters one after the other, as its pipeline does: the later ones find the words in its cache."""

        def run() -> None:
            self.parts.cache_clear()
            for text, language in zip(texts, languages, strict=True):
                for name in names:
                    self.reason(name, text, language)

        return run


def rules_work(names: Sequence[str], texts: Sequence[str], languages: Sequence[str]) -> Work:
    """The same with our rules of the preset `datatrove`."""
    limits = quality.thresholds("datatrove")
    groups = [{rule: limits[rule] for rule in FILTERS[name]} for name in names]

    def run() -> None:
        for text, language in zip(texts, languages, strict=True):
            words = Words(text, language)
            for group in groups:
                quality.judge(words, group)

    return run


def agreement(texts: Sequence[str], languages: Sequence[str]) -> dict[str, Any]:
    """The share of documents on which our preset `datatrove` decides as each filter, with our words and with datatrove's, by language;
    and how many documents of each language it keeps."""
    filters, limits = Filters(), quality.thresholds("datatrove")
    same: dict[str, Counter[tuple[str, str]]] = {"our words": Counter(), "datatrove's words": Counter()}
    kept: Counter[tuple[str, str]] = Counter()
    for text, language in zip(texts, languages, strict=True):
        for splitter, split in (("our words", split_words), ("datatrove's words", filters.words(language))):
            words = Words(text, language, split)
            for name, rules in FILTERS.items():
                theirs = filters.reason(name, text, language)
                ours = quality.judge(words, {rule: limits[rule] for rule in rules})
                same[splitter][name, language] += bool(theirs) == bool(ours)
                kept[name, language] += not theirs
    totals = Counter(languages)
    return {
        "documents": dict(totals),
        **{
            splitter: {name: {language: round(counts[name, language] / totals[language], 4) for language in totals} for name in FILTERS}
            for splitter, counts in same.items()
        },
        "kept by datatrove": {name: {language: kept[name, language] // 2 for language in totals} for name in FILTERS},
    }


class _Text(HTMLParser):
    """The text of an HTML file, tags left out."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def text_quality(folder: Path) -> dict[str, float]:
    """Mean F1 of words, with their numbers, against the expected main text: of each extractor, on pages of Mozilla's readability
    (`NAME/source.html`, `NAME/expected.html`)."""
    found: dict[str, Callable[[bytes], str]] = {"luyen": lambda page: extract.extract(page).text, **_extractors()}
    scores: dict[str, list[float]] = {name: [] for name in found}
    for source in sorted(folder.rglob("source.html")):
        parser = _Text()
        parser.feed(source.with_name("expected.html").read_text(encoding="utf-8"))
        wanted = Counter(re.findall(r"\w+", " ".join(parser.parts)))
        for name, function in found.items():
            got = Counter(re.findall(r"\w+", function(source.read_bytes())))
            scores[name].append(2 * (wanted & got).total() / max(1, wanted.total() + got.total()))
    return {name: round(sum(values) / max(1, len(values)), 4) for name, values in scores.items()}
