"""The steps of curation that need all documents at once: exact and near-duplicates, and the held-out split.

They work on hashes; the texts are streamed from the parts in the order of their ids, and only sections are looked at again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luyen.core import interrupt
from luyen.corpus import parts
from luyen.corpus.dedup import DedupConfig, clusters, representatives, text_hash
from luyen.corpus.documents import STEPS
from luyen.corpus.funnel import Funnel, Step
from luyen.corpus.parts import Part, Row
from luyen.corpus.split import Unit, held_out, held_out_sections, may_be_held_out, sections
from luyen.corpus.words import Hashes

SHARD_DOCUMENTS = 5000
SECTION_BATCH = 512


@dataclass(frozen=True)
class _Known:
    """What is known of a kept document without its text."""

    part: int
    row: int
    id: str
    content: str
    text: str
    characters: int
    bytes: int


@dataclass
class _Decided:
    """For each document (part, row) the rule and reason that dropped it, if any, and those that are held out."""

    dropped: dict[tuple[int, int], tuple[str, str]]
    heldout: set[tuple[int, int]]


def finish(made: list[Part], work: Path, folder: Path, dedup: DedupConfig, fraction: float, unit: Unit, seed: int) -> dict[str, Any]:
    """Deduplicate and split the documents of all parts, write the shards into `folder`, and return the facts for the funnel."""
    made = sorted(made, key=lambda part: part.key)
    funnel = Funnel((*STEPS, "exact", "near"))
    masked: Counter[str] = Counter()
    converted: Counter[str] = Counter()
    for part in made:
        funnel.add(part.facts["funnel"])
        masked.update(part.facts["masked"])
        converted.update(part.facts["converted"])
    known = sorted((_Known(p, row, *facts) for p, part in enumerate(made) for row, facts in enumerate(part.facts["documents"])), key=_by_id)
    decided = _Decided({}, set())
    known = _exact(known, dedup, funnel["exact"], decided)
    known = _near(known, made, dedup, funnel["near"], decided)
    funnel.check()
    interrupt.check()
    writer = _Writer(made, work, folder, decided, frozenset(document.id for document in known))
    if unit == "document":
        chosen = held_out([document.text for document in known], fraction, seed)
        decided.heldout = {(known[index].part, known[index].row) for index in chosen}
        split = writer.documents(known)
    else:
        split = writer.sections(dedup, fraction, seed)
    writer.check(funnel["near"], split)
    return {
        "documents": funnel["read"].documents_in, "steps": funnel.dump(), **split, "heldout_unit": unit,
        "masked": dict(sorted(masked.items())), "converted": dict(sorted(converted.items())),
        "languages": dict(sorted(writer.languages.items())),
    }  # fmt: skip


def _by_id(document: _Known) -> tuple[str, str, int, int]:
    return document.id, document.content, document.part, document.row


def _exact(known: list[_Known], dedup: DedupConfig, step: Step, decided: _Decided) -> list[_Known]:
    """Of documents with the same text the one with the smallest id stays."""
    first: dict[str, _Known] = {}
    stay = []
    for document in known:
        kept = first.setdefault(document.text, document)
        if dedup.exact and kept is not document:
            step.drop(document.bytes, "exact_duplicate")
            decided.dropped[document.part, document.row] = ("exact_duplicate", f"same text as {kept.id}")
        else:
            step.keep(document.bytes, document.bytes)
            stay.append(document)
    return stay


def _near(known: list[_Known], made: list[Part], dedup: DedupConfig, step: Step, decided: _Decided) -> list[_Known]:
    """Of each cluster of near-duplicates the longest stays, then the one with the smallest id."""
    best = np.arange(len(known))
    if dedup.near and known:
        bands = [part.bands() for part in made]
        groups = clusters(np.stack([bands[document.part][document.row] for document in known]))
        names = [f"{document.id}\0{document.content}" for document in known]
        best = representatives(groups, [document.characters for document in known], names)
    stay = []
    for index, document in enumerate(known):
        if best[index] == index:
            step.keep(document.bytes, document.bytes)
            stay.append(document)
        else:
            step.drop(document.bytes, "near_duplicate")
            decided.dropped[document.part, document.row] = ("near_duplicate", f"nearly the same text as {known[best[index]].id}")
    return stay


class _Writer:
    """Streams the parts into train, held-out and dropped shards."""

    def __init__(self, made: list[Part], work: Path, folder: Path, decided: _Decided, ids: frozenset[str]) -> None:
        self.made, self.work, self.folder, self.decided, self.ids = made, work, folder, decided, ids
        self.languages: Counter[str] = Counter()

    def documents(self, known: list[_Known]) -> dict[str, Any]:
        """Whole documents to either side. `known`: the documents that nothing dropped, in order."""
        sides = [(document.part, document.row) in self.decided.heldout for document in known]
        split = {"train": Step("train"), "heldout": Step("heldout")}
        for name, held in (("train", False), ("heldout", True)):
            rows = (row for row, side in zip(self._unique(self._kept()), sides, strict=True) if side == held)
            parts.shard(self.folder, name, self._count(rows, split[name]), SHARD_DOCUMENTS)
        return self._done(split, 0)

    def sections(self, dedup: DedupConfig, fraction: float, seed: int) -> dict[str, Any]:
        """Documents without their held-out sections to train, the sections to held-out."""
        hashes: list[str] = []
        allowed: list[bool] = []
        bands: list[Hashes] = []
        batch: list[str] = []
        for row in self._kept():
            cut = sections(row["text"])
            allowed += may_be_held_out(cut)
            batch += [section.text for section in cut]
            if len(batch) >= SECTION_BATCH:
                bands.append(parts.bands_of(batch, dedup, seed))
                hashes += map(text_hash, batch)
                batch = []
                interrupt.check()
        if batch:
            bands.append(parts.bands_of(batch, dedup, seed))
            hashes += map(text_hash, batch)
        chosen = held_out_sections(hashes, allowed, np.concatenate(bands), fraction, seed) if hashes else set()
        return self._write_sections(chosen)

    def _write_sections(self, chosen: set[int]) -> dict[str, Any]:
        split = {"train": Step("train"), "heldout": Step("heldout")}
        cuts = [0]

        def rows(held: bool) -> Iterator[Row]:
            """Held-out sections as documents of their own (`held`), or what is left of each document without them."""
            number = 0
            for row in self._unique(self._kept()):
                cut = sections(row["text"])
                mine = [index for index in range(len(cut)) if number + index in chosen]
                number += len(cut)
                if held:
                    for index in mine:
                        meta = {**row["meta"], "document": row["id"], "section": index, "heading": cut[index].heading}
                        yield {**row, "id": f"{row['id']}#{index}", "text": cut[index].text, "meta": meta}
                    cuts[0] += 2 * min(len(mine), len(cut) - 1)
                elif len(mine) < len(cut):
                    yield {**row, "text": "\n\n".join(section.text for index, section in enumerate(cut) if index not in mine)}

        for name, held in (("train", False), ("heldout", True)):
            parts.shard(self.folder, name, self._count(rows(held), split[name]), SHARD_DOCUMENTS)
        return self._done(split, cuts[0])

    def _done(self, split: dict[str, Step], cuts: int) -> dict[str, Any]:
        self._dropped()
        return {name: {"documents": step.documents_out, "bytes": step.bytes_out} for name, step in split.items()} | {"bytes_of_cuts": cuts}

    def check(self, before: Step, split: dict[str, Any]) -> None:
        """Every byte that the last step left is on one side, or was a blank line where a section was cut out."""
        total = Step("split")
        total.documents_in = total.documents_out = before.documents_out
        total.bytes_in = split["train"]["bytes"] + split["heldout"]["bytes"] + split["bytes_of_cuts"]
        total.bytes_out = total.bytes_in
        funnel = Funnel(())
        funnel.steps = {"near": before, "split": total}
        funnel.check()

    def _kept(self) -> Iterator[Row]:
        """Rows that nothing dropped."""

        def stream(index: int, part: Part) -> parts.Rows:
            def rows() -> Iterator[Row]:
                for number, row in enumerate(part.kept()):
                    if (index, number) not in self.decided.dropped:
                        yield row

            return rows

        return parts.merge([stream(index, part) for index, part in enumerate(self.made)], self.work, "kept")

    def _unique(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Ids given twice (by the input) get a number that no other id has, so that an id names one document of both sides."""
        before, times = None, 1
        for row in rows:
            if row["id"] != before:
                before, times = row["id"], 1
                yield row
                continue
            times += 1
            while f"{before}~{times}" in self.ids:
                times += 1
            yield {**row, "id": f"{before}~{times}"}

    def _count(self, rows: Iterator[Row], step: Step) -> Iterator[Row]:
        for row in rows:
            size = len(row["text"].encode())
            step.keep(size, size)
            if step.name == "train":
                self.languages[row["language"]] += 1
            yield row

    def _dropped(self) -> None:
        def stream(index: int, part: Part) -> parts.Rows:
            def duplicates() -> Iterator[Row]:
                for number, row in enumerate(part.kept()):
                    if (index, number) in self.decided.dropped:
                        rule, reason = self.decided.dropped[index, number]
                        yield {**row, "rule": rule, "reason": reason}

            return duplicates

        streams: list[parts.Rows] = [stream(index, part) for index, part in enumerate(self.made)]
        streams += [part.dropped for part in self.made]
        parts.shard(self.folder, "dropped", parts.merge(streams, self.work, "dropped"), SHARD_DOCUMENTS)
