"""What a section is made of. Sections build these from figures and text; the templates alone know HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from luyen.report.reading import Run, Stage


@dataclass(frozen=True)
class Limits:
    """How much is shown. `reduced` gives the next smaller page when this one would be too large."""

    examples: int = 3
    """Per rule, set or stage."""
    groups: int = 14
    """Rules, sets, prompts or stages with examples."""
    characters: int = 700
    """Of one text."""
    code: int = 24_000
    """Characters of the recipe."""
    rows: int = 60
    """Of one table."""
    charts: int = 8
    """Training stages with curves."""

    def reduced(self) -> Limits:
        """Half of everything, at least one."""
        return Limits(*(max(1, value // 2) for value in vars(self).values()))


@dataclass(frozen=True)
class Cell:
    """One table cell: text, a second line, a tone and a bar behind it."""

    text: str
    note: str = ""
    tone: str = ""
    """good | bad | soft | strong"""
    share: float | None = None
    """Length of the bar, 0 to 1."""


@dataclass(frozen=True)
class Table:
    """Rows under headed columns; on a phone each row becomes a card."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numeric: Sequence[int] = ()
    """Columns that hold figures."""
    totals: bool = False
    """The last row sums the others."""

    def cells(self, row: Sequence[Cell | str]) -> list[tuple[str, Cell, bool]]:
        """(column's name, cell, holds a figure) of one row."""
        made = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
        return [(self.columns[index], cell, index in self.numeric) for index, cell in enumerate(made)]


@dataclass(frozen=True)
class Facts:
    """A few figures, each with a name and a remark."""

    kind: ClassVar[str] = "facts"
    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Charts:
    """Drawings side by side: (svg, caption, what it shows for people who cannot see it)."""

    kind: ClassVar[str] = "charts"
    items: Sequence[tuple[Markup, str, str]]


@dataclass(frozen=True)
class Quote:
    """Text that came from outside: a page, a question, an answer."""

    label: str
    text: str
    tone: str = ""
    """good | bad | soft"""
    verdict: str = ""
    """A word of ours on it."""


@dataclass(frozen=True)
class Fold:
    """Quotes behind a summary line."""

    kind: ClassVar[str] = "fold"
    summary: str
    quotes: Sequence[Quote]


@dataclass(frozen=True)
class Exchange:
    """One prompt and what several models said to it."""

    kind: ClassVar[str] = "exchange"
    prompt: str
    answers: Sequence[Quote]
    label: str = ""


@dataclass(frozen=True)
class Group:
    """Other blocks behind a summary line."""

    kind: ClassVar[str] = "group"
    summary: str
    blocks: Sequence[Exchange | Table | Note]
    opened: bool = False


@dataclass(frozen=True)
class Tokens:
    """A sentence cut into its tokens."""

    kind: ClassVar[str] = "tokens"
    caption: str
    pieces: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text to read or copy as it is."""

    kind: ClassVar[str] = "code"
    summary: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Command:
    """A command to run and what it does."""

    kind: ClassVar[str] = "command"
    command: str
    purpose: str


@dataclass(frozen=True)
class Heading:
    """A smaller heading inside a section, with a sentence."""

    kind: ClassVar[str] = "heading"
    title: str
    text: str = ""


@dataclass(frozen=True)
class Note:
    """A sentence that must not be missed (tone bad), or a remark."""

    kind: ClassVar[str] = "note"
    text: str
    tone: str = ""


Block = Table | Facts | Charts | Fold | Exchange | Group | Tokens | Code | Command | Heading | Note


@dataclass(frozen=True)
class Section:
    """A titled part of the page; `purpose` says what it shows and why it matters."""

    name: str
    """Anchor, a literal of ours."""
    title: str
    purpose: str
    blocks: list[Block] = field(default_factory=list)


def filled(section: Section, run: Run, kind: str, what: str, build: Callable[[Stage], Iterable[Block]]) -> Section:
    """The section with the blocks of every finished stage of a kind, or with the remark that `what` is not there yet."""
    done = run.finished(kind)
    if not done:
        section.blocks.append(missing(run.of_kind(kind), what))
    for stage in done:
        section.blocks.extend(build(stage))
    return section


def missing(stages: Sequence[Stage], what: str) -> Note:
    """The remark of a section whose stage has not run."""
    names = [stage.name for stage in stages]
    return Note(f"Not there yet: {what}" + (f" (stage {', '.join(names)})." if names else "; this recipe has no such stage."))
