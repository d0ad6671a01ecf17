"""DoRA against its formula, against itself computed otherwise, and against PEFT."""

from pathlib import Path
from typing import Any

import adapter_toys as toys
import peft_toys
import pytest
import torch
from torch import Tensor, nn

from luyen.adapters.adapt import trained
from luyen.adapters.count import trained_weights
from luyen.adapters.dora import DoRALinear
from luyen.adapters.linear import adapted


class Quarters(nn.Module):
    """A compressed map for tests: the weight in eighths of an 8-bit number."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias
        self.codes = nn.Parameter((plain.weight * 8).round().to(torch.int8), requires_grad=False)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.codes.to(dtype or torch.float32) / 8

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.dense(hidden.dtype), self.bias)


def made(bias: bool = False, compressed: bool = False, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> DoRALinear:
    """A map whose adapter has left its start."""
    torch.manual_seed(0)
    base: nn.Module = nn.Linear(6, 5, bias=bias, dtype=dtype).requires_grad_(False)
    if compressed:
        assert isinstance(base, nn.Linear)
        base.weight.mul_(8)
        base = Quarters(base)
    module = DoRALinear(base, 3, 0.7, dropout)
    with torch.no_grad():
        module.lora_B.normal_()
        module.lora_magnitude_vector.mul_(torch.rand(5) + 0.5)
    return module


def by_formula(module: DoRALinear, hidden: Tensor) -> Tensor:
    """As written, with autograd: the lengths detached."""
    changed = module.dense(module.lora_A.dtype) + module.scale * module.lora_B @ module.lora_A
    weight = module.lora_magnitude_vector[:, None] * changed / changed.norm(dim=1, keepdim=True).detach()
    return hidden @ weight.T + (0.0 if module.bias is None else module.bias)


@pytest.mark.parametrize("values", [{}, {"lora": {"scaling": "root"}}, {"dropout": 0.3}], ids=["plain", "root", "dropout"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_a_fresh_adapter_changes_not_one_bit(values: dict[str, Any], half: bool) -> None:
    plain, fresh = toys.model(), toys.adapted_model(method="dora", **values)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(toys.logits(fresh), toys.logits(plain))
        assert torch.equal(toys.logits(fresh, (20, 10)), toys.logits(plain, (20, 10)))


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_a_fresh_adapter_on_a_map_with_bias_changes_not_one_bit(compressed: bool, half: bool) -> None:
    torch.manual_seed(0)
    base: nn.Module = nn.Linear(64, 48).requires_grad_(False)
    base = Quarters(base) if compressed and isinstance(base, nn.Linear) else base
    module, hidden = DoRALinear(base, 4, 1.0), torch.randn(100, 64)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(module(hidden), base(hidden))


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("way", ["scaled", "beside"])
def test_both_ways_are_the_formula_with_its_gradients(bias: bool, compressed: bool, way: str) -> None:
    module = made(bias, compressed, torch.float32 if compressed else torch.float64)
    hidden = torch.randn(2, 7, 6, dtype=module.lora_A.dtype, requires_grad=True)
    leaves = (hidden, module.lora_A, module.lora_B, module.lora_magnitude_vector)
    found = module(hidden) if way == "scaled" else module._scaled_beside(hidden, hidden)
    slope = torch.randn_like(found)
    torch.testing.assert_close(found, by_formula(module, hidden))
    ours, theirs = torch.autograd.grad(found, leaves, slope), torch.autograd.grad(by_formula(module, hidden), leaves, slope)
    torch.testing.assert_close(ours, theirs)
    weight, merged_bias = module.merged()
    torch.testing.assert_close(nn.functional.linear(hidden, weight, merged_bias), found)
    assert (merged_bias is not None) == bias


def test_what_of_the_map_itself_is_trained_gets_its_gradient() -> None:
    module = made(bias=True)
    module.base.requires_grad_(True)
    hidden = torch.randn(7, 6, dtype=torch.float64)
    slope = torch.randn(7, 5, dtype=torch.float64)
    leaves = tuple(module.parameters())
    ours = torch.autograd.grad(module(hidden), leaves, slope)
    torch.testing.assert_close(ours, torch.autograd.grad(by_formula(module, hidden), leaves, slope))
    module.base.weight.requires_grad_(False)
    (alone,) = torch.autograd.grad(module(hidden), module.bias, slope)
    torch.testing.assert_close(alone, slope.sum(0))


def test_rows_without_direction_or_length_have_finite_gradients() -> None:
    module = made()
    with torch.no_grad():
        module.base.weight[0], module.lora_B[0], module.lora_magnitude_vector[0] = 0.0, 0.0, 0.0  # a pruned row
        module.lora_magnitude_vector[1] = 0.0
    hidden = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    leaves = (hidden, module.lora_A, module.lora_B, module.lora_magnitude_vector)
    slope = torch.randn(7, 5, dtype=torch.float64)
    ours = torch.autograd.grad(module(hidden), leaves, slope)
    assert all(bool(item.isfinite().all()) for item in ours)
    kept = torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64)
    module.lora_B.data[0, 0] = 1e-30  # gives the row a direction that the formula can divide by
    theirs = torch.autograd.grad(by_formula(module, hidden), leaves, slope * kept)
    torch.testing.assert_close(ours[3][1:], theirs[3][1:])
    torch.testing.assert_close(ours[0], theirs[0])
    assert bool(ours[2][0].any()), "the pruned row can grow again"
    apart = torch.autograd.grad(module(hidden.detach()), leaves[1:], slope)
    torch.testing.assert_close(apart[2][1:], ours[3][1:])


def test_dropout_is_of_the_change_alone() -> None:
    module = made(dropout=0.5)
    hidden = torch.randn(9, 6, dtype=torch.float64)
    torch.manual_seed(4)
    found = module(hidden)
    torch.manual_seed(4)
    seen = nn.functional.dropout(hidden, 0.5)
    share = module.lora_magnitude_vector / module.changed().norm(dim=1)
    expected = (hidden @ module.dense().T + module.scale * seen @ module.lora_A.T @ module.lora_B.T) * share
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(module.eval()(hidden), by_formula(module, hidden))


def test_lengths_are_trained_beside_the_factors() -> None:
    fresh, low = toys.adapted_model(method="dora", rank=4), toys.adapted_model(rank=4)
    outputs = toys.SIZE.num_layers * (2 * 32 + 2 * 16 + 2 * 56 + 32)
    count = sum(group.count for group in trained(fresh))
    assert count == sum(group.count for group in trained(low)) + outputs
    assert count == trained_weights(toys.SIZE, toys.config(method="dora", rank=4)), "also without the model"
    for _, module in adapted(fresh):
        assert isinstance(module, DoRALinear)
        torch.testing.assert_close(module.lora_magnitude_vector, module.dense().norm(dim=1))


@pytest.mark.parametrize("init", ["default", "pissa", "orthogonal"])
def test_merged_weights_compute_what_the_adapter_does(init: str) -> None:
    ours, plain = toys.adapted_model(method="dora", rank=4, lora={"init": init}), toys.model()
    torch.testing.assert_close(toys.logits(ours), toys.logits(plain), rtol=1e-5, atol=1e-5)
    toys.shake(ours)
    assert not torch.allclose(toys.logits(ours), toys.logits(plain), atol=1e-2)
    for name, module in adapted(ours):
        plain.get_submodule(name).weight.data = module.merged()[0]
    torch.testing.assert_close(toys.logits(plain), toys.logits(ours), rtol=1e-5, atol=1e-5)


def test_backward_keeps_the_input_the_factors_and_the_result() -> None:
    module = DoRALinear(nn.Linear(64, 48, bias=False).requires_grad_(False), 4, 1.0)
    hidden = torch.randn(512, 64, requires_grad=True)
    output, kept = toys.kept_by(module, hidden)
    assert {tensor.data_ptr() for tensor in kept if tensor.ndim == 2} == {
        item.data_ptr() for item in (hidden, module.lora_A, module.lora_B, output)
    }
    output.sum().backward()
    assert module.base.weight.grad is None


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers for it
@pytest.mark.parametrize("root", [False, True], ids=["rank", "root"])
def test_logits_and_gradients_equal_those_of_peft(root: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours = toys.adapted_model(method="dora", rank=4, alpha=8, lora={"scaling": "root" if root else "rank"})
    options = peft.LoraConfig(r=4, lora_alpha=8, target_modules=peft_toys.MAPS, use_dora=True, use_rslora=root)
    theirs = peft_toys.in_peft(options, tmp_path)
    starts = peft_toys.named(theirs)
    for name, parameter in ours.named_parameters():
        if name.endswith("lora_magnitude_vector"):
            torch.testing.assert_close(parameter, starts[name])
    toys.shake(ours)
    peft_toys.assert_equal(ours, theirs)
