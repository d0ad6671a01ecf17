"""Compacter: its maps against torch's Kronecker product, what is shared, and that a fresh one changes nothing."""

import copy
from typing import Any

import adapter_toys as toys
import pytest
import torch
from torch import nn

from luyen.adapters.adapt import merge_in_place, trained
from luyen.adapters.compacter import CompacterLinear, kronecker_sum
from luyen.adapters.count import trained_weights
from luyen.adapters.linear import adapted
from luyen.core.errors import ConfigError, ModelError


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_a_fresh_adapter_changes_not_one_bit(placement: str, half: bool) -> None:
    plain, made = toys.model(), toys.adapted_model(method="compacter", bottleneck={"placement": placement})
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(toys.logits(made), toys.logits(plain))


def test_a_map_is_the_sum_of_kronecker_products() -> None:
    torch.manual_seed(0)
    shared, left, right = torch.randn(3, 3, 3).double(), torch.randn(3, 4).double(), torch.randn(3, 2).double()
    expected = sum(torch.kron(shared[i], torch.outer(left[i], right[i])) for i in range(3))
    torch.testing.assert_close(kronecker_sum(shared, left, right), expected)


def test_the_formula_with_its_gradients() -> None:
    torch.manual_seed(0)
    first = CompacterLinear(nn.Linear(6, 8).double().requires_grad_(False), 4, "relu", 0.0, 2)
    second = CompacterLinear(nn.Linear(8, 8).double().requires_grad_(False), 4, "relu", 0.0, first)
    first.up_right.data.normal_(), second.up_right.data.normal_()
    hidden = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)

    def whole_map(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        products = [torch.kron(first.shared_factors[i], torch.outer(left[i], right[i])) for i in range(2)]
        return products[0] + products[1]

    def by_formula(module: CompacterLinear, seen: torch.Tensor) -> torch.Tensor:
        whole = module.base(seen)
        narrow = (whole @ whole_map(module.down_left, module.down_right) + module.down_bias).relu()
        return whole + narrow @ whole_map(module.up_left, module.up_right) + module.up_bias

    expected = by_formula(second, by_formula(first, hidden))
    found = second(first(hidden))
    torch.testing.assert_close(found, expected)
    leaves = [hidden, *(parameter for module in (first, second) for parameter in module.parameters() if parameter.requires_grad)]
    assert len(leaves) == 1 + 7 + 6
    slope = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad(found, leaves, slope), torch.autograd.grad(expected, leaves, slope))


def test_the_shared_factors_stand_once_and_belong_to_all() -> None:
    values: dict[str, Any] = {"method": "compacter", "bottleneck": {"placement": "houlsby", "size": 8, "factors": 4}}
    made = toys.adapted_model(**values)
    names = [name for name in made.state_dict() if "shared" in name]
    assert names == ["model.layers.0.self_attn.o_proj.shared_factors"]
    modules = [module for _, module in adapted(made) if isinstance(module, CompacterLinear)]
    assert len(modules) == 4 and len({id(module.shared) for module in modules}) == 1
    assert (
        sum(group.count for group in trained(made))
        == trained_weights(toys.SIZE, toys.config(**values))
        == 4**3 + 4 * (2 * (32 + 8) + 32 + 8)
    )
    twin = copy.deepcopy(made)
    own = [module for _, module in adapted(twin) if isinstance(module, CompacterLinear)]
    assert all(module.shared is own[0].shared_factors for module in own) and own[0].shared is not modules[0].shared


def test_it_starts_with_the_spread_of_a_linear_map() -> None:
    torch.manual_seed(0)
    module = CompacterLinear(nn.Linear(8, 4096, bias=False).requires_grad_(False), 64, "relu", 0.0, 4)
    down, up = module.maps()
    assert down.shape == (64, 4096) and not up.any()
    assert 0.25 < float(down.detach().std()) * (3 * 4096) ** 0.5 < 4


def test_everything_of_it_learns_but_not_the_base() -> None:
    made = toys.adapted_model(method="compacter")
    toys.shake(made)
    toys.logits(made).square().mean().backward()
    for parameter in made.parameters():
        assert bool(parameter.grad is not None and parameter.grad.any()) == parameter.requires_grad


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"size": 30},
            "adapter.bottleneck.factors; found 4, which does not divide 30, the width of bottleneck.size; expected a divisor of 2",
        ),
        (
            {"size": 48, "factors": 12},
            "found 12, which does not divide 32, the width of model.layers.0.mlp.down_proj; expected a divisor of 16",
        ),
    ],
)
def test_factors_that_do_not_divide_are_told(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        toys.adapted_model(method="compacter", bottleneck=values)


def test_it_cannot_be_merged_and_says_so() -> None:
    with pytest.raises(ModelError, match="CompacterLinear cannot be merged"):
        merge_in_place(toys.adapted_model(method="compacter"))
