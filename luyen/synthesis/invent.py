"""Names that look as if they existed and do not: made from the parts of names that do.

Two ways in turn: a real name moved to another place of the same depth (`json.median`), and the first part of one name joined with
the last part of another (`statistics.geometric_copy`). A name is used only if no entry has it and no document that describes
its place says its last word anywhere, so that neither an inherited nor a left-out entry passes for an invention.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

from luyen.core.records import Document
from luyen.tasks.entries import Entry

PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
WORD = re.compile(r"\w+")
ATTEMPTS_PER_NAME = 200
SHORT = 9
"""Two words that have at most this many letters together are joined without an underscore."""


def invented_names(documents: Iterable[Document], entries: Sequence[Entry], count: int, seed: int) -> list[str]:
    """`count` names (fewer when the parts do not allow it) in the style of the entries' names, none of which exists.

    The same documents, entries and seed give the same names.
    """
    words = {document.id: {word.casefold() for word in WORD.findall(document.text)} for document in documents}
    said: dict[str, set[str]] = {}
    for entry in entries:
        said.setdefault(_place(entry.name), set()).update(words.get(entry.document, ()))
    everything = set().union(*words.values())
    names = sorted({entry.name for entry in entries})
    generator = random.Random(seed)
    made: list[str] = []
    taken = {name.casefold() for name in names}
    for _ in range(count * ATTEMPTS_PER_NAME if names else 0):
        if len(made) == count:
            break
        moved = len(made) % 2 == 0 and len(said) > 1
        place, name = _moved(names, generator) if moved else _joined(names, generator)
        last = name.rpartition(".")[2].casefold()
        if name.casefold() in taken or last in (said[place] if moved else everything):
            continue
        taken.add(name.casefold())
        made.append(name)
    return made


def _place(name: str) -> str:
    return name.rpartition(".")[0]


def _moved(names: Sequence[str], generator: random.Random) -> tuple[str, str]:
    target, source = generator.choice(names), generator.choice(names)
    place = _place(target)
    if target.count(".") != source.count(".") or _is_class(target) != _is_class(source):
        return place, target  # not alike: an existing name, which is refused
    return place, _under(place, source.rpartition(".")[2])


def _joined(names: Sequence[str], generator: random.Random) -> tuple[str, str]:
    target, source = generator.choice(names), generator.choice(names)
    place, _, first = target.rpartition(".")
    second = source.rpartition(".")[2]
    if _is_class(target) != _is_class(source):
        return place, target
    head, tail = (PARTS.findall(first) or [first])[0], (PARTS.findall(second) or [second])[-1]
    if _is_class(target):
        return place, _under(place, head + tail[:1].upper() + tail[1:])
    joint = "" if len(head) + len(tail) <= SHORT else "_"
    return place, _under(place, f"{head}{joint}{tail}")


def _is_class(name: str) -> bool:
    return name.rpartition(".")[2][:1].isupper()


def _under(place: str, last: str) -> str:
    return f"{place}.{last}" if place else last
