"""What was seen of a training run besides its curves: why it ended, where its time went, how much of the machine it used, jumps."""

from __future__ import annotations

from luyen.report.reading import Run, Stage, series, text
from luyen.report.wording import JOIN, counted, share

PARTS = {
    "data": "data", "forward": "forward", "backward": "backward", "update": "update", "communication": "communication",
    "wait": "waiting for the device", "other": "the rest",
}  # fmt: skip
"""Columns of `timings.jsonl` in words."""
SHOWN = 0.005
"""Smaller shares are left out."""
ENDS = {
    "tokens": "ended by its number of tokens",
    "time": "ended by its time",
    "plateau": "ended as held-out text no longer got better",
}
Fact = tuple[str, str, str]
"""Label, figure, remark."""


def ending(stage: Stage) -> str:
    """Why a run ended before its last step; "" when it did not."""
    return ENDS.get(text(stage.metrics.get("ended")), "")


def watched(run: Run, stage: Stage) -> list[Fact]:
    """Where the time of the steps went, the share of the device's rate that they used, and jumps that were told."""
    columns = series(run.rows(stage.folder / "timings.jsonl"), "step", "seconds", "mfu", *PARTS)
    whole = sum(columns["seconds"][1])
    shares = {words: sum(columns[name][1]) / whole for name, words in PARTS.items() if whole > 0}
    shown = ", ".join(f"{words} {100 * part:.0f}{JOIN}%" for words, part in shares.items() if part >= SHOWN)
    facts: list[Fact] = [("Time of a step", shown, "on a GPU without watch.synchronise: until the work was launched")] if shown else []
    used = columns["mfu"][1]
    if used:
        facts.append(("Rate used", share(sorted(used)[len(used) // 2]), "of a large matrix product's here (MFU), median over the steps"))
    jumps = stage.number("alarms")
    if jumps:
        facts.append(("Jumps", counted(jumps, "jump"), "of the loss or the gradient's norm; see alarms in metrics.jsonl"))
    return facts
