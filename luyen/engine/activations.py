"""Activation checkpointing as a transform: compute a layer's inside again in the backward pass instead of keeping it.

Chen et al., 2016, arXiv:1604.06174; which part is worth keeping: Korthikanti et al., 2022, arXiv:2205.05198, section 5. The layers are the
entries of the module's lists (`nn.ModuleList`). Of each, `full` keeps what enters it; `selective` keeps also what its projections and
fused attention gave, so norms, rotations, the gated product and residual sums are computed again and hardly any product is. Attention in
blocks (models/block_attention.py) is computed again: its probabilities are the largest thing that a layer keeps, and they are written over
in place, so they could not be kept as a product's output. Parameter names do not change.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from luyen.engine.layers import wrapped

Activations = Literal["none", "selective", "full"]

KEPT = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)
"""Operators whose outputs `selective` keeps. Products in batches are not among them: only attention in blocks makes some."""


@contextlib.contextmanager
def recomputed(module: nn.Module, mode: Activations) -> Iterator[None]:
    """Within the block every layer of `module` is computed again in the backward pass, in whole or but for its products.

    Raises ConfigError when the module has no list of layers.
    """
    if mode == "none":
        yield
        return
    contexts = {"context_fn": functools.partial(create_selective_checkpoint_contexts, list(KEPT))} if mode == "selective" else {}

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(_recompute, forward, contexts)

    with wrapped(module, wrap, "train.activations", found=mode, expected="none"):
        yield


def _recompute(forward: Callable[..., Any], contexts: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **keywords)
    return checkpoint(forward, *arguments, use_reentrant=False, **contexts, **keywords)
