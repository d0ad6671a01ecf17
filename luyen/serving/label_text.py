"""The figures of a folder's judgements as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luyen.core.plural import exactly


def lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """What `luyen label stats` prints of `label_statistics.statistics`."""
    counted = f"{exactly(figures['judgements'], 'judgement')} of {exactly(figures['pairs'], 'pair')}"
    yield f"{counted}, {figures['skipped']} skipped, {figures['edited']} with an edited answer"
    left = figures["left"]
    yield f"the left answer won {left['left_won']} of {left['placed']}: {interval(left)} (Wilson, 95 %; half where places do not matter)"
    for name, row in figures["annotators"].items():
        yield f"  {name}: {row['judged']} judged, {row['skipped']} skipped, left won {interval(row)}, median {row['median_seconds']:.0f} s"
    agreement = figures["agreement"]
    alphas = f"{number(agreement['alpha_better'])} which is better, {number(agreement['alpha_grades'])} grades (ordinal)"
    yield f"agreement on {exactly(agreement['shared_pairs'], 'pair')} that several judged: Krippendorff's alpha {alphas}"
    for names, row in agreement["kappa"].items():
        yield f"  {names}: the same answer in {100 * row['agreed']:.1f} % of {row['pairs']}, Cohen's kappa {number(row['kappa'])}"
    for name, row in figures["writers"].items():
        yield f"{name} won {row['won']} of {row['compared']}: {interval(row)}"
    for title in ("grades", "domains", "safety", "categories"):
        if figures[title]:
            yield f"{title}: {', '.join(f'{name} {count}' for name, count in figures[title].items())}"


def interval(row: Mapping[str, float]) -> str:
    """A share with its interval, in percent."""
    return f"{100 * row['share']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def number(value: float | None) -> str:
    """A coefficient, or that there is none."""
    return "not defined" if value is None else f"{value:.3f}"
