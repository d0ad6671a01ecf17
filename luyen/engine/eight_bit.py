"""AdamW with its two moments in 8 bits, by bitsandbytes (the extra `qlora`), imported only when it is asked for.

Dettmers et al., 2022, arXiv:2110.02861: blocks of numbers share one scale, so a moment takes one byte for each weight and 4 bytes
for each block of 256. Matrices of fewer than 4,096 numbers keep 32 bits, as do embeddings, norms and biases, which the caller leaves to
torch's AdamW (the paper's section 2.3: embeddings are what 8 bits make unstable).
"""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from luyen.core import low_bits
from luyen.engine.config import OptimizerConfig


def adamw8bit(parameters: list[Tensor], config: OptimizerConfig) -> Optimizer:
    """The optimizer of these parameters, all with weight decay. Raises ConfigError when bitsandbytes is not installed."""
    betas = (config.beta1, config.beta2)
    library = low_bits.library("optimizer.name", "adamw8bit", "take adamw")
    made: Optimizer = library.optim.AdamW8bit(
        parameters, lr=config.learning_rate, betas=betas, eps=config.epsilon, weight_decay=config.weight_decay
    )
    return made
