"""Activation checkpointing as a transform: compute a layer's inside again in the backward pass instead of keeping it.

Chen et al., 2016, arXiv:1604.06174; which part is worth keeping: Korthikanti et al., 2022, arXiv:2205.05198, section 5. The layers are the
entries of the module's lists (`nn.ModuleList`). `offload` keeps everything and brings it to the host's memory until then (Rhu et al., 2016,
arXiv:1602.08124). Of a layer that is computed again, `full` keeps what enters it; `selective` keeps also what its projections and
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
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from luyen.core.errors import ConfigError
from luyen.engine.layers import wrapped
from luyen.models import varlen

Activations = Literal["none", "selective", "full", "offload"]

KEPT = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)
"""Operators whose outputs `selective` keeps, with the one of models/varlen.py where there is one. Products in batches are not among them:
only attention in blocks makes some."""


def check_offload(mode: Activations, device: torch.device) -> None:
    """Raise ConfigError where activations lie in the host's memory already."""
    if mode == "offload" and device.type == "cpu":
        fix = "Set train.activations to one of these."
        raise ConfigError("train.activations", found="offload with device cpu", expected="none, selective or full", fix=fix)


@contextlib.contextmanager
def recomputed(module: nn.Module, mode: Activations) -> Iterator[None]:
    """Within the block every layer of `module` is computed again in the backward pass, in whole or but for its products.

    Or what it keeps is brought to the host. Raises ConfigError when the module has no list of layers.
    """
    if mode == "none":
        yield
        return
    if mode == "offload":
        with wrapped(module, lambda forward: functools.partial(_offload, forward), "train.activations", found=mode, expected="none"):
            yield
        return
    contexts = {}
    if mode == "selective":
        contexts["context_fn"] = functools.partial(create_selective_checkpoint_contexts, [*KEPT, *varlen.operators()])

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(_recompute, forward, contexts)

    with wrapped(module, wrap, "train.activations", found=mode, expected="none"):
        yield


def _recompute(forward: Callable[..., Any], contexts: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **keywords)
    return checkpoint(forward, *arguments, use_reentrant=False, **contexts, **keywords)


def _offload(forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **keywords)
    copies = HostCopies()
    with saved_tensors_hooks(copies.pack, HostCopies.unpack):
        output = forward(*arguments, **keywords)
    copies.seen.clear()
    return output


class HostCopies:
    """What one pass of a layer keeps, in the host's memory, each tensor once however many operators keep it.

    Weights are there anyway and stay where they are. Copies from and to a GPU are in the order of its other work, so nobody waits for
    them; torch.autograd.graph.save_on_cpu would bring weights too, and a tensor once for every operator.
    """

    def __init__(self) -> None:
        self.seen: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        """Each tensor, held so that its place is not another's while the layer runs, and its copy."""

    def pack(self, tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        """The tensor itself if it is a weight or of a special kind, else its device and its copy."""
        if isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter) or type(tensor) is not Tensor:
            return tensor
        key = (tensor.data_ptr(), tensor._version, tensor.dtype, tensor.shape, tensor.stride())
        if key not in self.seen:
            source = tensor.detach()
            copy = torch.empty_like(source, device="cpu", pin_memory=source.device.type == "cuda")
            self.seen[key] = (source, copy.copy_(source, non_blocking=True))
        return tensor.device, self.seen[key][1]

    @staticmethod
    def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        """The tensor on its device again."""
        return packed if isinstance(packed, Tensor) else packed[1].to(packed[0], non_blocking=True)
