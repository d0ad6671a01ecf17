"""What is shown, what is sent back and what is kept: pairs, submissions, judgements.

The scale and the words are those of Llama 2 (Touvron et al., 2023, arXiv:2307.09288): four grades each way (table 27) and, for safety,
one of three labels (section 3.2.1). Answers have numbers 0 and 1 that never change; which stands on the left is drawn for each person and
pair, so that a place's advantage can be seen and does not become an answer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from luyen.core.config import Config
from luyen.core.manifest import fingerprint
from luyen.core.records import Message, Preference
from luyen.core.seed import derive
from luyen.data.convert import GRADES, SAFETY
from luyen.data.turns import check_turns, messages

DOMAINS = ("helpfulness", "safety")
LONGEST_EDIT = 32_768
"""Characters of an edited answer."""
LONGEST_NAME = 64
SCALE = 2 * len(GRADES)


@dataclass(frozen=True)
class Answer:
    """One answer, of one or more turns, and who wrote it how."""

    turns: tuple[Message, ...]
    writer: Mapping[str, Any] = field(default_factory=dict)
    """model (a name), folder, weights (a hash), sampling; empty for a ready pair, which does not say."""


@dataclass(frozen=True)
class Pair:
    """A conversation up to a question, and two answers to it."""

    prompt: tuple[Message, ...]
    answers: tuple[Answer, Answer]
    made: str = ""
    """What it was made for: prompt and who was asked. A second run does not make it again."""

    @property
    def id(self) -> str:
        """A hash of what is shown: equal pairs are one."""
        return fingerprint([told(self.prompt), [told(answer.turns) for answer in self.answers]])[:24]

    def as_row(self) -> dict[str, Any]:
        """Plain values."""
        answers = [{"turns": told(answer.turns), "writer": dict(answer.writer)} for answer in self.answers]
        return {"prompt": told(self.prompt), "answers": answers, "made": self.made}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Pair:
        """What `as_row` gave. BadRow, LookupError, TypeError or ValueError for anything else."""
        first, second = (Answer(messages(item["turns"]), dict(item.get("writer") or {})) for item in row["answers"])
        return checked(cls(messages(row["prompt"]), (first, second), str(row.get("made", ""))))

    @classmethod
    def ordered(cls, prompt: Sequence[Message], answers: Sequence[Answer], made: str = "") -> Pair:
        """A pair whose answers are numbered by a hash of their text, so that no number tells who wrote one or which was chosen."""
        first, second = sorted(answers, key=lambda answer: fingerprint(told(answer.turns)))
        return cls(tuple(prompt), (first, second), made)

    @classmethod
    def of(cls, record: Preference) -> Pair:
        """A ready pair."""
        return cls.ordered(record.prompt, (Answer(record.chosen), Answer(record.rejected)))


def checked(pair: Pair) -> Pair:
    """The pair, if its turns are a conversation with two different answers; BadRow or ValueError."""
    check_turns(pair.prompt, last="user")
    for answer in pair.answers:
        check_turns([*pair.prompt, *answer.turns])
    if pair.answers[0].turns == pair.answers[1].turns:
        raise ValueError("the two answers are equal")
    return pair


def told(turns: Sequence[Message]) -> list[dict[str, str]]:
    """Turns as plain values."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def left_of(seed: int, pair: str, annotator: str) -> int:
    """Which answer stands on the left for this person."""
    return derive(seed, "left", pair, annotator) & 1


def name_of(text: str) -> str:
    """A person's name as it is kept: white space folded. ValueError for one that is empty, too long or not printable."""
    name = " ".join(text.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a name has 1 to {LONGEST_NAME} printable characters")
    return name


class Submission(Config):
    """What a page sends when somebody has judged or skipped a pair."""

    pair: Annotated[str, Field(max_length=64)]
    """Its id."""
    annotator: Annotated[str, Field(max_length=4 * LONGEST_NAME)]
    """Who."""
    revision: NonNegativeInt
    """How many judgements of this pair this person had given before: sent twice, it is kept once."""
    skip: bool = False
    """Not judged."""
    side: Literal["left", "right"] | None = None
    """Which is better."""
    grade: Literal["significantly_better", "better", "slightly_better", "negligibly_better"] | None = None
    """By how much."""
    domain: Literal["helpfulness", "safety"] = "helpfulness"
    """What it was judged by."""
    safety: Literal["chosen_safe", "both_safe", "both_unsafe"] | None = None
    """Which answers are safe; needed where the domain is safety."""
    categories: Annotated[list[Annotated[str, Field(max_length=60)]], Field(max_length=24)] = []
    """What was ticked."""
    edit_left: Annotated[str, Field(max_length=LONGEST_EDIT)] | None = None
    """The left answer's last turn as it was rewritten before judging."""
    edit_right: Annotated[str, Field(max_length=LONGEST_EDIT)] | None = None
    """The right one's."""
    seconds: Annotated[float, Field(ge=0, le=1e7)] = 0.0
    """From the pair's appearance to the click, as the page measured it."""

    @model_validator(mode="after")
    def _whole(self) -> Submission:
        if self.skip:
            return self
        if self.side is None or self.grade is None:
            raise ValueError("say which answer is better and by how much, or skip")
        if self.domain == "safety" and self.safety is None:
            raise ValueError("in the domain safety, say which answers are safe")
        return self


@dataclass(frozen=True)
class Judgement:
    """One click, with everything that it was about."""

    pair: Pair
    annotator: str
    revision: int
    time: str
    """UTC, ISO 8601."""
    left: int | None
    """Which answer stood on the left; None where an imported judgement does not say."""
    preferred: int | None
    """Which is better; None: skipped."""
    grade: str | None = None
    domain: str | None = None
    safety: str | None = None
    categories: tuple[str, ...] = ()
    edits: tuple[str | None, str | None] = (None, None)
    """Of answers 0 and 1, the last turn as it was rewritten; the grade is of the texts as they then stood."""
    seconds: float = 0.0
    origin: str = "page"
    """page, or the name of the file that it was imported from."""

    @classmethod
    def of(cls, sent: Submission, pair: Pair, left: int, time: str) -> Judgement:
        """A submission about the pair as it was shown. ValueError where an edit leaves nothing, or two equal answers."""
        if sent.skip:
            return cls(pair, name_of(sent.annotator), sent.revision, time, left, None, seconds=sent.seconds)
        by_side = (sent.edit_left, sent.edit_right)
        edits = [by_side[0 if number == left else 1] for number in (0, 1)]
        kept = [None if edit == pair.answers[number].turns[-1].content else edit for number, edit in enumerate(edits)]
        if any(edit is not None and not edit.strip() for edit in kept):
            raise ValueError("an edited answer is empty")
        preferred = left if sent.side == "left" else 1 - left
        made = cls(pair, name_of(sent.annotator), sent.revision, time, left, preferred, sent.grade, sent.domain, sent.safety,
                   tuple(sent.categories), (kept[0], kept[1]), sent.seconds)  # fmt: skip
        if made.turns(0) == made.turns(1):
            raise ValueError("after the edit the two answers are equal")
        return made

    def turns(self, number: int) -> tuple[Message, ...]:
        """Answer 0 or 1 as it stood when it was judged."""
        turns, edit = self.pair.answers[number].turns, self.edits[number]
        return turns if edit is None else (*turns[:-1], Message(turns[-1].role, edit))

    def settled(self) -> Judgement:
        """The same judgement of a pair whose answers are the texts as they stood, with no edits left to apply."""
        if self.edits == (None, None):
            return self
        answers = [Answer(self.turns(number), self.pair.answers[number].writer) for number in (0, 1)]
        pair = Pair.ordered(self.pair.prompt, answers, self.pair.made)
        turned = pair.answers[0].turns != answers[0].turns
        left, preferred = (1 - number if turned and number is not None else number for number in (self.left, self.preferred))
        return replace(self, pair=pair, left=left, preferred=preferred, edits=(None, None))

    @property
    def value(self) -> int:
        """Place on the scale from 0 (answer 1 significantly better) to 7 (answer 0 significantly better); of a judged pair with a grade."""
        place = GRADES.index(str(self.grade))
        return SCALE - 1 - place if self.preferred == 0 else place

    def same(self, other: Judgement) -> bool:
        """Whether both say the same, whenever and however long it took."""
        words = ("preferred", "grade", "domain", "safety", "categories", "edits")
        return self.pair.id == other.pair.id and all(getattr(self, word) == getattr(other, word) for word in words)

    def as_row(self) -> dict[str, Any]:
        """Plain values, whole in themselves: nothing else is needed to read it."""
        return {
            **self.pair.as_row(), "pair": self.pair.id, "annotator": self.annotator, "revision": self.revision, "time": self.time,
            "left": self.left, "preferred": self.preferred, "grade": self.grade, "domain": self.domain, "safety": self.safety,
            "categories": list(self.categories), "edits": list(self.edits), "seconds": self.seconds, "origin": self.origin,
        }  # fmt: skip

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Judgement:
        """What `as_row` gave. BadRow, LookupError, TypeError or ValueError for anything else."""
        first, second = row["edits"]
        _known(row, "left", (0, 1, None))
        _known(row, "preferred", (0, 1, None))
        _known(row, "grade", (*GRADES, None))
        _known(row, "domain", (*DOMAINS, None))
        _known(row, "safety", (*SAFETY, None))
        return cls(Pair.from_row(row), str(row["annotator"]), int(row["revision"]), str(row["time"]), row["left"], row["preferred"],
                   row["grade"], row["domain"], row["safety"], tuple(row["categories"]), (first, second), float(row["seconds"]),
                   str(row["origin"]))  # fmt: skip


def _known(row: Mapping[str, Any], column: str, words: Sequence[Any]) -> None:
    if row[column] not in words:
        raise ValueError(f"{column} is {row[column]!r}")
