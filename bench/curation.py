"""Documents per second of processor time of each curation stage beside other packages, on pydoc pages or on your own.

    python bench/curation.py [--pages FOLDER] [--documents 40] [--rounds 5] [--agreement 300] [--gold FOLDER]

Prints one JSON line. A stage and its rivals run one behind the other within each round; the figures are medians over the rounds, ratios
are the median, the lowest and the highest of the rounds' ratios. A rival that is not installed is named under "not_measured".
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import pydoc
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import curation_peers as peers

from luyen.corpus import extract, language, normalise, pii, quality, words
from luyen.corpus.dedup import HASHES, DedupConfig, band_hashes, clusters, signatures
from luyen.corpus.spacy_words import ENGLISH, OTHERS, spacy_words

PACKAGES = ("resiliparse", "trafilatura", "datatrove", "spacy", "pyvi", "datasketch", "rensa")
RULES = {
    "quality rules": ["GopherQualityFilter"], "repetition rules": ["GopherRepetitionFilter"],
    "quality and repetition rules": ["GopherQualityFilter", "GopherRepetitionFilter"],
    "C4 rules": ["C4QualityFilter"], "FineWeb rules": ["FineWebQualityFilter"],
}  # fmt: skip
"""Our names of datatrove's filters."""
MODULES = """abc argparse ast base64 bisect calendar cmath collections configparser contextlib copy csv dataclasses datetime decimal difflib
email.message enum fractions functools glob hashlib heapq html.parser inspect io ipaddress itertools json logging math mimetypes operator os
pathlib pickle pprint queue random re sched secrets shelve shlex shutil socket sqlite3 statistics string struct subprocess tempfile textwrap
threading time timeit tokenize traceback types typing unittest urllib.parse uuid weakref xml.etree.ElementTree zipfile zlib""".split()  # noqa: SIM905


def pydoc_pages(count: int) -> list[bytes]:
    """The HTML that pydoc writes for the first modules of the list."""
    pages = []
    for name in MODULES:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(ImportError):
            pages.append(pydoc.html.page(name, pydoc.html.document(importlib.import_module(name), name)).encode())
        if len(pages) == count:
            break
    return pages


def folder_pages(folder: Path, count: int) -> list[bytes]:
    """HTML files of a folder, taken evenly from all of them in order of their names."""
    paths = sorted(folder.rglob("*.html"))
    return [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]


def stages(pages: Sequence[bytes], raw: Sequence[str], texts: Sequence[str], languages: Sequence[str]) -> dict[str, peers.Work]:
    """Our steps by name."""
    limits = quality.thresholds("web")
    config = DedupConfig()
    bands = band_hashes(signatures(texts, config, 0), config)

    def all_rules(text: str, language: str) -> None:
        # Every rule is measured, also behind one that failed: the slowest case.
        measured = words.Words(text, language)
        for name in limits:
            quality.BY_NAME[name].measure(measured)

    return {
        "extract": peers.each(extract.extract, pages),
        "normalise": peers.each(normalise.normalise, raw),
        "language": peers.each(language.detect, texts),
        "all rules of web": peers.each(all_rules, texts, languages),
        "pii": peers.each(pii.mask, texts, languages),
        "minhash": lambda: band_hashes(signatures(texts, config, 0), config),
        "lsh": lambda: clusters(bands),
        **{name: peers.rules_work(filters, texts, languages) for name, filters in RULES.items()},
    }


def rivals(pages: Sequence[bytes], texts: Sequence[str], languages: Sequence[str]) -> dict[str, dict[str, peers.Work]]:
    """What there is to compare with, by our stage."""
    found = {"extract": peers.html_peers(pages), "minhash": peers.minhash_peers(texts, DedupConfig())}
    if not peers.installed(["datatrove", "spacy"])[1]:
        filters = peers.Filters()
        found |= {name: {f"datatrove {name}": filters.work(names, texts, languages)} for name, names in RULES.items()}
    return found


def forget(others: Sequence[str]) -> None:
    """Leave in memory what a long run over other documents would have left there of words: nothing of the measured texts is flattered."""
    for memory in (words.WORDS, HASHES, ENGLISH, OTHERS):
        memory.clear()
    for text in others:
        words.split_words(text)
        spacy_words(text, "en")
        spacy_words(text, "")
    signatures(others, DedupConfig(), 0)


def rate(work: peers.Work, documents: int, others: Sequence[str]) -> float:
    """Documents per second of processor time of one run: other programs on the machine change it less than time on the clock."""
    forget(others)
    started = time.process_time()
    work()
    return documents / (time.process_time() - started)


def summary(rounds: Sequence[dict[str, float]], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Medians, and for each pair the median, lowest and highest ratio within a round."""
    ratios = {f"{ours} / {theirs}": [row[ours] / row[theirs] for row in rounds] for ours, theirs in pairs}
    return {
        "documents_per_cpu_second": {name: round(statistics.median(row[name] for row in rounds), 1) for name in rounds[0]},
        "ratio": {name: [round(pick(values), 2) for pick in (statistics.median, min, max)] for name, values in ratios.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, help="a folder of HTML files (default: pydoc's pages of the standard library)")
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--agreement", type=int, default=0, help="compare the decisions on this many documents too")
    parser.add_argument("--gold", type=Path, help="a folder of pages with their expected main text, for the quality of the text")
    arguments = parser.parse_args()
    many = max(2 * arguments.documents, arguments.agreement)
    all_pages = folder_pages(arguments.pages, many) if arguments.pages else pydoc_pages(many)
    if not all_pages:
        raise SystemExit(f"no .html files in {arguments.pages}")
    all_raw = [extract.extract(page).text for page in all_pages]
    all_texts = [normalise.normalise(text)[0] for text in all_raw]
    all_languages = [language.detect(text, tuple(peers.CODES))[0] for text in all_texts]
    step = max(1, len(all_pages) // arguments.documents)
    unmeasured = [text for index, text in enumerate(all_texts) if step > 1 and index % step]
    pages, raw, texts, languages = (list(rows)[::step][: arguments.documents] for rows in (all_pages, all_raw, all_texts, all_languages))
    ours, others = stages(pages, raw, texts, languages), rivals(pages, texts, languages)
    works = {name: work for stage, own in ours.items() for name, work in {stage: own, **others.get(stage, {})}.items()}
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds + 1):
        figures = {name: rate(work, len(pages), unmeasured) for name, work in works.items()}
        if number:  # the first round warms up
            rounds.append(figures)
    versions, missing = peers.installed(PACKAGES)
    result = {
        "benchmark": "curation",
        "documents": len(pages),
        "other_documents_before": len(unmeasured),
        "languages": dict(Counter(languages)),
        "mean_html_bytes": round(statistics.mean(map(len, pages))),
        "mean_text_characters": round(statistics.mean(map(len, texts))),
        **summary(rounds, [(stage, name) for stage, found in others.items() for name in found]),
        **(
            {"agreement": peers.agreement(all_texts[: arguments.agreement], all_languages[: arguments.agreement])}
            if arguments.agreement and "datatrove" in versions
            else {}
        ),
        **({"text_f1": peers.text_quality(arguments.gold)} if arguments.gold else {}),
        "versions": versions,
        "not_measured": missing,
        "rounds": arguments.rounds,
        "processors": os.cpu_count(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
