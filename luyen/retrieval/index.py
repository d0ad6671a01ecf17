"""An index of passages by their words: Okapi BM25 (Robertson and Zaragoza, 2009) as Lucene weighs it, computed by bm25s.

Words are runs of letters and digits in any script, case folded. A dotted name counts whole and in its parts, and so does a
name with underscores, so that `json.dumps` is found by itself, by `json` and by `dumps`. On disk: arrays and JSON, no pickle.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import bm25s
import numpy

from luyen.core.errors import DamagedFile, DataError
from luyen.core.files import read_jsonl, write_jsonl
from luyen.core.manifest import recover, verify_listed
from luyen.core.records import Document
from luyen.core.storage import read_json

WORD = re.compile(r"\w+(?:\.\w+)*")
COMPOUND = re.compile(r"[._]")
BLANK = re.compile(r"\n[^\S\n]*\n")
HEADING = re.compile(r"#{1,6} +(.*)")
WORTH_READING = 0.4
"""Share of a query's weight that a passage must hold to be given to a model."""
PASSAGES, FACTS = "passages.jsonl", "index.json"


@dataclass(frozen=True)
class Passage:
    """A piece of a document that can be found."""

    id: str
    title: str
    text: str
    url: str = ""
    answer: str = ""
    """The passage in one sentence, where that is known."""


@dataclass(frozen=True)
class Hit:
    """A passage and how well it fits; higher is better."""

    passage: Passage
    score: float


class Index:
    """Passages and their words. Build it with `build`, read it with `load` or `from_file`."""

    def __init__(self, passages: Sequence[Passage], weights: bm25s.BM25) -> None:
        self.passages = list(passages)
        self._weights = weights
        self._frequency = Counter(word for passage in self.passages for word in {*words(passage.title), *words(passage.text)})
        self._titles: dict[str, list[int]] = {}
        for index, passage in enumerate(self.passages):
            self._titles.setdefault(_folded(passage.title), []).append(index)

    @classmethod
    def build(cls, passages: Iterable[Passage]) -> Index:
        """Index passages by title and text. DataError when there is nothing to index."""
        passages = list(passages)
        tokens = [words(passage.title) + words(passage.text) for passage in passages]
        if not any(tokens):
            raise DataError("no passages to index", found=f"{len(passages)} passages without a word", expected="text")
        weights = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numpy", csc_backend="numpy", auto_compile=False)
        weights.index(tokens, show_progress=False)
        return cls(passages, weights)

    @classmethod
    def from_file(cls, path: Path) -> Index:
        """Index the rows {"id", "title", "text", "url", "answer"} of a jsonl file."""
        return cls.build(_read_passages(Path(path)))

    def search(self, query: str, k: int = 5) -> list[Hit]:
        """The best `k` passages that share a word with the query, best first; equal ones in the passages' order.

        A passage whose title is a compound name of the query (`json.dumps`) comes before those that only mention it, which a long page
        may do often; a plain word proves nothing, because it may stand in the query by chance.
        """
        known = [word for word in words(query) if word in self._weights.vocab_dict]
        if not known or k < 1:
            return []
        scores = numpy.asarray(self._weights.get_scores(known))
        named = numpy.zeros(len(scores))
        for word in WORD.findall(_folded(query)):
            if COMPOUND.search(word):
                named[self._titles.get(word, [])] = len(word)
        order = numpy.lexsort((-scores, -named))[:k]
        return [Hit(self.passages[index], float(scores[index])) for index in order.tolist() if scores[index] > 0]

    def relevant(self, query: str) -> Hit | None:
        """The best passage, unless it has too little to do with the query to be worth reading: then None.

        It is worth reading when the query holds its title or the title's last part, or when at least two of the query's words stand in
        it that carry 40 % of the query's weight (inverse document frequency; a word of no passage weighs like one of a single passage,
        as it may be what is asked about).
        """
        hits = self.search(query, 1)
        if not hits:
            return None
        asked, held = set(words(query)), set(words(hits[0].passage.title)) | set(words(hits[0].passage.text))
        title, whole = _folded(hits[0].passage.title), set(WORD.findall(_folded(query)))
        if title in whole or title.rpartition(".")[2] in whole:
            return hits[0]
        weight = {word: math.log((len(self.passages) + 1) / (max(self._frequency[word], 1) + 0.5)) for word in asked}
        common = asked & held
        enough = sum(weight[word] for word in common) >= WORTH_READING * sum(weight.values())
        return hits[0] if len(common) >= 2 and enough else None

    def save(self, folder: Path) -> None:
        """Write passages.jsonl, index.json and the arrays into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / PASSAGES, (asdict(passage) for passage in self.passages))
        self._weights.save(folder, allow_pickle=False, show_progress=False)
        (folder / FACTS).write_text(json.dumps({"version": 1, "passages": len(self.passages)}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Read what `save` wrote. DataError when the folder is no index.

        DamagedFile when a part differs from the manifest that lists it, or when the parts do not fit each other.
        """
        folder = Path(folder)
        recover(folder)
        verify_listed(folder)
        if not (folder / FACTS).is_file():
            raise DataError(f"{folder} is no index", expected=f"a folder with {FACTS}", fix="Build one with Index.build(...).save(folder).")
        passages = _read_passages(folder / PASSAGES)
        try:
            weights = bm25s.BM25.load(folder, load_corpus=False, allow_pickle=False, load_vocab=True)
        except (OSError, ValueError, KeyError) as error:
            raise DamagedFile(folder, f"cannot be read as an index ({error})") from error
        facts = read_json(folder / FACTS)
        count = facts.get("passages") if isinstance(facts, dict) else None
        if not count == len(passages) == weights.scores["num_docs"]:
            raise DamagedFile(folder, f"holds {len(passages)} passages, {count} promised and {weights.scores['num_docs']} indexed")
        return cls(passages, weights)


def words(text: str) -> list[str]:
    """The words of a text as they are indexed: NFC, case folded, compound names whole and in parts."""
    found: list[str] = []
    for word in WORD.findall(_folded(text)):
        found.append(word)
        parts = word.split(".")
        if len(parts) > 1:
            found += parts
        for part in parts:
            pieces = [piece for piece in part.split("_") if piece]
            if pieces and pieces != [part]:
                found += pieces
    return found


def split(documents: Iterable[Document], max_characters: int = 800) -> Iterator[Passage]:
    """Documents as passages of whole paragraphs, each at most `max_characters` long unless one paragraph is longer.

    A heading begins a new passage and, behind the document's title, is part of its passages' titles.
    """
    for document in documents:
        title, heading, number = document.title or document.id, "", 0
        pending: list[str] = []
        for paragraph in [*BLANK.split(document.text), None]:
            found = HEADING.match(paragraph.strip()) if paragraph is not None else None
            full = paragraph is not None and sum(map(len, pending)) + len(paragraph) > max_characters
            if pending and (paragraph is None or found or full):
                full_title = f"{title}: {heading}" if heading else title
                yield Passage(f"{document.id}#{number}", full_title, "\n\n".join(pending), document.url)
                number += 1
                pending = []
            if found and paragraph is not None:
                heading = found[1].strip()
                paragraph = paragraph.strip().partition("\n")[2]
            if paragraph is not None and paragraph.strip():
                pending.append(paragraph.strip("\n"))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _read_passages(path: Path) -> list[Passage]:
    verify_listed(path)
    if not path.is_file():
        raise DataError(f"no file {path}", expected="passages, one JSON object a line")
    try:
        names = Passage.__dataclass_fields__
        return [Passage(**{name: row[name] for name in names if name in row}) for row in read_jsonl(path)]
    except TypeError as error:
        raise DataError(f"{path} holds rows that are no passages", found=error, expected="id, title and text") from error
