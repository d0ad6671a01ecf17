"""AdamW with its two moments in 8 bits, by bitsandbytes (the extra `qlora`), imported only when it is asked for.

Dettmers et al., 2022, arXiv:2110.02861: blocks of numbers share one scale, so a moment takes one byte for each weight and 4 bytes
for each block of 256. Matrices of fewer than 4,096 numbers keep 32 bits, as do embeddings, norms and biases, which the caller leaves to
torch's AdamW (the paper's section 2.3: embeddings are what 8 bits make unstable).

Paged (Dettmers et al., 2023, arXiv:2305.14314, section 3): the moments lie in CUDA's unified memory, so that where the GPU's is short they
are moved to the host's and come back for the update. bitsandbytes pages moments of PAGED_FROM numbers and more.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from luyen.core import low_bits
from luyen.core.errors import ConfigError
from luyen.engine.config import OptimizerConfig

PAGED = "paged-adamw8bit"
NAMES = ("adamw8bit", PAGED)
"""Values of `optimizer.name` that are made here."""
PAGED_FROM = 100_000


def adamw8bit(parameters: list[Tensor], config: OptimizerConfig) -> Optimizer:
    """The optimizer of these parameters, all with weight decay. Raises ConfigError when bitsandbytes is not installed, and where moments
    shall be paged and the parameters are not on a CUDA device."""
    paged = config.name == PAGED
    if paged and (elsewhere := {parameter.device.type for parameter in parameters} - {"cuda"}):
        raise ConfigError("optimizer.name", found=f"{PAGED} on {' and '.join(sorted(elsewhere))}", expected="a CUDA device, whose driver "
                          "moves the pages", fix="Take adamw8bit, which is the same without pages.")  # fmt: skip
    library = low_bits.library("optimizer.name", config.name, "take adamw")
    kind = library.optim.PagedAdamW8bit if paged else library.optim.AdamW8bit
    betas = (config.beta1, config.beta2)
    made: Optimizer = kind(parameters, lr=config.learning_rate, betas=betas, eps=config.epsilon, weight_decay=config.weight_decay)
    if paged:
        made.register_step_pre_hook(page)
    return made


def page(optimizer: Any, *_: object) -> None:
    """Put moments that a checkpoint has given as plain tensors into pages again."""
    for parameter, state in optimizer.state.items():
        for key in ("state1", "state2"):
            moment = state.get(key)
            if moment is not None and moment.numel() >= PAGED_FROM and not getattr(moment, "is_paged", False):
                state[key] = optimizer.get_state_buffer(parameter, dtype=moment.dtype)
                state[key].copy_(moment)
