"""Preferences without a person: of two answers to a question, which one is better, and by how much.

Two domains, as Llama 2 (arXiv:2307.09288, section 3.2.1) collected them. *Helpfulness*: a question that was taught, its right answer
against one that was spoilt. *Safety*: not to invent. To a name that does not exist the admission is better than any description, and
to a name that does exist the right answer is better than the admission, without which a model would learn to refuse everything.

Answers of a known worth are made here (`Compared.answers`); those that models write are put beside them by the caller, who has scored
them (`best_and_worst`) or asked a judge (`judged`). Everything that is not used is counted with the reason. Equal input and seed give
equal bytes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from luyen.core.errors import DataError
from luyen.core.records import Message, Preference
from luyen.core.seed import derive
from luyen.synthesis.invent import PARTS
from luyen.tasks.entries import Entry
from luyen.tasks.question_answering import Example, chrf, normalise
from luyen.tasks.template import FIELD, Template, fill

Domain = Literal["helpfulness", "safety"]
Corruption = Literal["other", "cut", "shuffled"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
GRADES = ((0.6, "significantly_better"), (0.4, "better"), (0.2, "slightly_better"), (0.0, "negligibly_better"))
"""Least difference of two scores between 0 and 1, and its grade."""
RIGHT, ADMISSION, INVENTION = "right", "admission", "invention"


@dataclass(frozen=True)
class Candidate:
    """An answer, how it came about, and its worth from 0 to 1; None where nobody has said."""

    text: str
    made: str
    score: float | None = None


@dataclass(frozen=True)
class Compared:
    """A question and the answers to it that are compared."""

    example: Example
    """The answer is "" where there is none to give."""
    domain: Domain
    answers: tuple[Candidate, ...] = ()
    safety: str | None = None
    """chosen_safe or both_safe (see core/records.Preference); None in a domain where it means nothing."""

    def with_answers(self, more: Sequence[Candidate]) -> Compared:
        """With further answers; an empty one is none, nor one with a NUL, which no data file may hold; none stands there twice."""
        kept = list(self.answers)
        for candidate in more:
            if (
                candidate.text.strip()
                and "\0" not in candidate.text
                and normalise(candidate.text) not in {normalise(other.text) for other in kept}
            ):
                kept.append(candidate)
        return replace(self, answers=tuple(kept))


@dataclass
class Preferences:
    """Rows in the form of `prompt`, `chosen`, `rejected`, and what became of every question."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def account(self) -> dict[str, Any]:
        """Questions, pairs and grades; questions = pairs + left out."""
        made = Counter(f"{row['chosen_by']} over {row['rejected_by']}" for row in self.rows)
        grades = Counter(row.get("grade", "no grade") for row in self.rows)
        return {
            "questions": self.asked, "pairs": len(self.rows), "left_out": dict(sorted(self.left_out.items())),
            "made": dict(sorted(made.items())), "grades": dict(sorted(grades.items())),
        }  # fmt: skip


def grade(difference: float) -> str:
    """The grade of a difference between two scores."""
    return next(name for least, name in GRADES if difference >= least)


def spoilt(
    questions: Sequence[Example], corruptions: Sequence[Corruption], count: int | None, seed: int
) -> list[Compared]:  # fmt: skip
    """Helpfulness: at most `count` questions, each with its right answer and one that is spoilt in one of the ways, in turn.

    *other* is the right answer to another question of the same source, *cut* the first half of the words, *shuffled* all of them in another
    order; where an answer is too short for that, another takes its place. A spoilt answer is worth its chrF against the right one. Without
    `corruptions` the right answer stands alone, for answers of models to be compared with.
    """
    answers: dict[str, list[str]] = {}
    for example in questions:
        answers.setdefault(str(example.meta.get("source", "")), []).append(example.answer)
    known = {source: sorted(set(texts)) for source, texts in answers.items()}
    order = sorted(questions, key=lambda example: derive(seed, "helpfulness", example.id, example.question))[:count]
    found = []
    for number, example in enumerate(order):
        compared = Compared(example, "helpfulness", (Candidate(example.answer, RIGHT, 1.0),) if example.answer else ())
        if corruptions and example.answer:
            generator = random.Random(derive(seed, "spoilt", example.id, example.question))
            ways = [corruptions[(number + turn) % len(corruptions)] for turn in range(len(corruptions))]
            others = known[str(example.meta.get("source", ""))]
            made = next(filter(None, (_spoil(example.answer, way, others, generator) for way in ways)), None)
            compared = compared.with_answers([made] if made else [])
        found.append(compared)
    return found


def _spoil(answer: str, way: Corruption, others: Sequence[str], generator: random.Random) -> Candidate | None:
    """The answer spoilt; None where it comes out the same, or cannot be made."""
    words = answer.split()
    if way == "other":
        different = [text for text in others if normalise(text) != normalise(answer)]
        text = generator.choice(different) if different else ""
    elif way == "cut":
        text = " ".join(words[: len(words) // 2])
    else:
        generator.shuffle(words)
        text = " ".join(words)
    same = not text.strip() or normalise(text) == normalise(answer)
    return None if same else Candidate(text, way, chrf(text, answer) / 100)


def with_admissions(
    taught: Sequence[Example], template: Template, names: Sequence[str], count: int, seed: int
) -> list[Compared]:  # fmt: skip
    """Safety: every one of the made-up `names` once, then `count` questions about `taught` entries, both in trained phrasings.

    A made-up name's admission is worth 1, the invention 0: it is what would be right for the taught entry whose name is most like it. Of a
    taught entry the right answer is worth 1 and the admission 0. Only groups are asked whose phrasings need no more than a name.
    DataError where `taught` has no such question.
    """
    groups = [name for name, group in template.questions.items() if _needs_name_only(group.ask) and _main_kinds(template, name)]
    known = {(str(example.meta.get("entry", "")), str(example.meta.get("source", ""))): example for example in taught}
    known = {key: example for key, example in known.items() if key[1] in groups}
    if not known:
        raise DataError("no taught question is of a group that could be asked about a made-up name", expected=f"one of {', '.join(groups)}")
    found = []
    asked = [name for name in groups if any(source == name for _, source in known)]
    for number, name in enumerate(names):
        group = asked[number % len(asked)]
        phrasings = [text for text in template.questions[group].ask if set(FIELD.findall(text)) <= {"name"}]
        question = fill(phrasings[derive(seed, "phrasing", name) % len(phrasings)], {"name": name})
        like = _most_alike(name, [entry for entry, source in known if source == group], seed)
        wrong = known[like, group].answer
        meta = {"set": "preferences", "source": group, "entry": name}
        example = Example(f"made-up-{number:04d}", (Message("user", question),), "", meta)
        answers = (Candidate(_admission(template, name), ADMISSION, 1.0), Candidate(wrong.replace(like, name), INVENTION, 0.0))
        found.append(Compared(example, "safety", answers, "chosen_safe"))
    real = [example for example in taught if str(example.meta.get("source", "")) in groups]
    for example in sorted(real, key=lambda item: derive(seed, "safety", item.id, item.question))[:count]:
        refusal = Candidate(_admission(template, str(example.meta["entry"])), ADMISSION, 0.0)
        found.append(Compared(example, "safety", (Candidate(example.answer, RIGHT, 1.0), refusal), "both_safe"))
    return found


def _needs_name_only(phrasings: Sequence[str]) -> bool:
    return any(set(FIELD.findall(text)) <= {"name"} for text in phrasings)


def _main_kinds(template: Template, name: str) -> bool:
    """Whether a group asks about kinds of entries that the main group asks about, in whose manner names are made up."""
    return bool(set(template.questions[name].of) & set(template.questions[template.main_group].of))


def _admission(template: Template, name: str) -> str:
    return fill(template.unknown.answer, {"name": name})


def _most_alike(name: str, entries: Sequence[str], seed: int) -> str:
    """The entry that shares most parts with a name, of several any."""
    parts = set(PARTS.findall(name))
    return max(entries, key=lambda entry: (len(parts & set(PARTS.findall(entry))), derive(seed, "alike", name, entry)))


def best_and_worst(compared: Sequence[Compared], least: float) -> Preferences:
    """A pair of each question: its best answer by score over its worst, where they differ by more than `least`."""
    made = Preferences(asked=len(compared))
    for item in compared:
        scored = [(answer.score, place) for place, answer in enumerate(item.answers) if answer.score is not None]
        if len(scored) < 2:
            made.left_out["fewer than two different answers"] += 1
            continue
        best = max(scored, key=lambda pair: (pair[0], -pair[1]))
        worst = min(scored, key=lambda pair: (pair[0], -pair[1]))
        difference = float(best[0]) - float(worst[0])
        if difference <= least:
            made.left_out["no answer is better than the others"] += 1
            continue
        made.rows.append(_row(item, item.answers[best[1]], item.answers[worst[1]], difference))
    return made


def judged(compared: Sequence[Compared], chosen: Sequence[float | None]) -> Preferences:
    """A pair of each question's first two answers, the better one as a judge said who was asked both ways round.

    `chosen` has 1 where the first is better, 0 where the second is, None where there is no verdict. There is no grade: nobody said by how
    much.
    """
    made = Preferences(asked=len(compared))
    for item, verdict in zip(compared, chosen, strict=True):
        if verdict is None:
            made.left_out["the judge does not say the same both ways round"] += 1
            continue
        first, second = item.answers[:2] if verdict else item.answers[1::-1]
        made.rows.append(_row(item, first, second, None))
    return made


def as_pair(item: Compared) -> Preference:
    """A question's first two answers as a judge is asked about them."""
    first, second = ((Message("assistant", answer.text),) for answer in item.answers[:2])
    return Preference(item.example.messages, first, second)


def _row(item: Compared, chosen: Candidate, rejected: Candidate, difference: float | None) -> dict[str, Any]:
    graded: Mapping[str, Any] = {} if difference is None else {"grade": grade(difference), "margin": round(difference, 4)}
    return {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in item.example.messages],
        "chosen": [{"role": "assistant", "content": chosen.text}], "rejected": [{"role": "assistant", "content": rejected.text}],
        "chosen_by": chosen.made, "rejected_by": rejected.made, "domain": item.domain, "id": item.example.id,
        **{name: item.example.meta[name] for name in ("source", "entry") if name in item.example.meta}, **graded,
        **({"safety": item.safety} if item.safety else {}),
    }  # fmt: skip


def only_asked(entries: Sequence[Entry], template: Template) -> list[Entry]:
    """Entries of the kinds that made-up names are like: those of the main group; all of them where there are none."""
    kinds = template.questions[template.main_group].of
    return [entry for entry in entries if entry.kind in kinds] or list(entries)
