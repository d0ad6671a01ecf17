"""What several people's judgements say of each other and of the page: agreement, and whether a place wins.

Agreement on which answer is better, and on the scale of eight grades: Krippendorff's alpha, which takes any number of people and gaps
(Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011), nominal and ordinal; and for every two people Cohen's kappa
("A coefficient of agreement for nominal scales", 1960). 1 is full agreement, 0 what chance gives. The share that the left answer won is
one half where places do not matter; its interval is Wilson's (1927, "Probable inference, the law of succession, and statistical
inference") at 95 %.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from luyen.data.convert import GRADES
from luyen.serving.label_records import DOMAINS, Judgement

Z = 1.959963984540054
"""Of the normal distribution, two-sided 95 %."""


def krippendorff(units: Iterable[Sequence[int]], *, ordinal: bool = False) -> float | None:
    """Alpha over units, each the values that it was given; None where no unit has two values or all values are equal.

    alpha = 1 - D_o / D_e: disagreement observed within units over that expected of the same values at random. `ordinal` weighs a
    disagreement by the squared number of values that lie between, ends counted by half.
    """
    paired = [list(unit) for unit in units if len(unit) > 1]
    totals = Counter(value for unit in paired for value in unit)
    n = sum(totals.values())
    distance = _ordinal(totals) if ordinal else lambda a, b: float(a != b)
    observed = sum(distance(a, b) / (len(unit) - 1) for unit in paired for a, b in combinations(unit, 2)) * 2
    expected = sum(totals[a] * totals[b] * distance(a, b) for a, b in combinations(sorted(totals), 2)) * 2 / (n - 1) if n > 1 else 0.0
    return 1 - observed / expected if expected else None


def _ordinal(totals: Mapping[int, int]) -> Callable[[int, int], float]:
    def distance(a: int, b: int) -> float:
        low, high = min(a, b), max(a, b)
        between = sum(count for value, count in totals.items() if low <= value <= high)
        return (between - (totals[low] + totals[high]) / 2) ** 2 if low != high else 0.0

    return distance


def cohen(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Kappa of two people's values for the same things: (p_o - p_e) / (1 - p_e); None without any, or where chance alone agrees fully."""
    n = len(pairs)
    if not n:
        return None
    agreed = sum(a == b for a, b in pairs) / n
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(first[value] * second[value] for value in first) / n**2
    return (agreed - chance) / (1 - chance) if chance < 1 else None


def wilson(wins: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, (0, 1) when there is nothing to go by."""
    if not n:
        return 0.0, 1.0
    share = wins / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def statistics(judgements: Iterable[Judgement]) -> dict[str, Any]:
    """All figures of a folder's newest judgements, as plain values."""
    every = list(judgements)
    judged = [item for item in every if item.preferred is not None]
    placed = [item for item in judged if item.left is not None]
    people = sorted({item.annotator for item in every})
    return {
        "judgements": len(judged), "skipped": len(every) - len(judged), "pairs": len({item.pair.id for item in judged}),
        "domains": {name: sum(item.domain == name for item in judged) for name in DOMAINS},
        "grades": {name: sum(item.grade == name for item in judged) for name in GRADES},
        "safety": dict(sorted(Counter(item.safety for item in judged if item.safety).items())),
        "categories": dict(Counter(name for item in judged for name in item.categories).most_common()),
        "edited": sum(item.edits != (None, None) for item in judged),
        "left": share(placed),
        "annotators": {
            name: {**share([item for item in placed if item.annotator == name]), **_pace([i for i in every if i.annotator == name])}
            for name in people
        },
        "agreement": agreement(judged), "writers": writers(judged),
    }  # fmt: skip


def share(judged: Sequence[Judgement]) -> dict[str, float | int]:
    """How often the left answer won, with its interval."""
    wins = sum(item.preferred == item.left for item in judged)
    low, high = wilson(wins, len(judged))
    return {"placed": len(judged), "left_won": wins, "share": wins / len(judged) if judged else 0.5, "low": low, "high": high}


def _pace(own: Sequence[Judgement]) -> dict[str, float | int]:
    seconds = sorted(item.seconds for item in own if item.preferred is not None)
    return {"judged": len(seconds), "skipped": len(own) - len(seconds), "median_seconds": seconds[len(seconds) // 2] if seconds else 0.0}


def agreement(judged: Sequence[Judgement]) -> dict[str, Any]:
    """Alpha over everybody, kappa of every two, of pairs that several judged as they were shown: edited texts are not the same thing."""
    units: dict[str, dict[str, Judgement]] = defaultdict(dict)
    for item in judged:
        if item.edits == (None, None):
            units[item.pair.id][item.annotator] = item
    shared = [unit for unit in units.values() if len(unit) > 1]
    kappas = {}
    for a, b in combinations(sorted({name for unit in shared for name in unit}), 2):
        both = [(unit[a].preferred, unit[b].preferred) for unit in shared if a in unit and b in unit]
        if both:
            kappas[f"{a} and {b}"] = {"pairs": len(both), "agreed": sum(x == y for x, y in both) / len(both), "kappa": cohen(both)}
    return {
        "shared_pairs": len(shared),
        "alpha_better": krippendorff([int(item.preferred or 0) for item in unit.values()] for unit in shared),
        "alpha_grades": krippendorff(([item.value for item in unit.values() if item.grade] for unit in shared), ordinal=True),
        "kappa": kappas,
    }


def writers(judged: Sequence[Judgement]) -> dict[str, dict[str, float | int]]:
    """How often each one who writes won against another: a model with its temperature."""
    wins: Counter[str] = Counter()
    played: Counter[str] = Counter()
    for item in judged:
        names = [writer_name(answer.writer) for answer in item.pair.answers]
        if all(names) and names[0] != names[1]:
            played.update(names)
            wins[names[int(item.preferred or 0)]] += 1
    return {
        name: {"compared": n, "won": wins[name], "share": wins[name] / n, "low": wilson(wins[name], n)[0], "high": wilson(wins[name], n)[1]}
        for name, n in sorted(played.items())
    }


def writer_name(writer: Mapping[str, Any]) -> str:
    """A model and its temperature; "" where a pair does not say."""
    temperature = (writer.get("sampling") or {}).get("temperature")
    return f"{writer['model']} at {temperature:g}" if "model" in writer and temperature is not None else str(writer.get("model", ""))
