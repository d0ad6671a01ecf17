"""How good rewards are at telling the better of two answers, and what else they go by.

accuracy      share of the pairs whose chosen answer has the higher reward; equal rewards count half. It must fall with the grade: what
              people find hardly better is hard to tell (Llama 2, Touvron et al., 2023, arXiv:2307.09288, tables 7 and 8)
calibration   where sigmoid(r_1 - r_2), the answers in an order that their text decides, says 70 %, it should be right in 70 %; ECE is the
              mean distance over bins of equal width, weighted by their pairs (Guo et al., 2017, arXiv:1706.04599, equation 3)
length        share of the pairs whose longer answer wins, beside the share whose longer answer was chosen, and the correlation of reward
              and length (Singhal et al., 2023, arXiv:2310.03716)
agreement     of two reward models: share of the pairs on which they prefer the same answer, and the correlation of their differences

Everything here is a function of numbers and lengths; nothing asks a model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luyen.core.records import Message, Preference

BINS = 10
GRADES = ("significantly_better", "better", "slightly_better", "negligibly_better")
Z = 1.96
"""Of the 95 % interval."""


@dataclass(frozen=True)
class Judged:
    """A pair with the rewards of its answers."""

    pair: Preference
    chosen: float
    rejected: float
    source: str = ""
    """Name of the data set."""

    @property
    def difference(self) -> float:
        """How much more the chosen answer is worth."""
        return self.chosen - self.rejected

    @property
    def right(self) -> float:
        """1, 0, or one half where both are worth the same."""
        return 0.5 if self.difference == 0 else float(self.difference > 0)


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    """All measures of rewards on held-out pairs, as plain values for JSON."""
    by_grade = {grade: found for grade in GRADES if (found := [item for item in judged if item.pair.grade == grade])}
    sources = dict.fromkeys(item.source for item in judged)
    grades = {grade: accuracy([item.right for item in found]) for grade, found in by_grade.items()}
    return {
        "pairs": len(judged),
        **accuracy([item.right for item in judged]),
        "by_data_set": {name: accuracy([item.right for item in judged if item.source == name]) for name in sources},
        "by_grade": grades,
        "falls_with_the_grade": falls([found["accuracy"] for found in grades.values()]) if len(grades) > 1 else None,
        "calibration": calibration(judged),
        "length": length_bias(judged),
        "longer_answer": accuracy([longer_is_chosen(item.pair) for item in judged]),
    }


def accuracy(right: Sequence[float]) -> dict[str, float]:
    """Mean of what was right and half the width of its 95 % interval (Wilson's, which holds near 0 and 1 too)."""
    count, mean = len(right), sum(right) / max(len(right), 1)
    half = Z * math.sqrt(mean * (1 - mean) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count) if count else math.nan
    return {"accuracy": mean, "interval": half, "count": count}


def falls(values: Sequence[float]) -> bool:
    """Whether no value is above the one before it."""
    return all(later <= earlier for earlier, later in zip(values, values[1:], strict=False))


def calibration(judged: Sequence[Judged]) -> dict[str, Any]:
    """Bins of what was expected and what was found, and the expected calibration error.

    The answer that is asked about is the one that a hash of both picks, so it is the chosen one in half of the pairs.
    """
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for item in judged:
        picked = hashlib.sha256(f"{text(item.pair.chosen)}\0{text(item.pair.rejected)}".encode("utf-8", "surrogatepass")).digest()[0] % 2
        expected = sigmoid(item.difference if picked else -item.difference)
        bins[min(int(expected * BINS), BINS - 1)].append((expected, float(picked)))
    told = [
        {"from": place / BINS, "pairs": len(each), "expected": _mean([odds for odds, _ in each]), "found": _mean([won for _, won in each])}
        for place, each in enumerate(bins)
        if each
    ]
    error = sum(row["pairs"] * abs(row["expected"] - row["found"]) for row in told) / max(len(judged), 1)
    return {"ece": error, "bins": told}


def length_bias(judged: Sequence[Judged]) -> dict[str, float | None]:
    """How often the longer answer wins, and how reward and length go together; answers of one length are left out of the shares."""
    apart = [item for item in judged if _lengths(item.pair)[0] != _lengths(item.pair)[1]]
    wins = [item.right if _lengths(item.pair)[0] > _lengths(item.pair)[1] else 1 - item.right for item in apart]
    chosen = [longer_is_chosen(item.pair) for item in apart]
    differences = [float(_lengths(item.pair)[0] - _lengths(item.pair)[1]) for item in judged]
    return {
        "longer_wins": _mean(wins) if wins else None,
        "longer_was_chosen": _mean(chosen) if chosen else None,
        "correlation": correlation([item.difference for item in judged], differences),
    }


def longer_is_chosen(pair: Preference) -> float:
    """Whether the rule that the longer answer wins is right: 1, 0, or one half for answers of one length (in characters)."""
    good, bad = _lengths(pair)
    return 0.5 if good == bad else float(good > bad)


def agreement(first: Sequence[Judged], second: Sequence[Judged]) -> dict[str, float | None]:
    """Of two reward models on the same pairs. ValueError where they are not the same."""
    if [item.pair for item in first] != [item.pair for item in second]:
        raise ValueError("agreement is of the same pairs in the same order")
    same = [float((one.difference > 0) == (other.difference > 0)) for one, other in zip(first, second, strict=True)]
    differences = [item.difference for item in first], [item.difference for item in second]
    return {"agree": _mean(same) if same else None, "correlation": correlation(*differences), **_both_right(first, second)}


def _both_right(first: Sequence[Judged], second: Sequence[Judged]) -> dict[str, float]:
    return {"first_accuracy": _mean([item.right for item in first]), "second_accuracy": _mean([item.right for item in second])}


def safety(pairs: Sequence[Preference], scores: Sequence[Sequence[float]]) -> dict[str, float | int | None] | None:
    """Of safety scores of the chosen and the rejected answer at the threshold 0 (one half after the sigmoid; Llama 2, table 29).

    recall: share of the unsafe answers below it; false_alarms: share of the safe ones below it. None where no pair has a label.
    """
    told = {"chosen_safe": (True, False), "both_safe": (True, True), "both_unsafe": (False, False)}
    below: dict[bool, list[float]] = {True: [], False: []}
    for pair, both in zip(pairs, scores, strict=True):
        for safe, score in zip(told[pair.safety] if pair.safety else (), both, strict=False):
            below[safe].append(float(score < 0))
    if not below[True] and not below[False]:
        return None
    recall, alarms = (_mean(found) if found else None for found in (below[False], below[True]))
    return {"unsafe": len(below[False]), "recall": recall, "safe": len(below[True]), "false_alarms": alarms}


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's; None where one of them does not vary."""
    mean_first, mean_second = _mean(first), _mean(second)
    products = sum((one - mean_first) * (other - mean_second) for one, other in zip(first, second, strict=True))
    spread = math.sqrt(sum((one - mean_first) ** 2 for one in first) * sum((other - mean_second) ** 2 for other in second))
    return products / spread if spread > 0 else None


def told(found: Mapping[str, Any]) -> list[str]:
    """The measures in words, what is suspicious first."""
    longer = found["longer_answer"]["accuracy"]
    lines = [f"{found['accuracy']:.1%} of {found['pairs']:,} held-out pairs (± {found['interval']:.1%}); the longer answer wins: "
             f"{longer:.1%}, the shorter: {1 - longer:.1%}"]  # fmt: skip
    parts = {**(found["by_data_set"] if len(found["by_data_set"]) > 1 else {}), **found["by_grade"]}
    lines += [f"  {name.replace('_', ' ')}: {row['accuracy']:.1%} of {row['count']:,}" for name, row in parts.items()]
    if found["falls_with_the_grade"] is False:
        lines.append("  accuracy does not fall with the grade: what people find hardly better should be hardest to tell. With few pairs "
                     "that is chance (see the intervals); else look at how the grades were given")  # fmt: skip
    length = found["length"]
    if length["longer_wins"] is not None:
        lines.append(f"  length: the longer answer has the higher reward in {length['longer_wins']:.1%} of the pairs, and was chosen in "
                     f"{length['longer_was_chosen']:.1%}")  # fmt: skip
    return [*lines, f"  calibration error {found['calibration']['ece']:.3f}"]


def text(turns: Sequence[Message]) -> str:
    """What an answer says, its turns one after another."""
    return "\n".join(turn.content for turn in turns)


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), without overflow."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def _lengths(pair: Preference) -> tuple[int, int]:
    return len(text(pair.chosen)), len(text(pair.rejected))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
