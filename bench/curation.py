"""Documents per second of each curation stage, on pydoc pages of the standard library or on your own pages.

    python bench/curation.py [--pages FOLDER] [--documents 40] [--rounds 5]

Prints one JSON line. The stages and their rivals run in turns within each round; the figures are medians over the rounds, ratios are
medians of the rounds' ratios. A rival that is not installed is named under "not_measured".
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import os
import pydoc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resiliparse.extract.html2text import extract_plain_text

from luyen.corpus import extract, language, normalise, pii, quality, words
from luyen.corpus.dedup import DedupConfig, band_hashes, clusters, signatures

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
    """HTML files of a folder."""
    return [path.read_bytes() for path in sorted(folder.rglob("*.html"))[:count]]


def rate(work: Callable[[], object], documents: int) -> float:
    """Documents per second of one run."""
    started = time.perf_counter()
    work()
    return documents / (time.perf_counter() - started)


def each(function: Callable[[Any], object], items: Sequence[Any]) -> Callable[[], object]:
    """Call a function on every item."""

    def work() -> None:
        for item in items:
            function(item)

    return work


def rivals(pages: Sequence[bytes], texts: Sequence[str], config: DedupConfig) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """What other packages need for the same work, and the names of those that are not installed."""
    decoded = [extract.decode(page)[0] for page in pages]
    found: dict[str, Callable[[], object]] = {
        "resiliparse": each(lambda page: extract_plain_text(extract.decode(page)[0], main_content=True, preserve_formatting=True), pages)
    }
    missing = [name for name in ("trafilatura", "datasketch", "datatrove") if importlib.util.find_spec(name) is None]
    if "trafilatura" not in missing:
        found["trafilatura"] = each(importlib.import_module("trafilatura").extract, decoded)
    if "datasketch" not in missing:
        datasketch: Any = importlib.import_module("datasketch")

        def minhash(text: str) -> None:
            tokens = re.findall(r"\w+", text.lower())
            signature = datasketch.MinHash(num_perm=config.bands * config.rows)
            size = config.shingle
            signature.update_batch({" ".join(tokens[index : index + size]).encode() for index in range(len(tokens) - size + 1)})

        found["datasketch"] = each(minhash, texts)
    return found, missing


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, help="a folder of HTML files (default: pydoc's pages of the standard library)")
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    pages = folder_pages(arguments.pages, arguments.documents) if arguments.pages else pydoc_pages(arguments.documents)
    if not pages:
        raise SystemExit(f"no .html files in {arguments.pages}")
    raw = [extract.extract(page).text for page in pages]
    texts = [normalise.normalise(text)[0] for text in raw]
    limits = quality.thresholds("web")
    config = DedupConfig()

    def all_rules(text: str) -> None:
        # Every rule is measured, also behind one that failed: the slowest case.
        measured = words.Words(text, "en")
        for name in limits:
            quality.BY_NAME[name].measure(measured)

    stages: dict[str, Callable[[], object]] = {
        "extract": each(extract.extract, pages),
        "normalise": each(normalise.normalise, raw),
        "language": each(language.detect, texts),
        "quality+repetition": each(all_rules, texts),
        "pii": each(lambda text: pii.mask(text, "en"), texts),
        "minhash": lambda: band_hashes(signatures(texts, config, 0), config),
        "lsh": lambda: clusters(bands),
    }
    bands = band_hashes(signatures(texts, config, 0), config)
    others, missing = rivals(pages, texts, config)
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds + 1):
        figures = {name: rate(work, len(pages)) for name, work in {**stages, **others}.items()}
        if number:  # the first round warms up
            rounds.append(figures)
    pairs = {"resiliparse": "extract", "trafilatura": "extract", "datasketch": "minhash"}
    result = {
        "benchmark": "curation",
        "documents": len(pages),
        "mean_html_bytes": round(statistics.mean(map(len, pages))),
        "mean_text_characters": round(statistics.mean(map(len, texts))),
        "documents_per_second": {name: round(statistics.median(row[name] for row in rounds), 1) for name in rounds[0]},
        "ratio": {
            f"{pairs[name]} / {name}": round(statistics.median(row[pairs[name]] / row[name] for row in rounds), 2) for name in others
        },
        "not_measured": missing,
        "rounds": arguments.rounds,
        "processors": os.cpu_count(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
