"""(IA)^3 against its formula, its merged form and PEFT."""

from pathlib import Path
from typing import Any

import adapter_toys as toys
import peft_toys
import pytest
import torch
from torch import nn

from luyen.adapters.adapt import trained
from luyen.adapters.count import trained_weights
from luyen.adapters.ia3 import IA3Linear
from luyen.adapters.linear import adapted
from luyen.core.errors import ConfigError


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_a_fresh_adapter_changes_not_one_bit(half: bool) -> None:
    plain, made = toys.model(), toys.adapted_model(method="ia3")
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(toys.logits(made), toys.logits(plain))
        assert toys.logits(made).dtype == toys.logits(plain).dtype


def test_all_linear_means_keys_values_and_the_way_out_of_feed_forward() -> None:
    made = toys.adapted_model(method="ia3")
    found = {name.removeprefix("model.layers."): module.inputs for name, module in adapted(made) if isinstance(module, IA3Linear)}
    assert found == {
        f"{layer}.{own}": inputs
        for layer in (0, 1)
        for own, inputs in (("self_attn.k_proj", False), ("self_attn.v_proj", False), ("mlp.down_proj", True))
    }
    assert sum(group.count for group in trained(made)) == trained_weights(toys.SIZE, toys.config(method="ia3")) == 2 * (16 + 16 + 56)


def test_named_targets_are_those_alone() -> None:
    made = toys.adapted_model(method="ia3", targets=["o_proj", "layers.1.mlp.down_proj"])
    found = {name.removeprefix("model.layers."): module.inputs for name, module in adapted(made) if isinstance(module, IA3Linear)}
    assert found == {"0.self_attn.o_proj": False, "1.self_attn.o_proj": False, "1.mlp.down_proj": True}
    with pytest.raises(ConfigError, match="'k_prj', which matches nothing.*Did you mean 'k_proj'"):
        toys.adapted_model(method="ia3", targets=["k_prj"])


@pytest.mark.parametrize("inputs", [False, True], ids=["outputs", "inputs"])
def test_the_formula_with_its_gradients_and_merged(inputs: bool) -> None:
    torch.manual_seed(0)
    module = IA3Linear(nn.Linear(6, 5).double().requires_grad_(False), inputs)
    module.ia3_l.data.normal_()
    hidden = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)

    def by_formula() -> torch.Tensor:
        bias = module.bias
        assert bias is not None
        if inputs:
            return (hidden * module.ia3_l) @ module.dense().T + bias
        return (hidden @ module.dense().T + bias) * module.ia3_l

    slope = torch.randn(9, 5, dtype=torch.float64)
    ours = torch.autograd.grad(module(hidden), (hidden, module.ia3_l), slope)
    torch.testing.assert_close(ours, torch.autograd.grad(by_formula(), (hidden, module.ia3_l), slope))
    torch.testing.assert_close(module(hidden), by_formula())
    weight, bias = module.merged()
    torch.testing.assert_close(nn.functional.linear(hidden, weight, bias), module(hidden))


def test_small_changes_of_a_factor_are_felt_in_half_precision() -> None:
    module = IA3Linear(nn.Linear(64, 48, bias=False).requires_grad_(False), False)
    module.ia3_l.data.add_(3 * 2.0**-10)
    assert bool((module.ia3_l.bfloat16() == 1).all())
    hidden = torch.randn(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(module(hidden), module.base(hidden))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers for it
@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "up_proj", "down_proj"]], ids=["default", "named"])
def test_logits_and_gradients_equal_those_of_peft(targets: list[str], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours = toys.adapted_model(method="ia3", targets=targets)
    toys.shake(ours)
    options: dict[str, Any] = {} if targets == ["all-linear"] else {"target_modules": targets, "feedforward_modules": ["down_proj"]}
    peft_toys.assert_equal(ours, peft_toys.in_peft(peft.IA3Config(**options), tmp_path))
