"""The cross-entropy of the next token where several ranks share it; what objectives/language_model.py says of one, in parts.

Two ways, one inside the other. Loss parallelism (Shoeybi et al., 2019, arXiv:1909.08053, section 3): each rank of a tensor group has
some rows of the head, so some columns of the logits. The largest logit of a position and the sum of its exponentials are those of
all ranks, two numbers a position; no rank ever holds a whole row of logits:

    m = max over ranks of max_v z_v                loss = log s - (z_y - m)
    s = sum over ranks of sum_v exp(z_v - m)       dloss / dz_v = exp(z_v - m) / s - [v = y]

Ranks of a context group have the same hidden states, so the positions that have a target are dealt among them evenly.

Hidden states come in whole and their gradient goes out in whole, equal on every rank, so that whatever else an algorithm makes of them
needs no thought. The sum that is returned is that of all positions on every rank as well.

Shapes: N positions, K positions that have a target, D hidden size, V vocabulary, U rows of it on this rank, C positions of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from luyen.engine.parallel.sequence import add, add_gradients, added, piece_length
from luyen.objectives.language_model import CHUNK_LOGITS, at_targets, target_positions, whole_cross_entropy


class SharedLoss:
    """Takes the place of `linear_cross_entropy`, with its arguments and its result, on the ranks that read the same rows."""

    def __init__(self, tensor: dist.ProcessGroup | None, context: dist.ProcessGroup | None) -> None:
        """The groups over which the vocabulary and the positions are dealt; None: they are not."""
        self.tensor, self.context = tensor, context

    def __call__(
        self,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        chunk_size: int | None = None,
        each_N: Tensor | None = None,
        positions_K: Tensor | None = None,
    ) -> Tensor:
        """As `linear_cross_entropy`; a head that is not split (another model's) is computed in whole. All ranks of the groups call this."""
        if self.context is None or not torch.is_grad_enabled():
            return at_targets(self._of, hidden_ND, weight_VD, targets_N, chunk_size, each_N, positions_K)
        if positions_K is None:
            positions_K = target_positions(targets_N)
        own_K = positions_K[dealt(len(positions_K), self.context)]
        own_each_K = None if each_N is None else each_N.new_zeros(own_K.shape)
        hidden_KD = add_gradients(hidden_ND, self.context).index_select(0, own_K)
        total = self._of(hidden_KD, weight_VD, targets_N[own_K], chunk_size, own_each_K)
        if each_N is not None and own_each_K is not None:
            each_N[positions_K] = added(torch.zeros_like(each_N).index_copy_(0, own_K, own_each_K), self.context)[positions_K]
        return add(total, self.context)

    def _of(self, hidden_KD: Tensor, weight_VD: Tensor, targets_K: Tensor, chunk_size: int | None, each_K: Tensor | None) -> Tensor:
        """The loss of these positions, which all have a target."""
        if self.tensor is None or not isinstance(weight_VD, DTensor):
            return whole_cross_entropy(hidden_KD, weight_VD, targets_K, chunk_size, each_K)
        return vocabulary_cross_entropy(hidden_KD, weight_VD, targets_K, self.tensor, chunk_size, each_K)


def dealt(count: int, group: dist.ProcessGroup) -> slice:
    """This rank's share of so many items, in their order, as even as can be."""
    ranks, rank = group.size(), group.rank()
    return slice(count * rank // ranks, count * (rank + 1) // ranks)


def vocabulary_cross_entropy(
    hidden_KD: Tensor, weight_VD: DTensor, targets_K: Tensor, group: dist.ProcessGroup, chunk_size: int | None, each_K: Tensor | None
) -> Tensor:
    """`linear_cross_entropy` of a head whose rows are split over `group` as torch's Shard(0) does; every position has a target.

    The hidden states' gradient is whole on every rank, the head's is of this rank's rows. The types are those of `linear_cross_entropy`.
    """
    weight_UD, rows = weight_VD.to_local(), piece_length(weight_VD.shape[0], group.size())
    device = hidden_KD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_KD, weight_UD = hidden_KD.to(dtype), weight_UD.to(dtype)
    size = chunk_size or max(64, CHUNK_LOGITS // rows)  # equal on all ranks, which talk once a chunk
    with torch.autocast(device, enabled=False):
        total: Tensor = _VocabularyCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_KD, weight_UD, targets_K - rows * group.rank(), size, torch.is_grad_enabled(), each_K, group
        )
    return total


class _VocabularyCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one pass over the chunks; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_UD: Tensor, targets_N: Tensor, chunk_size: int, gradients: bool,
        each_N: Tensor | None, group: dist.ProcessGroup,
    ) -> Tensor:  # fmt: skip
        """The summed loss. `targets_N` counts from this rank's first row; numbers outside of its rows are those of others."""
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden_ND.device)
        wants_hidden, wants_weight = (gradients and needed for needed in ctx.needs_input_grad[:2])
        hidden_grad_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        weight_grad_UD = torch.zeros_like(weight_UD, dtype=exact) if wants_weight else None
        for start in range(0, hidden_ND.shape[0], chunk_size):
            rows = slice(start, start + chunk_size)
            hidden_CD, targets_C1 = hidden_ND[rows], targets_N[rows, None]
            own_C1 = (targets_C1 >= 0) & (targets_C1 < weight_UD.shape[0])
            targets_C1 = targets_C1.where(own_C1, 0)
            scores_CU = (hidden_CD @ weight_UD.T).to(exact)
            top_C1 = scores_CU.amax(1, keepdim=True)
            dist.all_reduce(top_C1, op=dist.ReduceOp.MAX, group=group)
            scores_CU -= top_C1
            found_C1 = scores_CU.gather(1, targets_C1).where(own_C1, 0.0)
            slope_CU = scores_CU.exp_()
            sums_C2 = torch.cat([slope_CU.sum(1, keepdim=True), found_C1], 1)
            dist.all_reduce(sums_C2, group=group)
            each_C = sums_C2[:, 0].log() - sums_C2[:, 1]
            total += each_C.sum()
            if each_N is not None:
                each_N[rows] = each_C
            if not (wants_hidden or wants_weight):
                continue
            slope_CU /= sums_C2[:, :1]
            slope_CU.scatter_add_(1, targets_C1, -own_C1.to(exact))
            slope_CU = slope_CU.to(weight_UD.dtype)
            if hidden_grad_ND is not None:
                torch.mm(slope_CU, weight_UD, out=hidden_grad_ND[rows])
            if weight_grad_UD is not None:
                weight_grad_UD += slope_CU.T @ hidden_CD
        if hidden_grad_ND is not None:
            dist.all_reduce(hidden_grad_ND, group=group)
        ctx.save_for_backward(hidden_grad_ND, weight_grad_UD)
        ctx.weight_dtype = weight_UD.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None]:
        hidden_grad_ND, weight_grad_UD = ctx.saved_tensors
        hidden = None if hidden_grad_ND is None else (hidden_grad_ND.to(slope.dtype) * slope).to(hidden_grad_ND.dtype)
        weight = None if weight_grad_UD is None else (weight_grad_UD * slope).to(ctx.weight_dtype)
        return hidden, weight, None, None, None, None, None
