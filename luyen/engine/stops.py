"""What ends a run: its steps, or before them a number of tokens, a time, or held-out text that no longer gets better.

A stop before the last step is a normal end: the step is evaluated and saved, and the result says why. The schedule is not shortened, it
spans `steps`, so a run that is stopped ends at the learning rate of that step. Only a stop by time depends on the machine; after a kill
the others end at the same step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from luyen.core.errors import ConfigError
from luyen.engine.config import TrainConfig

MEASURE = "heldout_bits_per_byte"
"""The figure of an evaluation that `patience` looks at; less is better."""
SECONDS_AN_HOUR = 3600


def reason(config: TrainConfig, *, step: int, tokens: int, seconds: float, stale: int) -> str:
    """Why the run is over: steps, tokens, plateau, time; empty while it is not."""
    watch = config.watch
    if step >= config.steps:
        return "steps"
    if watch.stop_tokens is not None and tokens >= watch.stop_tokens:
        return "tokens"
    if watch.patience is not None and stale >= watch.patience:
        return "plateau"
    if watch.stop_hours is not None and seconds >= watch.stop_hours * SECONDS_AN_HOUR:
        return "time"
    return ""


def told(config: TrainConfig, why: str, step: int) -> str:
    """One line for a run that ends before its last step."""
    watch = config.watch
    what = {
        "tokens": f"{watch.stop_tokens or 0:,} tokens are reached",
        "time": f"{watch.stop_hours} hours have passed",
        "plateau": f"held-out text has not got better for {watch.patience} evaluations",
    }[why]
    return f"stopping after step {step:,} of {config.steps:,}: {what}"


def improved(config: TrainConfig, best: float | None, stale: int, measured: Mapping[str, float]) -> tuple[float | None, int]:
    """The best figure so far and how many evaluations came after it. Raises ConfigError when `patience` has nothing to look at."""
    value = measured.get(MEASURE)
    if value is None:
        if config.watch.patience is not None:
            raise ConfigError(
                "train.watch.patience needs held-out text", found=f"evaluations with {', '.join(measured) or 'nothing'}",
                expected=MEASURE, fix="Give the stage held-out text, or leave patience out.",
            )  # fmt: skip
        return best, stale
    if math.isfinite(value) and (best is None or value < best):
        return value, 0
    return best, stale + 1
