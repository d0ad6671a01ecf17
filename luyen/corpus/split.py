"""Which text is held out from training: whole documents, or sections of them.

`document`: a document is held out when the hash of its text falls below the fraction. Near-duplicates were removed before, so
none can stand on both sides. `section`: documents are cut at headings and at blank lines before unindented text, into sections of
some size; a section is held out by the hash of its text, and taken out of its document, only if no other section of the whole corpus
is a duplicate or near-duplicate of it, it is not the beginning of a longer document and not very short. So every page still
teaches, and what is held out was never seen.
Either way at least one is held out when there are five or more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from luyen.core.seed import derive
from luyen.corpus.dedup import clusters
from luyen.corpus.words import Hashes

Unit = Literal["document", "section"]
SECTION_CHARACTERS = 400
"""A section ends at the first boundary behind this many characters."""
SHORTEST_HELD_OUT = 200
"""Shorter sections are not held out: there is little in them to predict."""
AT_LEAST_ONE_FROM = 5
_BOUNDARY = re.compile(r"\n\n(?=\S)")
_HEADING = re.compile(r"#{1,6} ")


@dataclass(frozen=True)
class Section:
    """A run of whole paragraphs; joined by a blank line the sections of a document are its text again."""

    text: str
    heading: str
    """The nearest heading at or above it."""


def sections(text: str, characters: int = SECTION_CHARACTERS) -> list[Section]:
    """Cut a text at headings and blank lines before unindented lines, never inside a fenced block."""
    result: list[Section] = []
    current: list[str] = []
    size = 0
    only_headings = True
    heading = own = ""
    for block in _blocks(text):
        is_heading = _HEADING.match(block) is not None
        if current and not only_headings and (is_heading or size >= characters):
            result.append(Section("\n\n".join(current), own))
            current, size, only_headings = [], 0, True
        if is_heading:
            heading = block.partition("\n")[0].lstrip("#").strip()
        if not current or is_heading:
            own = heading
        current.append(block)
        size += len(block)
        only_headings = only_headings and is_heading
    if current:
        result.append(Section("\n\n".join(current), own))
    return result


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs with the indented ones that follow them; a fenced block is never cut."""
    held: list[str] = []
    fences = 0
    for block in _BOUNDARY.split(text):
        held.append(block)
        fences += sum(line.startswith("```") for line in block.split("\n"))
        if fences % 2 == 0:
            yield "\n\n".join(held)
            held = []
    if held:
        yield "\n\n".join(held)


def may_be_held_out(cut: list[Section]) -> list[bool]:
    """Which sections of a document may be held out: not its beginning, which says what it is about, and none that is very short."""
    return [(index > 0 or len(cut) == 1) and len(section.text) >= SHORTEST_HELD_OUT for index, section in enumerate(cut)]


def draw(text_hash: str, seed: int) -> float:
    """A number in [0, 1) that only the text and the seed decide."""
    return derive(seed, "heldout", text_hash) / 2**63


def held_out(hashes: list[str], fraction: float, seed: int) -> set[int]:
    """The indices held out: those whose draw is below the fraction, and at least one of five or more (but never all)."""
    if fraction <= 0 or not hashes:
        return set()
    draws = [draw(text, seed) for text in hashes]
    chosen = {index for index, value in enumerate(draws) if value < fraction}
    if not chosen and len(hashes) >= AT_LEAST_ONE_FROM:
        chosen = {min(range(len(draws)), key=lambda index: (draws[index], hashes[index]))}
    if len(chosen) == len(hashes):
        chosen.remove(max(chosen, key=lambda index: (draws[index], hashes[index])))
    return chosen


def held_out_sections(hashes: list[str], allowed: list[bool], bands: Hashes, fraction: float, seed: int) -> set[int]:
    """As `held_out`, among the allowed sections that have no duplicate or near-duplicate in the corpus."""
    groups = clusters(bands)
    alone = np.bincount(groups, minlength=len(groups))[groups] == 1
    counts: dict[str, int] = {}
    for text in hashes:
        counts[text] = counts.get(text, 0) + 1
    candidates = [index for index, text in enumerate(hashes) if allowed[index] and alone[index] and counts[text] == 1]
    return {candidates[index] for index in held_out([hashes[index] for index in candidates], fraction, seed)}
