"""Entries and phrasings to turns, and turns to the rows of training and evaluation."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luyen.core.seed import derive
from luyen.retrieval.context import context_message
from luyen.tasks.entries import Entry
from luyen.tasks.template import QuestionGroup, Template, fill

FOLLOW_UP_SHARE = 0.5


@dataclass(frozen=True)
class Turn:
    """A question about one entry and its answer."""

    entry: str
    group: str
    question: str
    answer: str

    def evaluation_row(self, set_name: str, number: int) -> dict[str, Any]:
        """The turn as a row of an evaluation set."""
        return {
            "id": f"{set_name}-{self.group}-{number:04d}", "set": set_name, "source": self.group, "entry": self.entry,
            "messages": _messages((self.question, None)), "answer": self.answer,
        }  # fmt: skip


class Asker:
    """Asks about entries in the template's words. `every` are all entries of the documents, taught or not."""

    def __init__(self, template: Template, names: Sequence[str], every: Sequence[Entry], seed: int) -> None:
        self.template, self.seed = template, seed
        self.groups = {name: template.questions[name] for name in names}
        self.left_out: Counter[str] = Counter()
        """Questions that were not asked, by reason."""
        self._values: dict[str, Counter[str]] = {
            name: Counter(entry.fields.get(group.unique, "").casefold() for entry in every if entry.kind in group.of)
            for name, group in self.groups.items()
            if group.unique
        }
        self._follow_ups: dict[str, list[Turn]] = {}

    def training_turns(self, entry: Entry, limit: int | None) -> list[Turn]:
        """Every group's training phrasings for an entry, at most `limit` of each group."""
        turns: list[Turn] = []
        for name, group in self.groups.items():
            answer = self._answer(entry, name, group)
            if answer is None:
                continue
            phrasings = group.ask
            if limit is not None and limit < len(phrasings):
                phrasings = random.Random(derive(self.seed, "phrasings", name, entry.name)).sample(phrasings, limit)
            turns += [Turn(entry.name, name, fill(text, entry.fields), answer) for text in phrasings]
            if group.follow_up:
                follow = [Turn(entry.name, name, fill(text, entry.fields), answer) for text in group.follow_up]
                self._follow_ups.setdefault(entry.name, []).extend(follow)
        return turns

    def without_conflicts(self, turns: Sequence[Turn]) -> list[Turn]:
        """The turns whose question has one answer only; the others are counted in `left_out`."""
        answers: dict[str, set[str]] = {}
        for turn in turns:
            answers.setdefault(turn.question.casefold(), set()).add(turn.answer)
        kept = [turn for turn in turns if len(answers[turn.question.casefold()]) == 1]
        if len(kept) < len(turns):
            self.left_out["the same question has several answers"] += len(turns) - len(kept)
        return kept

    def rows(self, turns: Sequence[Turn], multi_turn: float, grounded: float, passages: Mapping[str, str]) -> list[dict[str, Any]]:
        """Each turn once: as a row of its own, behind its entry's passage (a share `grounded`), or in a longer conversation (`multi_turn`).

        A conversation has two or three turns; one of them may be a follow-up question about the first turn's entry.
        """
        generator = random.Random(derive(self.seed, "rows"))
        order = list(range(len(turns)))
        generator.shuffle(order)
        joined, read = round(len(turns) * multi_turn), round(len(turns) * grounded)
        rows = [self._row([turns[index]], turns[index].group) for index in sorted(order[joined + read :])]
        for index in sorted(order[joined : joined + read]):
            row = self._row([turns[index]], "grounded")
            context = context_message([passages[turns[index].entry]])
            rows.append({**row, "messages": [{"role": context.role, "content": context.content}, *row["messages"]]})
        rest = order[:joined]
        while rest:
            size = generator.choice((2, 3))
            talk = [turns[rest.pop()] for _ in range(min(size, len(rest)))]
            follow_ups = self._follow_ups.get(talk[0].entry, [])
            if follow_ups and talk[0].group != follow_ups[0].group and generator.random() < FOLLOW_UP_SHARE:
                talk[1:2] = [generator.choice(follow_ups), *talk[1:2]]
            rows.append(self._row(talk, "multi_turn" if len(talk) > 1 else talk[0].group))
        return rows

    def evaluation_rows(self, set_name: str, entries: Sequence[Entry], limit: int) -> list[dict[str, Any]]:
        """Held-out phrasings for each entry and group, `limit` of them, taken in rotation so that all are used."""
        rows: list[dict[str, Any]] = []
        for name, group in self.groups.items():
            number = 0
            for entry in entries:
                answer = self._answer(entry, name, group)
                if answer is None:
                    continue
                for _ in range(min(limit, len(group.held_out))):
                    question = fill(group.held_out[number % len(group.held_out)], entry.fields)
                    rows.append(Turn(entry.name, name, question, answer).evaluation_row(set_name, number))
                    number += 1
        return rows

    def invented_rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Held-out phrasings about names that do not exist; the answer is empty because there is none."""
        group = self.template.main_group
        phrasings = _with_name_only(self.template.questions[group].held_out)
        return [
            Turn(name, group, fill(phrasings[number % len(phrasings)], {"name": name}), "").evaluation_row("invented", number)
            for number, name in enumerate(names)
        ]

    def unknown_rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Training rows that admit not to know `names`, one phrasing for each."""
        unknown = self.template.unknown
        phrasings = _with_name_only(self.template.questions[self.template.main_group].ask)
        turns = [
            Turn(name, "unknown", fill(phrasings[i % len(phrasings)], {"name": name}), fill(unknown.answer, {"name": name}))
            for i, name in enumerate(names)
        ]
        return [self._row([turn], "unknown") for turn in turns]

    def conversation_rows(self, copies: int) -> list[dict[str, Any]]:
        """The turns that need no entry, each phrasing `copies` times."""
        return [
            self._row([Turn("", "conversation", question, exchange.answer)], "conversation")
            for exchange in self.template.conversation
            for question in exchange.ask
            for _ in range(copies)
        ]

    def _answer(self, entry: Entry, name: str, group: QuestionGroup) -> str | None:
        """The answer, or None (counted) when the entry is not asked about in this group."""
        if entry.kind not in group.of:
            return None
        if group.unique and self._values[name][entry.fields.get(group.unique, "").casefold()] > 1:
            self.left_out[f"{name}: {group.unique} belongs to several entries"] += 1
            return None
        try:
            answer = fill(group.answer, entry.fields)
            for text in (*group.ask, *group.held_out, *group.follow_up):
                fill(text, entry.fields)
        except KeyError as error:
            self.left_out[f"{name}: the entry has no {error.args[0]}"] += 1
            return None
        if any(re.search(pattern, answer) for pattern in group.skip):
            self.left_out[f"{name}: answer left out by a rule"] += 1
            return None
        if len(answer) > self.template.answer.maximum_characters:
            self.left_out[f"{name}: answer too long"] += 1
            return None
        return answer

    def _row(self, turns: Sequence[Turn], source: str) -> dict[str, Any]:
        entries = list(dict.fromkeys(turn.entry for turn in turns if turn.entry))
        pairs = [(turn.question, turn.answer) for turn in turns]
        return {"messages": _messages(*pairs), "source": source, "entry": ", ".join(entries)}


def _messages(*pairs: tuple[str, str | None]) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    for question, answer in pairs:
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return messages


def _with_name_only(phrasings: Sequence[str]) -> list[str]:
    """Phrasings that need no field but the name, which is all that a made-up entry has."""
    return [text for text in phrasings if not (set(re.findall(r"\{(\w+)\}", text)) - {"name"})]
