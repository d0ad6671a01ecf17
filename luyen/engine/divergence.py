"""An early word when training leaves its course: a loss or a gradient's norm far above what it usually is.

The usual is the median m of the newer half of the last N values. A fall is no noise, so it is taken away first: with m' the median of
the older half the slope is b = min(0, (m - m') / (N / 2)), and d is the median absolute deviation of v_i - b i; 1.4826 d is the standard
deviation where the noise is normal.

    too high:  value > m + max(k 1.4826 d, r |m|)      k deviations, and at least the share r of the usual

Two steps in a row that are too high begin an episode, which is told once. High values do not enter the N, so a loss that stays high stays
noticed; when it has stayed for N steps it is the usual one. Everything is a function of the logged values, so a resumed run tells the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

FEWEST = 16
"""Values without which nothing is said."""
IN_A_ROW = 2
"""Steps above the limit that begin an episode; one alone is a hard batch."""
CALM = 16
"""Steps below the limit that end an episode."""
NORMAL = 1.4826
LEAST = {"loss": 0.1, "gradient_norm": 3.0}
"""What is watched, and r for each: a gradient's norm varies by a factor where a loss varies by a tenth."""
ADVICE = {
    "loss": "If it does not come back within some fifty steps, go back: a lower optimizer.learning_rate or a longer warm-up "
    "helps most; look at the data of these steps too",
    "gradient_norm": "The update was limited to optimizer.clip_norm. If the loss follows, a lower optimizer.learning_rate, a longer "
    "warm-up or a smaller clip_norm helps",
}


def limit(usual: list[float], deviations: float, least: float) -> float | None:
    """The value above which the next one is too high; None while there are fewer than FEWEST."""
    if len(usual) < FEWEST:
        return None
    half = len(usual) // 2
    level = median(usual[half:])
    slope = min(0.0, (level - median(usual[:half])) / (len(usual) / 2))
    straight = [value - slope * index for index, value in enumerate(usual)]
    middle = median(straight)
    spread = NORMAL * median(abs(value - middle) for value in straight)
    return level + max(deviations * spread, least * abs(level))


@dataclass
class Course:
    """One figure over the steps."""

    usual: list[float] = field(default_factory=list)
    """The last values that were not too high."""
    high: list[float] = field(default_factory=list)
    """The values in a row that are."""
    calm: int = 0
    """Steps below the limit since an episode."""
    told: bool = False
    """Whether an episode is under way."""

    def observe(self, value: float, window: int, deviations: float, least: float) -> bool:
        """Take up a value; True when an episode begins with it."""
        bound = limit(self.usual, deviations, least)
        if bound is None or value <= bound:
            self.usual = [*self.usual, *self.high, value][-window:]
            self.high, self.calm = [], self.calm + 1
            self.told = self.told and self.calm < CALM
            return False
        self.high, self.calm = [*self.high, value], 0
        begins = len(self.high) >= IN_A_ROW and not self.told
        self.told = self.told or begins
        if len(self.high) >= window:
            self.usual, self.high, self.told = self.high, [], False
        return begins


@dataclass
class Divergence:
    """Every figure that is watched, and how often something was told. Its fields are the state that a checkpoint holds."""

    courses: dict[str, Course] = field(default_factory=dict)
    alarms: int = 0

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Divergence:
        """From what `dataclasses.asdict` made of it; an empty state is a new one."""
        courses = {name: Course(**course) for name, course in state.get("courses", {}).items()}
        return cls(courses, state.get("alarms", 0))

    def observe(self, row: Mapping[str, Any], window: int, deviations: float) -> list[str]:
        """Take up a row of metrics.jsonl. Returns a sentence for every episode that begins; a window of 0 watches nothing."""
        sentences = []
        for name, least in LEAST.items():
            value = row.get(name)
            if not window or value is None:
                continue
            course = self.courses.setdefault(name, Course())
            before = median(course.usual[-FEWEST:]) if course.usual else value
            if course.observe(value, max(window, FEWEST), deviations, least):
                self.alarms += 1
                what = name.replace("_", " ")
                sentences.append(f"step {row['step']}: the {what} jumped to {value:.3g}, it was about {before:.3g}. {ADVICE[name]}")
        return sentences
