"""Which form the rows of a file have, by the names and kinds of their columns. The forms are one table, the more specific first."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from luyen.core.errors import ConfigError, DataError, nearest
from luyen.core.files import COMPRESSED
from luyen.data import convert
from luyen.data.convert import Convert, Row
from luyen.data.turns import is_hash_text, is_transcript

_NOT_CONTENT = frozenset({"id", "idx", "index", "url", "title", "language", "lang", "source", "meta", "metadata"})
"""Columns that nobody misses when they are not used."""


_COMPARED = 1000
"""Names of a row that are compared with ours to find a misspelt one."""


@dataclass(frozen=True)
class Form:
    """A known set of columns and what a row of it becomes."""

    name: str
    columns: tuple[str, ...]
    """Must be there."""
    makes: str
    convert: Convert
    optional: tuple[str, ...] = ()
    """Used when there."""
    fits: Callable[[Row], bool] = lambda row: True
    """A look at the values, where the names alone do not decide."""

    def matches(self, row: Row) -> bool:
        """Whether a row has the columns, none of them null, and fits."""
        return all(row.get(column) is not None for column in self.columns) and self.fits(row)

    def sentence(self, present: Collection[str]) -> str:
        """What was detected, for the user: the columns used of those present, and those left unused."""
        extra = [column for column in self.optional if column in present and column not in self.columns]
        used = "/".join(self.columns) + (f" with {', '.join(extra)}" if extra else "")
        left = sorted(set(present) - {*self.columns, *self.optional} - _NOT_CONTENT)
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        return f"{self.name}: {used} -> {self.makes}" + (f" (not used: {', '.join(left[:8])}{more})" if left else "")


_SYSTEM = ("system", "system_prompt", "tools")
_TEXTS = ("text", "sentence", "review", "tweet", "content")
_LABELS = ("label_name", "label_text", "label", "sentiment", "acceptable", "class", "category")
_PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("text", "text_pair"), ("text1", "text2"), ("question1", "question2"),
    ("question", "sentence"),
)  # fmt: skip
_QUESTION_ANSWER = (
    ("instruction", "output"), ("instruction", "response"), ("instruction", "completion"), ("instruction", "answer"),
    ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"), ("question", "answer"), ("question", "response"),
    ("query", "response"), ("query", "answer"), ("problem", "solution"), ("input", "output"),
)  # fmt: skip
_PREFERENCE = (*convert.QUESTIONS, "conversations", "input", "margin", "grade", "safety", "score_chosen", "score_rejected", *_SYSTEM)


def _both_transcripts(row: Row) -> bool:
    return is_transcript(row["chosen"]) and is_transcript(row["rejected"])


def _good_or_bad(row: Row) -> bool:
    return convert.is_truth(row["label"])


def _question_answer(question: str, answer: str) -> Form:
    name = "alpaca" if question == "instruction" else "question and answer"
    columns = (question, "input", answer) if question == "instruction" else (question, answer)
    make = partial(convert.instruction, question=question, answer=answer)
    return Form(name, columns, "conversation", make, (*_SYSTEM, "history", "input"))


FORMS: tuple[Form, ...] = (
    Form("Anthropic HH", ("chosen", "rejected"), "preference", convert.preference, ("margin", "grade", "safety"), _both_transcripts),
    Form("preference", ("chosen", "rejected"), "preference", convert.preference, _PREFERENCE),
    Form("feedback", ("messages", "label"), "feedback", partial(convert.feedback, answer="messages"), _SYSTEM, _good_or_bad),
    Form("feedback", ("conversations", "label"), "feedback", partial(convert.feedback, answer="conversations"), _SYSTEM, _good_or_bad),
    Form("feedback", ("prompt", "completion", "label"), "feedback", partial(convert.feedback, answer="completion"), _SYSTEM, _good_or_bad),
    Form("feedback", ("prompt", "response", "label"), "feedback", partial(convert.feedback, answer="response"), _SYSTEM, _good_or_bad),
    Form("messages", ("messages",), "conversation", partial(convert.chat, column="messages"), _SYSTEM),
    Form("ShareGPT", ("conversations",), "conversation", partial(convert.chat, column="conversations"), _SYSTEM),
    Form("ShareGPT", ("conversation",), "conversation", partial(convert.chat, column="conversation"), _SYSTEM),
    Form("self-instruct", ("instruction", "instances"), "conversation", convert.instances),
    Form("SQuAD", ("question", "context", "answers"), "question with context", convert.squad),
    *(_question_answer(question, answer) for question, answer in _QUESTION_ANSWER),
    *(
        Form(form.name, (form.columns[0], form.columns[2]), form.makes, form.convert, (*form.optional, "input"))
        for form in (_question_answer("instruction", answer) for question, answer in _QUESTION_ANSWER if question == "instruction")
    ),
    Form("prompt and completion", ("prompt", "completion"), "raw text, the completion trained", convert.completion),
    Form("guanaco", ("text",), "conversation", convert.hash_text, (), lambda row: is_hash_text(row["text"])),
    Form("token tags", ("tokens", "tags"), "tagged words", partial(convert.tagged, column="tags")),
    Form("token tags", ("tokens", "ner_tags"), "tagged words", partial(convert.tagged, column="ner_tags")),
    Form("token tags", ("tokens", "pos_tags"), "tagged words", partial(convert.tagged, column="pos_tags")),
    *(
        Form("labelled pair", (*pair, label), "two texts with a class", partial(convert.labelled, text=pair[0], pair=pair[1], label=label))
        for pair in _PAIRS for label in _LABELS
    ),
    *(
        Form("labelled text", (text, label), "text with a class", partial(convert.labelled, text=text, pair=None, label=label))
        for text in _TEXTS for label in _LABELS
    ),
    Form("text", ("text",), "text", partial(convert.plain, column="text")),
    Form("text", ("content",), "text", partial(convert.plain, column="content")),
    Form("text", ("document",), "text", partial(convert.plain, column="document")),
)  # fmt: skip
KNOWN_COLUMNS = frozenset(column for form in FORMS for column in (*form.columns, *form.optional))
SUMMARY = (
    "text; messages; conversations; instruction/input/output; question/answer; prompt/completion; question/context/answers; "
    "prompt/chosen/rejected; prompt/completion/label; text/label; premise/hypothesis/label; tokens/tags"
)


@dataclass(frozen=True)
class Detection:
    """The form of a file, the columns to rename before converting, and the sentence that says so."""

    form: Form
    renamed: Mapping[str, str]
    sentence: str


def rename(row: Row, renamed: Mapping[str, str]) -> Row:
    """The row with columns renamed; a renamed column takes the place of another of the new name."""
    if not renamed:
        return row
    new = set(renamed.values())
    return {renamed.get(key, key): value for key, value in row.items() if key in renamed or key not in new}


def detect(rows: Sequence[Row], columns: Mapping[str, str | int], where: str) -> Detection:
    """The form that most of some rows have. `columns` maps our names to the file's (a number: the column's place, from 1).

    Raises DataError with the nearest form when there is none, or when a mapped column is missing; ConfigError for an unknown name.
    """
    present = Counter(key for row in rows for key in row)
    wanted = {name: str(actual) for name, actual in columns.items()}
    for name, actual in wanted.items():
        if name not in KNOWN_COLUMNS:
            raise ConfigError(f"read.columns: unknown name {name!r}", fix=nearest(name, KNOWN_COLUMNS))
        if actual not in present:
            raise DataError(f"{where}: no column {actual!r} for {name!r}", fix=nearest(actual, present))
    renamed = {actual: name for name, actual in wanted.items() if actual != name}
    for key in present:  # "Question", " text"
        plain = key.strip().lower()
        if key not in renamed and plain != key and plain in KNOWN_COLUMNS and plain not in present and plain not in wanted:
            renamed[key] = plain
    changed = [rename(row, renamed) for row in rows]
    votes = Counter(index for row in changed if (index := _form_of(row, wanted)) is not None)
    if not votes:
        headerless = where.lower().endswith(_TABLES) and KNOWN_COLUMNS.isdisjoint(key for row in changed for key in row)
        raise DataError(f"{where}: no known form", found=f"columns {', '.join(sorted(present)) or 'none'}",
                        expected=explain_nearest(changed[0] if changed else {}), fix=_BY_PLACE if headerless else _HINT)  # fmt: skip
    best = max(votes, key=lambda index: (votes[index], -index))
    form = FORMS[best]
    filled = {key for row in changed for key, value in row.items() if value not in (None, "", [], {})}
    given = ", ".join(f"{name} from column {key}" for key, name in sorted(renamed.items()) if name in {*form.columns, *form.optional})
    return Detection(form, renamed, form.sentence(filled) + (f" ({given})" if given else ""))


_TABLES = tuple(kind + compression for kind in (".csv", ".tsv") for compression in ("", *COMPRESSED))
_BY_PLACE = (
    "The first row was taken as the columns' names; if it is a row of data, give their places: "
    "read.columns.prompt=1 read.columns.completion=2. If it names them: read.columns.prompt=NAME and so on."
)
_HINT = "Name your columns with read.columns.prompt=... read.columns.completion=... (or one of the forms above)."


def _form_of(row: Row, wanted: Mapping[str, str]) -> int | None:
    for index, form in enumerate(FORMS):
        if form.matches(row) and set(wanted) <= {*form.columns, *form.optional}:
            return index
    return None


def explain_nearest(row: Row) -> str:
    """The known form that shares most columns with a row and what is missing, or all forms when none is close."""
    return _explain_nearest(frozenset(key for key, value in row.items() if value is not None))


@lru_cache(maxsize=256)
def _explain_nearest(present: frozenset[str]) -> str:
    unknown = sorted(present - KNOWN_COLUMNS)[:_COMPARED]
    similar = {column: difflib.get_close_matches(column, unknown, n=1, cutoff=0.8) for column in KNOWN_COLUMNS}

    def score(form: Form) -> float:
        return sum(1.0 if column in present else 0.5 if similar[column] else 0.0 for column in form.columns) / len(form.columns)

    best = max((form for form in FORMS if form.name != "Anthropic HH"), key=score)  # its columns are those of any preference
    missing = [column for column in best.columns if column not in present]
    if score(best) == 0:
        return f"one of {SUMMARY}"
    if not missing:
        return f"{'/'.join(best.columns)} ({best.name})"
    hints = [f"{column!r} is missing" + (f" ({similar[column][0]!r} is close)" if similar[column] else "") for column in missing]
    return f"the nearest form {'/'.join(best.columns)} ({best.name}); {', '.join(hints)}"
