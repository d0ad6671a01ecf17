"""linear_cross_entropy against torch's cross entropy, numbers worked out by hand, and what it must never do."""

import math

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from luyen.objectives.language_model import linear_cross_entropy


def case(dtype=torch.float32, positions=37, hidden=12, vocabulary=29, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(positions, hidden, generator=generator, dtype=dtype).requires_grad_()
    weight_VD = torch.randn(vocabulary, hidden, generator=generator, dtype=dtype).requires_grad_()
    targets_N = torch.randint(0, vocabulary, (positions,), generator=generator)
    targets_N[::4] = -100
    return hidden_ND, weight_VD, targets_N


def gradients(total, *tensors):
    return torch.autograd.grad(total / 3.0, tensors)


@pytest.mark.parametrize("chunk_size", [None, 1, 5, 28, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_sum_and_gradients_are_those_of_torch(dtype, tolerance, chunk_size):
    hidden_ND, weight_VD, targets_N = case(dtype)
    plain = functional.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="sum")
    ours = linear_cross_entropy(hidden_ND, weight_VD, targets_N, chunk_size)
    assert ours.dtype == dtype
    assert ours.item() == pytest.approx(plain.item(), rel=tolerance)
    for mine, theirs in zip(gradients(ours, hidden_ND, weight_VD), gradients(plain, hidden_ND, weight_VD), strict=True):
        assert (mine - theirs).norm() <= tolerance * theirs.norm()


def test_a_number_by_hand():
    """Logits (0, ln 3): p = (1/4, 3/4). The loss of token 1 is ln(4/3), its slopes over the logits are (1/4, -1/4)."""
    hidden_ND = torch.tensor([[1.0]], requires_grad=True)
    weight_VD = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    total = linear_cross_entropy(hidden_ND, weight_VD, torch.tensor([1]))
    total.backward()
    assert total.item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    assert weight_VD.grad.flatten().tolist() == pytest.approx([0.25, -0.25], rel=1e-6)
    assert hidden_ND.grad.item() == pytest.approx(-0.25 * math.log(3), rel=1e-6)


def test_positions_without_target_are_never_looked_at():
    hidden_ND, weight_VD, targets_N = case()
    poisoned_ND = hidden_ND.detach().clone()
    poisoned_ND[targets_N == -100] = float("nan")
    poisoned_ND.requires_grad_()
    total = linear_cross_entropy(poisoned_ND, weight_VD, targets_N)
    total.backward()
    assert total.isfinite() and weight_VD.grad.isfinite().all()
    assert (poisoned_ND.grad[targets_N == -100] == 0).all()


def test_no_target_at_all_is_zero_with_zero_gradient():
    hidden_ND, weight_VD, _ = case()
    total = linear_cross_entropy(hidden_ND, weight_VD, torch.full((37,), -100))
    total.backward()
    assert total.item() == 0 and not weight_VD.grad.any() and not hidden_ND.grad.any()


def test_frozen_head_and_no_gradient_mode():
    hidden_ND, weight_VD, targets_N = case()
    expected = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
    (wanted,) = gradients(expected, hidden_ND)
    frozen = linear_cross_entropy(hidden_ND, weight_VD.detach(), targets_N)
    assert torch.equal(gradients(frozen, hidden_ND)[0], wanted)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden_ND, weight_VD, targets_N), expected)


@pytest.mark.parametrize("every", [False, True])
def test_who_knows_the_positions_gets_the_same_bits_and_no_look_for_them(every):
    hidden_ND, weight_VD, targets_N = case()
    targets_N = targets_N.clamp(min=0) if every else targets_N
    positions_K = torch.arange(len(targets_N))[targets_N != -100]
    found = []
    for known in (None, positions_K):
        each_N = torch.full(targets_N.shape, -7.0)
        with Calls() as calls:
            total = linear_cross_entropy(hidden_ND, weight_VD, targets_N, 10, each_N, known)
        found.append([total, each_N, *gradients(total, hidden_ND, weight_VD)])
        # The one look at a number that stays is a CPU's, once a chunk: whether any probability is too small for its logarithm.
        assert calls.names.count("aten::_local_scalar_dense") == -(-len(positions_K) // 10)
        assert calls.names.count("aten::nonzero") == (known is None)
        assert calls.names.count("aten::index_select") == 2 * (not every)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class Calls(TorchDispatchMode):
    """Names of all operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name().partition(".")[0])
        return function(*args, **(kwargs or {}))


class Largest(TorchDispatchMode):
    """Records the most elements that any operation puts out."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_all_logits_never_exist():
    hidden_ND, weight_VD, targets_N = case(positions=400, hidden=4, vocabulary=100)
    with Largest() as largest:
        linear_cross_entropy(hidden_ND, weight_VD, targets_N, chunk_size=10).backward()
    assert largest.elements == 400 * 4  # the gradient of the hidden states, not 300 * 100 logits


def test_autocast_makes_half_precision_logits_and_full_precision_gradients():
    hidden_ND, weight_VD, targets_N = case()
    exact = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = linear_cross_entropy(hidden_ND, weight_VD, targets_N, 7)
    assert rough.dtype == torch.float32 and rough.item() != exact.item()
    assert rough.item() == pytest.approx(exact.item(), rel=1e-2)
    for mine, theirs in zip(gradients(rough, hidden_ND, weight_VD), gradients(exact, hidden_ND, weight_VD), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 2e-2 * theirs.norm()


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("every", [False, True])
def test_each_position_has_its_own_loss(chunk_size, every):
    hidden_ND, weight_VD, targets_N = case(torch.float64)
    targets_N = targets_N.clamp(min=0) if every else targets_N
    each_N = torch.full(targets_N.shape, -7.0, dtype=torch.float64)
    total = linear_cross_entropy(hidden_ND, weight_VD, targets_N, chunk_size, each_N)
    plain_N = functional.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="none")
    kept_N = targets_N != -100
    assert torch.allclose(each_N[kept_N], plain_N[kept_N], rtol=1e-12, atol=0) and (each_N[~kept_N] == -7).all()
    without = linear_cross_entropy(hidden_ND, weight_VD, targets_N, chunk_size)
    assert torch.equal(total, without)
    for one, other in zip(gradients(total, hidden_ND, weight_VD), gradients(without, hidden_ND, weight_VD), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_targets_too_improbable_for_a_number_of_fp32_have_their_exact_loss(chunk_size):
    hidden_ND, weight_VD, targets_N = case()
    hidden_ND = (60 * hidden_ND).detach().requires_grad_()
    loss_N = torch.nn.functional.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="none")
    assert (loss_N > 87).any() and (loss_N < 1).any(), "the case has both kinds"
    each_N = torch.zeros(len(targets_N))
    total = linear_cross_entropy(hidden_ND, weight_VD, targets_N, chunk_size, each_N)
    torch.testing.assert_close(each_N, loss_N.detach(), rtol=1e-6, atol=1e-5)
    for mine, theirs in zip(gradients(total, hidden_ND, weight_VD), gradients(loss_N.sum(), hidden_ND, weight_VD), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)
