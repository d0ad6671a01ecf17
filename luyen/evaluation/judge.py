"""A chat model as the judge of two answers: "Choose the best answer between A and B" (Llama 2, arXiv:2307.09288, section 3.2.2).

A judge likes one of the places (Zheng et al., 2023, arXiv:2306.05685), so each pair is asked about twice, with the answers
changed round. A verdict counts where both times the same answer wins; else it is none, and how often that is so is a measure of the judge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import httpx2

from luyen.adapters import files
from luyen.adapters.preamble import room_of
from luyen.core import interrupt
from luyen.core.errors import UserError
from luyen.core.records import Message, Preference
from luyen.evaluation.reward_accuracy import accuracy, text
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate
from luyen.models.transformer import Transformer
from luyen.tokenizer.chat import render_batch
from luyen.tokenizer.load import Tokenizer

QUESTION = "Choose the best answer between A and B. Reply with the letter alone."
WRITTEN = 8
"""Tokens that the judge may write."""
_LETTER = re.compile(r"\b([AB])\b")


class Judge(Protocol):
    """Whoever answers questions in words."""

    def ask(self, questions: Sequence[str]) -> list[str]:
        """An answer to each question, in order."""


@dataclass(frozen=True)
class ModelJudge:
    """A chat model of this project or of Hugging Face's form, asked greedily."""

    model: Transformer
    tokenizer: Tokenizer
    batch_size: int = 16

    @classmethod
    def open(cls, name: str, device: str) -> ModelJudge:
        """From a folder, an adapter's too, or a hub name."""
        return cls(files.open_model(name, device), Tokenizer.load(files.locate_tokenizer(name)))

    def ask(self, questions: Sequence[str]) -> list[str]:
        """An answer to each question, in order; "" to one that leaves no room for an answer in the model's context."""
        found = [""] * len(questions)
        rendered = render_batch(self.tokenizer, [[Message("user", question)] for question in questions], add_generation_prompt=True)
        short = [place for place, row in enumerate(rendered) if len(row.ids) + WRITTEN <= room_of(self.model)]
        for start in range(0, len(short), self.batch_size):
            interrupt.check()
            chosen = short[start : start + self.batch_size]
            ids = [rendered[place].ids for place in chosen]
            made = generate(self.model, ids, SamplingConfig(max_new_tokens=WRITTEN), self.tokenizer.stop_ids)
            for place, answer in zip(chosen, made, strict=True):
                found[place] = self.tokenizer.decode(answer.ids)
        return found


@dataclass(frozen=True)
class EndpointJudge:
    """A chat model behind OpenAI's protocol: `url` is what comes before /chat/completions."""

    url: str
    model: str
    seconds: float = 60.0

    def ask(self, questions: Sequence[str]) -> list[str]:
        """An answer to each question, in order. UserError where the endpoint does not give one."""
        found: list[str] = []
        with httpx2.Client(timeout=self.seconds) as client:
            for question in questions:
                interrupt.check()
                found.append(self._one(client, question))
        return found

    def _one(self, client: httpx2.Client, question: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": WRITTEN}
        try:
            answer = client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["message"]["content"])
        except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
            found = f"{type(error).__name__}: {str(error)[:200]}"
            raise UserError(f"the judge at {self.url} gives no answer", found=found, expected="an OpenAI-compatible endpoint",
                            fix="Look whether it runs and has that model.") from error  # fmt: skip


@dataclass(frozen=True)
class Verdicts:
    """What a judge said of pairs, asked both ways round."""

    chosen: tuple[float | None, ...]
    """Of each pair 1 where the chosen answer won both times, 0 where the other did, None where there is no verdict."""
    first_place: float
    """Share of the usable single answers that are A; one half where the places do not matter."""
    unusable: int
    """Single answers that name no letter, or for which the model's context left no room."""

    def as_dict(self) -> dict[str, float | int]:
        """Accuracy with a pair without verdict as half right, and how many there are."""
        clear = sum(verdict is not None for verdict in self.chosen)
        right = accuracy([0.5 if verdict is None else verdict for verdict in self.chosen])
        return {**right, "verdicts": clear, "first_place": self.first_place, "unusable": self.unusable}


def judge(who: Judge, pairs: Sequence[Preference]) -> Verdicts:
    """Ask about every pair both ways round."""
    answers = who.ask([question(pair, turned) for pair in pairs for turned in (False, True)])
    letters = [letter(answer) for answer in answers]
    chosen: list[float | None] = []
    for straight, turned in zip(letters[::2], letters[1::2], strict=True):
        chosen.append({("A", "B"): 1.0, ("B", "A"): 0.0}.get((straight, turned)))
    usable = [item for item in letters if item]
    return Verdicts(tuple(chosen), usable.count("A") / len(usable) if usable else 0.5, len(letters) - len(usable))


def question(pair: Preference, turned: bool) -> str:
    """What the judge is asked: the conversation, the two answers, the chosen one first unless `turned`."""
    talk = "\n".join(f"{turn.role}: {turn.content}" for turn in pair.prompt)
    answers = (pair.rejected, pair.chosen) if turned else (pair.chosen, pair.rejected)
    return f"{talk}\n\nAnswer A: {text(answers[0])}\n\nAnswer B: {text(answers[1])}\n\n{QUESTION}"


def letter(answer: str) -> str:
    """The letter that an answer names, "" where it names none or both."""
    named = set(_LETTER.findall(answer))
    return named.pop() if len(named) == 1 else ""
