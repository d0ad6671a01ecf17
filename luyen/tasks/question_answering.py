"""Questions with one right answer, and how close another answer comes to it.

Before `exact_match` and `token_f1` compare, both texts are normalised: Unicode NFC, case folded, punctuation (Unicode category P but
`KEPT`) removed, white space collapsed. That is SQuAD's rule (Rajpurkar et al., 2016, arXiv:1606.05250, section 6.1) made stricter:
English articles stay, and so do the signs that carry meaning in code, without which `a / b` would equal `a % b`. `chrf` is Popović's
character n-gram F-score (2015) as sacrebleu computes it with its defaults (six characters, no words, beta 2), from 0 to 100, on the
texts as they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from sacrebleu.metrics.chrf import CHRF

from luyen.core.errors import DataError
from luyen.core.files import read_jsonl
from luyen.core.manifest import verify_listed
from luyen.core.records import Message

KEPT = frozenset("%&*/@#\\-_[]{}")
"""Punctuation that is never removed. Unicode counts `+ < = > | ~ ^ $` as symbols, which stay anyway."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Example:
    """A question and its right answer; an empty answer means that there is none to give."""

    id: str
    messages: tuple[Message, ...]
    """The conversation up to and including the question."""
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    """`set` and `source` say where it belongs, `entry` what it is about."""

    @property
    def question(self) -> str:
        """Text of the last message."""
        return self.messages[-1].content


@dataclass(frozen=True)
class Answer:
    """What was answered, and whether the answer ended by itself."""

    text: str
    stopped: bool = True


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class QuestionAnswering:
    """A task: examples and a score. `admissions` are patterns by which an answer says that it does not know."""

    name: str
    examples: Sequence[Example]
    admissions: Sequence[str] = ()

    def score(self, example: Example, answer: Answer) -> dict[str, float]:
        """Measures of one answer: exact_match, f1 (0 to 1), chrf (0 to 100), said_unknown, stopped.

        For an example that has no answer: said_unknown, invented, stopped. Invented is every answer with a word in it that does not
        admit ignorance, whatever it asserts.
        """
        unknown = admits(answer.text, self.admissions)
        if not example.answer:
            made_up = bool(normalise(answer.text)) and not unknown
            return {"invented": float(made_up), "said_unknown": float(unknown), "stopped": float(answer.stopped)}
        return {
            "exact_match": exact_match(answer.text, example.answer),
            "f1": token_f1(answer.text, example.answer),
            "chrf": chrf(answer.text, example.answer),
            "said_unknown": float(unknown),
            "stopped": float(answer.stopped),
        }


def normalise(text: str) -> str:
    """The text as exact_match and token_f1 compare it."""
    text = unicodedata.normalize("NFC", text).casefold()
    kept = (character for character in text if character in KEPT or not unicodedata.category(character).startswith("P"))
    return " ".join("".join(kept).split())


def exact_match(prediction: str, reference: str) -> float:
    """1.0 when both texts are the same after `normalise`, else 0.0."""
    return float(normalise(prediction) == normalise(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, counted with repeats; two texts without words agree."""
    left, right = normalise(prediction).split(), normalise(reference).split()
    if not left or not right:
        return float(left == right)
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right))


def chrf(prediction: str, reference: str) -> float:
    """Sentence-level chrF from 0 to 100."""
    return float(_chrf().sentence_score(prediction, [reference]).score)


def admits(answer: str, patterns: Sequence[str]) -> bool:
    """Whether an answer says that it does not know, by any of the patterns."""
    return any(re.search(pattern, answer) for pattern in patterns)


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of per-example values with the 2.5th and 97.5th percentile of the means of 1000 resamples. DataError when there are none."""
    if not values:
        raise DataError("no values to average", expected="at least one example")
    array = numpy.asarray(values, dtype=numpy.float64)
    low, high = numpy.percentile(array[_resamples(len(array), seed)].mean(axis=1), [2.5, 97.5])
    return Estimate(float(array.mean()), float(low), float(high))


def summarise(scores: Sequence[Mapping[str, float]], seed: int = 0) -> dict[str, Estimate]:
    """The estimate of every measure that the scores of a set hold."""
    names = dict.fromkeys(name for row in scores for name in row)
    return {name: estimate([row[name] for row in scores if name in row], seed) for name in names}


def read_examples(path: Path) -> list[Example]:
    """Examples of an evaluation.jsonl: rows {"id", "messages", "answer", "set", "source", "entry"}. DataError names a wrong row.

    DamagedFile when the file differs from the manifest that lists it, or is gone.
    """
    verify_listed(path)
    examples = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            messages = tuple(Message(message["role"], message["content"]) for message in row["messages"])
            meta = {name: row.get(name, "") for name in ("set", "source", "entry")}
            examples.append(Example(str(row["id"]), messages, str(row["answer"]), meta))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number} is no question", found=f"no {error}" if isinstance(error, KeyError) else error,
                expected="id, messages, answer and set", fix="Make the file with `luyen synth`.",
            ) from error  # fmt: skip
        if not messages or messages[-1].role != "user":
            raise DataError(f"{path}, line {number} does not end with a question", expected="a last message of the user")
    if not examples:
        raise DataError(f"{path} holds no questions")
    return examples


@lru_cache(maxsize=4)
def _resamples(count: int, seed: int) -> NDArray[numpy.int64]:
    """1000 draws of `count` indices with replacement, the same for every measure of a set."""
    return numpy.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


@cache
def _chrf() -> Any:
    return CHRF()
