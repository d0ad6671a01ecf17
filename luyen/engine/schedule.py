"""The learning rate of an update as a share of its peak: pure functions of the step."""

from __future__ import annotations

import math

from luyen.engine.config import ScheduleConfig


def factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Share of the peak rate for update `step` (from 0) of `steps`.

    Warm-up over w steps: (step + 1) / (w + 1), so that no update has rate 0. With p = (step - w) / (steps - w) and f the final share:
    linear 1 - (1 - f) p;  polynomial f + (1 - f) (1 - p)^power;  cosine f + (1 - f) (1 + cos(pi p)) / 2, where each of the cycles has
    its own p (Loshchilov and Hutter, 2017, arXiv:1608.03983, equation 5);  wsd 1, then over the last share f + (1 - f) (1 - sqrt(p of the
    decay)) (Hägele et al., 2024, arXiv:2405.18392, equation 1);  inverse_sqrt sqrt((w + 1) / (step + 1)) (Vaswani et al., 2017, equation 3,
    as a share of its peak);  ramp f^(1 - p), the last update at the peak (Smith, 2017, arXiv:1506.01186, section 3.3).
    """
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    passed, left = step - warmup, max(1, steps - warmup)
    progress = passed / left
    match config.name:
        case "constant":
            return 1.0
        case "inverse_sqrt":
            return math.sqrt((warmup + 1) / (step + 1))
        case "ramp":
            return float(config.final_fraction ** (1 - passed / max(1, left - 1)))
        case "linear":
            falling = 1 - progress
        case "polynomial":
            falling = (1 - progress) ** config.power
        case "cosine":
            falling = (1 + math.cos(math.pi * ((passed * config.cycles % left) / left))) / 2
        case "wsd":
            decay = max(1, round(config.decay_fraction * steps))
            falling = 1 - math.sqrt(max(0.0, (step - (steps - decay)) / decay))
    return config.final_fraction + (1 - config.final_fraction) * falling
