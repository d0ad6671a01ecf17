"""How a model's training on this machine compares with what estimate.py counts for it: two of its layers are tried for a moment.

The shares in estimate.py are those of one machine. Elsewhere products of some shapes, attention or the passes over memory are better or
worse, so the count is multiplied by what a trial took over what was counted for the trial.
"""

from __future__ import annotations

import time
from functools import cache

import torch

from luyen.core.random_state import random_state, restore_random_state
from luyen.engine.estimate import Estimate, Speed, token_work
from luyen.engine.memory import freed_memory_kept
from luyen.engine.precision import autocast
from luyen.models.attention import Layout
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer
from luyen.objectives.language_model import linear_cross_entropy

LAYERS = 1
"""Layers of the trial, where the model has so many."""
OPERATIONS = 1.5e11
"""Of one pass forward and backward of the trial, about half a second on two cores; a row that takes more is not tried."""
PASSES = 2
"""Timed ones, of which the fastest counts; one before them is not timed."""


def measure_pace(estimate: Estimate, speed: Speed, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds that the estimated training takes for each second that `token_work` counts for it at this speed.

    Measured once in a process for each shape; 1.0 for a model of which a single row would take too long to try.
    """
    model, length = estimate.model, estimate.length
    small = model.model_copy(update={"num_layers": min(LAYERS, model.num_layers)})
    operations = token_work(small, length).operations * length
    if operations > OPERATIONS:
        return 1.0
    tried = max(1, min(estimate.rows, int(OPERATIONS / operations)))
    layers, head = _seconds(small, tried, length, device, dtype, torch.get_num_threads())
    taken = layers * model.num_layers / small.num_layers + head * estimate.trained
    return taken / (token_work(model, length, estimate.trained) * (tried * length)).seconds(speed)


@cache
def _seconds(
    model: TransformerConfig, rows: int, length: int, device: torch.device, dtype: torch.dtype, threads: int
) -> tuple[float, float]:
    """Of the fastest pass forward and backward through the layers, and through the head and the loss of all tokens."""
    del threads  # part of the key alone
    before = random_state()
    try:
        trial = Transformer(model).to(device)
        tokens_T = torch.randint(model.vocab_size, (rows * length,)).to(device)
    finally:
        restore_random_state(before)
    layout = Layout.packed([length] * rows, device)
    layers, heads = [], []
    with freed_memory_kept(), torch.enable_grad():
        for _ in range(1 + PASSES):
            times = [_now(device)]
            with autocast(device, dtype):
                hidden_TD = trial(tokens_T[None], layout)[0]
                times.append(_now(device))
                leaf_TD = hidden_TD.detach().requires_grad_()
                linear_cross_entropy(leaf_TD, trial.head_weight, tokens_T).backward()  # type: ignore[no-untyped-call]
            times.append(_now(device))
            hidden_TD.backward(leaf_TD.grad)
            times.append(_now(device))
            layers.append(times[1] - times[0] + times[3] - times[2])
            heads.append(times[2] - times[1])
            trial.zero_grad(set_to_none=True)
    return min(layers[1:]), min(heads[1:])


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
