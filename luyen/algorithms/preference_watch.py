"""What goes wrong when preferences are learned, in plain language with the knob to turn.

Two things: the policy leaves its reference, and the chosen answers become less likely too, since a pair's difference can grow while both
fall (likelihood displacement: Pal et al., 2024, arXiv:2402.13228; Razin et al., 2024, arXiv:2410.08847). A little of the second is
usual. Figures are means over the last `WINDOW` steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from luyen.core import progress
from luyen.objectives.preference import REFERENCE_FREE, PreferenceLoss

WINDOW = 10
"""Steps that are averaged."""
FAR = 50.0
"""Nats that the reference's log-probability of an answer is above the policy's from which that is told: by then samples of the one are
hardly any of the other."""
FALLEN = 0.5
"""Nats by token that chosen answers have lost from which that is told: each token is 0.6 times as likely, one of 20 tokens e^-10 times."""


class PreferenceWatch:
    """Told the row of every step; says each thing once."""

    def __init__(self, loss: PreferenceLoss, say: Callable[[str], None] = progress.say) -> None:
        self.loss, self.say = loss, say
        self._seen: dict[str, deque[float]] = {}
        self._first: float | None = None
        self._told: set[str] = set()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Look at one step's figures; those of a loss without a reference are compared with its first steps'."""
        means = {name: self._mean(name, row[name]) for name in ("kl", "chosen_drift", "chosen_token_log_probability") if name in row}
        drift = means.get("chosen_drift")
        level = means.get("chosen_token_log_probability")
        if level is not None:
            self._first = level if self._first is None else self._first
            drift = level - self._first
        if drift is not None and drift < -FALLEN:
            lower = "lower train.optimizer.learning_rate"
            pull = lower if self.loss.name in REFERENCE_FREE else f"raise loss.beta ({self.loss.beta:g}), or {lower}"
            more = "" if self.loss.name in ("orpo", "kto", "apo_zero_unpaired") else "Set loss.sft_weight, for instance 0.1, or "
            self._tell("fallen", row, f"chosen answers have become less likely too, by {-drift:.2f} nats a token (told from {FALLEN:g}): "
                       f"the rejected ones only fall faster. {more or 'To hold them, '}{pull}")  # fmt: skip
        if (away := means.get("kl")) is not None and away > FAR:
            self._tell("far", row, f"answers are {away:.1f} nats less likely than under the reference (told from {FAR:g}): the policy "
                       f"leaves what it was trained to say. Raise loss.beta ({self.loss.beta:g}), lower train.optimizer.learning_rate, or "
                       "end sooner")  # fmt: skip

    def _mean(self, name: str, value: float) -> float | None:
        """Over the last steps; None before there are enough."""
        seen = self._seen.setdefault(name, deque(maxlen=WINDOW))
        seen.append(float(value))
        return sum(seen) / WINDOW if len(seen) == WINDOW else None

    def _tell(self, what: str, row: Mapping[str, Any], text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self.say(f"warning: step {row['step']}: {text}")
