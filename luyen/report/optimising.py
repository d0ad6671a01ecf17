"""What a training run's optimizer left to tell: an average of the weights, and the batch size that the gradient's noise speaks for."""

from __future__ import annotations

from luyen.report.reading import Stage, pick
from luyen.report.watching import Fact
from luyen.report.wording import short, whole


def optimised(stage: Stage, noise: float | None) -> list[Fact]:
    """Which average the model is, if one was asked for; the last gradient noise scale, in targets, beside what a step has."""
    facts: list[Fact] = []
    decay, last = pick(stage.config, "train.optimizer.ema_decay"), pick(stage.config, "train.checkpoint.average_last")
    if decay is not None:
        facts.append(("Average of the weights", f"decay {short(decay)}", "over all updates; the model and its evaluations are of it"))
    elif last is not None and last > 1:
        facts.append(
            ("Average of the weights", f"{whole(last)} checkpoints", "the last; the model and its last evaluation are of their mean")
        )
    if noise is not None:
        steps, targets = stage.number("steps"), stage.number("targets")
        step = f"; a step has {whole(targets / steps)}" if steps and targets else ""
        facts.append(("Gradient noise scale", whole(noise), f"targets, at the end{step}"))
    return facts
