"""Tensor parallelism (Shoeybi et al., 2019, arXiv:1909.08053, section 3) with sequence parallelism (Korthikanti et al., 2022,
arXiv:2205.05198, section 4.2.2), beside the decoder. Weights are torch's DTensors; what ranks exchange is written out here.

Every rank computes some heads of the attention and some columns of the feed-forward layer: q, k, v, gate and up are split by output, o and
down by input. Between them, on the residual path and in the norms, each rank has a piece of the tokens: instead of a sum over ranks after
each half of a block, tokens are gathered before it and the sum is dealt after it, which moves as many bytes. Embedding and head are
split by the rows of their tables (vocabulary.py has the loss). Hidden states come out of the decoder in whole.

A piece is ceil(N / R) of all N tokens of the batch, whatever rows they stand in; the last ones may end in zeros, which stay zeros
through norms and products without bias and are cut off before queries, keys and values, which may have one, are made.

Shapes: N = B T tokens of B rows, R ranks, S tokens of a piece, D hidden size, V vocabulary, U rows of it on a rank.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional

from luyen.core.errors import ConfigError
from luyen.engine.parallel.mesh import check_dense
from luyen.engine.parallel.sequence import add_and_deal, add_gradients, gather, gather_equal, lengthen, piece_length
from luyen.engine.parallel.tensors import local
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Block, Context, RMSNorm, Transformer

BY_OUTPUT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
BY_INPUT = ("self_attn.o_proj", "mlp.down_proj")


def split(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split the decoder in place over the ranks of a mesh with one axis, which all hold the same weights.

    Raises ConfigError when heads, columns or vocabulary cannot be dealt, or for another kind of model.
    """
    if not isinstance(model, Transformer):
        raise ConfigError("train.parallel.tensor", found=type(model).__name__, expected="a decoder", fix="Use train.parallel.shard.")
    check(model.config, mesh.size())
    group = mesh.get_group()
    for layer in model.model.layers:
        for names, axis in ((BY_OUTPUT, 0), (BY_INPUT, 1)):
            for name in names:
                linear = layer.get_submodule(name)
                _deal(linear, mesh, axis)
                linear.forward = functools.partial(_product, linear)  # type: ignore[method-assign]
        assert isinstance(layer, Block)
        layer.self_attn.forward = functools.partial(_attention, layer.self_attn.forward, group)  # type: ignore[method-assign]
        layer.mlp.forward = functools.partial(_feed_forward, layer.mlp.forward, group)  # type: ignore[method-assign]
    table = model.model.embed_tokens
    _deal(table, mesh, 0)
    table.forward = functools.partial(_look_up, table, group)  # type: ignore[method-assign]
    if not model.config.tied:
        _deal(model.lm_head, mesh, 0)
    model.model.forward = functools.partial(_decoder, model.model.forward, group)  # type: ignore[method-assign]
    model.logits = functools.partial(_logits, model, group)  # type: ignore[method-assign]


def finished(piece_1SD: Tensor, tokens_BT: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Hidden states of all tokens, (B, T, D), from the piece that comes out of the final norm."""
    return gather_equal(piece_1SD[0], group)[: tokens_BT.numel()].view(*tokens_BT.shape, -1)


def summed(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that every rank has in whole and uses on its own tokens or heads alone: their gradients are added over the ranks."""
    return [module.weight for module in model.modules() if isinstance(module, RMSNorm) and module.weight is not None]


def _deal(module: nn.Module, mesh: DeviceMesh, axis: int) -> None:
    weight = module._parameters["weight"]
    if weight is None:  # it lies in another stage of a pipeline
        return
    dealt = distribute_tensor(weight.detach(), mesh, [Shard(axis)], src_data_rank=None)
    module.weight = nn.Parameter(dealt, weight.requires_grad)
    bias = module._parameters.get("bias")
    if bias is not None:  # only maps that are split by output have one
        module.bias = nn.Parameter(distribute_tensor(bias.detach(), mesh, [Shard(0)], src_data_rank=None), bias.requires_grad)


def _product(linear: nn.Module, hidden: Tensor) -> Tensor:
    """This rank's part of a product: some outputs, or of every output the sum over some inputs."""
    weight, bias = linear.weight, linear.bias
    assert isinstance(weight, Tensor)
    return functional.linear(hidden, local(weight), local(bias) if isinstance(bias, Tensor) else None)


def _look_up(table: nn.Embedding, group: dist.ProcessGroup, tokens_BT: Tensor) -> Tensor:
    """This rank's piece of the embedded tokens, (1, S, D): each rank finds those in its rows of the table, and the sum is dealt."""
    weight_UD = local(table.weight)
    place_N = tokens_BT.flatten() - group.rank() * piece_length(table.num_embeddings, group.size())
    others_N = (place_N < 0) | (place_N >= weight_UD.shape[0])
    found_ND = functional.embedding(place_N.masked_fill(others_N, 0), weight_UD).masked_fill(others_N[:, None], 0)
    return add_and_deal(_padded(found_ND, group), group)[None]


def _attention(forward: Callable[..., Tensor], group: dist.ProcessGroup, piece_1SD: Tensor, context: Context) -> Tensor:
    """Attention of this rank's heads over all tokens in their rows; the sum over heads is dealt by tokens again."""
    whole_ND = gather(piece_1SD[0], group)
    rows, length = context.cosine.shape[:2]
    if context.cache is None and context.layout is None:  # plain rows share their positions; zeros behind them may make one more row
        rows = len(whole_ND) // length
    part_BTD = forward(whole_ND[: rows * length].view(rows, length, -1), context)
    return add_and_deal(lengthen(part_BTD.flatten(0, 1), len(whole_ND)), group)[None]


def _feed_forward(forward: Callable[..., Tensor], group: dist.ProcessGroup, piece_1SD: Tensor) -> Tensor:
    """This rank's columns for all tokens, which need not stand in rows; the sum over columns is dealt by tokens again."""
    return add_and_deal(forward(gather(piece_1SD[0], group)), group)[None]


def _decoder(forward: Callable[..., Tensor], group: dist.ProcessGroup, tokens_BT: Tensor, *arguments: Any) -> Tensor:
    """Hidden states in whole, (B, T, D), from those that every rank has of its piece."""
    return finished(forward(tokens_BT, *arguments), tokens_BT, group)


def _logits(model: Transformer, group: dist.ProcessGroup, hidden: Tensor) -> Tensor:
    """What `Transformer.logits` gives, (..., V), on every rank."""
    vocabulary = model.config.vocab_size
    part_UN = functional.linear(add_gradients(hidden, group).flatten(0, -2), local(model.head_weight)).T
    part_UN = lengthen(part_UN, piece_length(vocabulary, group.size()))
    return gather_equal(part_UN, group)[:vocabulary].T.reshape(*hidden.shape[:-1], vocabulary)


def _padded(states_ND: Tensor, group: dist.ProcessGroup) -> Tensor:
    return lengthen(states_ND, piece_length(len(states_ND), group.size()) * group.size())


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
    """Raise ConfigError unless heads and feed-forward columns can be dealt evenly to `ranks`, and each gets some of the vocabulary.

    Experts are not dealt, and a norm over all heads would need those of other ranks.
    """
    check_dense("train.parallel.tensor", config)
    if config.variant.qk_norm == "whole":
        fix = "Use train.parallel.shard."
        raise ConfigError("train.parallel.tensor", found="norms over all heads", expected="none, or one of each head", fix=fix)
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        size = getattr(config, name)
        if size % ranks:
            fix = "Choose a divisor, or use train.parallel.shard."
            raise ConfigError(f"train.parallel.tensor {ranks}", found=f"{name} {size}", expected="a multiple of it", fix=fix)
    if piece_length(config.vocab_size, ranks) * (ranks - 1) >= config.vocab_size:
        found, fix = f"vocab_size {config.vocab_size}", "Choose a smaller number, or use train.parallel.shard."
        raise ConfigError(f"train.parallel.tensor {ranks}", found=found, expected="some of it for every process", fix=fix)
