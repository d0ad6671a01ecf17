"""Regular expressions of an adapter's config that others wrote, matched in time that their text bounds.

Such a text may be made to hang: with nested repetition, or with many choices that mean the same, Python's `re` tries exponentially many
ways to read a name. Here all ways are followed at once, as the set of places in the name that they have come to (Thompson, 1968), so a
part of the pattern is read once for each place. What is read is what names of modules need: letters, \\. and ., classes such as \\d, \\w
and [0-3], each perhaps with *, + or ?; ( | ), perhaps with ?; ^ and $.
"""

from __future__ import annotations

import re
from collections.abc import Callable

TOKEN = re.compile(r"(\(\?:|[()|^$])|((?:\\[dw]|\\[^\w\s]|\[\^?(?:\\[dw]|[\w.-])+\]|[\w.-])[*+?]?)")
LONGEST = 4096
DEPTH = 16
"""Groups in groups."""
Places = frozenset[int]
Step = Callable[[str, Places], Places]
"""From the places in a name that were come to, those after this part."""


def full_match(pattern: str, name: str) -> bool:
    """Whether a pattern is the whole name or its last parts, as PEFT reads it. ValueError for one that is not of this form."""
    step, end = _choice(_tokens(pattern), 0, 0)
    if end != -1:
        raise ValueError("a ) without its (")
    starts = frozenset([0, *(place + 1 for place, letter in enumerate(name) if letter == ".")])
    return len(name) in step(name, starts)


def _tokens(pattern: str) -> list[str]:
    found, at = [], 0
    if len(pattern) > LONGEST:
        raise ValueError(f"more than {LONGEST} characters")
    while at < len(pattern):
        token = TOKEN.match(pattern, at)
        if token is None:
            raise ValueError(f"{pattern[at]!r} at character {at + 1}: only names, classes, . * + ? ( | ) without a repeated group")
        found.append(token[0])
        at = token.end()
        if token[0] == ")" and pattern[at : at + 1] == "?":
            found[-1], at = ")?", at + 1
    return found


def _choice(tokens: list[str], at: int, depth: int) -> tuple[Step, int]:
    """The step of the tokens up to the ) of this group, and its place; -1 at the end."""
    if depth > DEPTH:
        raise ValueError(f"more than {DEPTH} groups in groups")
    ways: list[list[Step]] = [[]]
    while at < len(tokens):
        token = tokens[at]
        if token in (")", ")?"):
            return _any_of(ways), at
        if token == "|":
            ways.append([])
        elif token in ("(", "(?:"):
            inner, at = _choice(tokens, at + 1, depth + 1)
            if at == -1:
                raise ValueError("a ( without its )")
            ways[-1].append(_any_of([[inner], []]) if tokens[at] == ")?" else inner)
        else:
            ways[-1].append(_one(token))
        at += 1
    return _any_of(ways), -1


def _any_of(ways: list[list[Step]]) -> Step:
    def step(name: str, places: Places) -> Places:
        found: set[int] = set()
        for way in ways:
            reached = places
            for each in way:
                reached = each(name, reached)
            found |= reached
        return frozenset(found)

    return step


def _one(token: str) -> Step:
    """A character that may be repeated, or one end of the name."""
    if token in ("^", "$"):
        return lambda name, places: places & {0 if token == "^" else len(name)}
    repeated = token[-1] if len(token) > 1 and token[-1] in "*+?" and token[-2:-1] != "\\" else ""
    try:
        letter = re.compile(token.removesuffix(repeated))
    except re.error as error:
        raise ValueError(str(error)) from error

    def step(name: str, places: Places) -> Places:
        after = found = frozenset(place + 1 for place in places if place < len(name) and letter.fullmatch(name[place]))
        while repeated in ("*", "+") and after:
            after = frozenset(place + 1 for place in after if place < len(name) and letter.fullmatch(name[place])) - found
            found |= after
        return found if repeated in ("", "+") else found | places

    return step
