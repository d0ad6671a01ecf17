"""Names that look as if they existed and do not: made from the parts of names that do.

Two ways in turn: a real name moved to another place (`json.median`), and the first part of one name joined with the last
part of another (`statistics.geometric_copy`). A name is used only if no entry has it and no document says it anywhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

from luyen.core.records import Document

PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
WORD = re.compile(r"[^\W\d][\w.]*\w|\w")
ATTEMPTS_PER_NAME = 200


def words_of(documents: Iterable[Document]) -> set[str]:
    """Every name-like word of the documents, dotted ones whole and in pieces, in lower case."""
    words: set[str] = set()
    for document in documents:
        for word in WORD.findall(document.text):
            words.add(word.casefold())
            words.update(piece.casefold() for piece in word.split("."))
    return words


def invented_names(names: Sequence[str], known_words: set[str], count: int, seed: int) -> list[str]:
    """`count` names (fewer when the parts do not allow it) made from `names`, none of which is known. Order and choice depend on the seed only.

    `known_words` are those of `words_of`; `names` are full names such as `json.dumps`.
    """
    generator = random.Random(seed)
    real = sorted(set(names))
    taken = {name.casefold() for name in real}
    places = sorted({name.rpartition(".")[0] for name in real})
    last_words = sorted({name.rpartition(".")[2] for name in real})
    of_place = {place: {name.rpartition(".")[2].casefold() for name in real if name.rpartition(".")[0] == place} for place in places}
    made: list[str] = []
    if not real:
        return made
    for attempt in range(count * ATTEMPTS_PER_NAME):
        if len(made) == count:
            break
        place = generator.choice(places)
        moved = len(made) % 2 == 0 and len(places) > 1
        last = generator.choice(last_words) if moved else _join(generator.choice(last_words), generator.choice(last_words), generator)
        name = f"{place}.{last}" if place else last
        exists = name.casefold() in taken or name.casefold() in known_words or last.casefold() in of_place[place]
        if exists or (not moved and last.casefold() in known_words):
            continue
        taken.add(name.casefold())
        made.append(name)
    return made


def _join(first: str, second: str, generator: random.Random) -> str:
    """The first part of one word and the last part of another, in the first word's style."""
    left, right = PARTS.findall(first) or [first], PARTS.findall(second) or [second]
    head, tail = left[0], right[-1]
    if len(left) == 1 and len(head) > 4 and generator.random() < 0.5:
        head = head[: (len(head) + 1) // 2]
    if first[:1].isupper():
        return head + tail[:1].upper() + tail[1:]
    return f"{head}_{tail.lower()}" if "_" in first or generator.random() < 0.5 else head + tail.lower()
