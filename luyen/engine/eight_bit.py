"""AdamW with its two moments in 8 bits, by bitsandbytes (the extra `qlora`), imported only when it is asked for.

Dettmers et al., 2022, arXiv:2110.02861: blocks of numbers share one scale, so a moment takes one byte for each weight and 4 bytes
for each block of 256. Matrices of fewer than 4,096 numbers keep 32 bits, as do embeddings, norms and biases, which the caller leaves to
torch's AdamW (the paper's section 2.3: embeddings are what 8 bits make unstable).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from luyen.core.errors import ConfigError
from luyen.engine.config import OptimizerConfig


def adamw8bit(parameters: list[Tensor], config: OptimizerConfig) -> Optimizer:
    """The optimizer of these parameters, all with weight decay. Raises ConfigError when bitsandbytes is not installed."""
    betas = (config.beta1, config.beta2)
    made: Optimizer = _library().optim.AdamW8bit(
        parameters, lr=config.learning_rate, betas=betas, eps=config.epsilon, weight_decay=config.weight_decay
    )
    return made


def _library() -> Any:
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it warns that it downloaded nothing
    try:
        with _nothing_downloaded():
            return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ConfigError(
            "optimizer.name",
            found="adamw8bit, but bitsandbytes is not installed",
            fix='Type: pip install ".[qlora]" in luyen\'s folder, or take adamw.',
        ) from error


@contextlib.contextmanager
def _nothing_downloaded() -> Iterator[None]:
    """While it is imported, bitsandbytes fetches code from a hub if the package `kernels` is there; within the block it is not."""
    hidden = "kernels" not in sys.modules
    if hidden:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["kernels"]
