"""What was seen of a training run besides its curves: why it ended, where its time went, how much of the machine it used, jumps."""

from __future__ import annotations

from luyen.report.reading import Run, Stage, pick, series, text
from luyen.report.wording import JOIN, counted, duration, foretold, share, whole

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


def expected_seconds(stage: Stage) -> float | None:
    """What the estimate has for the work that was done: all of it, or the share of a training's steps that were done before it ended."""
    seconds, part = pick(stage.manifest, "estimate.seconds"), _part(stage)
    return seconds * part[0] / part[1] if seconds is not None and part else seconds


def expected_time(stage: Stage) -> str:
    """The estimate beside the time that was measured, and of which steps it is where not all were done; "" without an estimate."""
    expected, part = expected_seconds(stage), _part(stage)
    told = foretold(expected, pick(stage.manifest, "seconds"), duration(expected))
    return f"{told} for {whole(part[0])} of {counted(part[1], 'step')}" if told and part else told


def _part(stage: Stage) -> tuple[float, float] | None:
    """Steps done and planned of a training that something ended before its last step."""
    done, planned = stage.number("steps"), pick(stage.config, "train.steps")
    return (done, planned) if ending(stage) and done and planned and done < planned else None


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
