"""Tensor parallelism (Shoeybi et al., 2019, arXiv:1909.08053, section 3), as a plan of torch's DTensor beside the decoder.

Every rank computes some heads of the attention and some columns of the feed-forward layer: q, k, v, gate and up are split by output, o and
down by input, so a block needs two sums over ranks forward and two backward. Embedding, norms, head and loss are computed in whole on
every rank, so their gradients are equal there and need no sum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from luyen.core.errors import ConfigError
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer

BY_OUTPUT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
BY_INPUT = ("self_attn.o_proj", "mlp.down_proj")


def split(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split the decoder's blocks in place over the ranks of a mesh with one axis.

    Raises ConfigError when the heads cannot be dealt evenly, or for another kind of model.
    """
    if not isinstance(model, Transformer):
        raise ConfigError("train.parallel.tensor", found=type(model).__name__, expected="a decoder", fix="Use train.parallel.shard.")
    check(model.config, mesh.size())
    plan = {name: ColwiseParallel() for name in BY_OUTPUT} | {name: RowwiseParallel() for name in BY_INPUT}
    for layer in model.model.layers:
        parallelize_module(layer, mesh, dict(plan))


@contextlib.contextmanager
def own_heads(model: nn.Module, ranks: int) -> Iterator[None]:
    """Within the block the model's config tells the heads that this rank has, as who makes a key-value cache wants to know."""
    if ranks == 1 or not isinstance(model, Transformer):
        yield
        return
    whole = model.config
    own = {"num_heads": whole.num_heads // ranks, "num_kv_heads": whole.num_kv_heads // ranks}
    model.config = whole.model_copy(update=own)
    try:
        yield
    finally:
        model.config = whole


def check(config: TransformerConfig, ranks: int) -> None:
    """Raise ConfigError unless heads and feed-forward columns can be dealt evenly to `ranks`."""
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        size = getattr(config, name)
        if size % ranks:
            fix = "Choose a divisor, or use train.parallel.shard."
            raise ConfigError(f"train.parallel.tensor {ranks}", found=f"{name} {size}", expected="a multiple of it", fix=fix)
