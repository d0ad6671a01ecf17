"""Bottleneck adapters: where they stand, their formula, and that a fresh one changes nothing."""

from pathlib import Path
from typing import Any, cast

import adapter_toys as toys
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from luyen.adapters import files
from luyen.adapters.adapt import adapt, merge_in_place, trained
from luyen.adapters.bottleneck import Bottleneck, BottleneckLinear
from luyen.adapters.count import trained_weights
from luyen.adapters.linear import adapted
from luyen.core.errors import ConfigError, ModelError


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_a_fresh_adapter_changes_not_one_bit(placement: str, half: bool) -> None:
    plain, made = toys.model(), toys.adapted_model(method="bottleneck", dropout=0.3, bottleneck={"placement": placement})
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(toys.logits(made), toys.logits(plain))
        assert toys.logits(made).dtype == toys.logits(plain).dtype


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"bottleneck": {"placement": "houlsby"}}, ["self_attn.o_proj", "mlp.down_proj"]),
        ({"bottleneck": {"placement": "pfeiffer"}}, ["mlp.down_proj"]),
        ({"targets": ["v_proj", "up_proj"]}, ["self_attn.v_proj", "mlp.up_proj"]),
    ],
    ids=["houlsby", "pfeiffer", "named"],
)
def test_where_it_stands(values: dict[str, Any], expected: list[str]) -> None:
    made = toys.adapted_model(method="bottleneck", **values)
    assert [name.removeprefix("model.layers.") for name, _ in adapted(made)] == [f"{layer}.{own}" for layer in (0, 1) for own in expected]
    widths = {"self_attn.v_proj": 16, "mlp.up_proj": 56}
    count = 2 * sum(2 * 32 * widths.get(own, 32) + 32 + widths.get(own, 32) for own in expected)
    assert sum(group.count for group in trained(made)) == trained_weights(toys.SIZE, toys.config(method="bottleneck", **values)) == count


ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_formula_with_its_gradients(activation: str) -> None:
    torch.manual_seed(0)
    module = BottleneckLinear(nn.Linear(6, 5).double().requires_grad_(False), 3, activation)
    for parameter in module.parameters():
        parameter.data.normal_()
    hidden = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)

    def by_formula() -> Tensor:
        whole = hidden @ module.base.weight.T + module.base.bias
        return whole + ACTIVATIONS[activation](whole @ module.down_weight.T + module.down_bias) @ module.up_weight.T + module.up_bias

    torch.testing.assert_close(module(hidden), by_formula())
    leaves = (hidden, *(parameter for parameter in module.parameters() if parameter.requires_grad))
    slope = torch.randn(9, 5, dtype=torch.float64)
    assert len(leaves) == 5
    torch.testing.assert_close(torch.autograd.grad(module(hidden), leaves, slope), torch.autograd.grad(by_formula(), leaves, slope))


def test_dropout_is_of_what_the_narrow_network_sees() -> None:
    torch.manual_seed(0)
    module = BottleneckLinear(nn.Linear(6, 5).double().requires_grad_(False), 3, "relu", 0.5)
    module.up_weight.data.normal_()
    hidden = torch.randn(9, 6, dtype=torch.float64)
    whole = module.base(hidden)
    torch.manual_seed(4)
    found = module(hidden)
    torch.manual_seed(4)
    seen = nn.functional.dropout(whole, 0.5)
    torch.testing.assert_close(found, whole + (seen @ module.down_weight.T).relu() @ module.up_weight.T)
    torch.testing.assert_close(module.eval()(hidden), whole + (whole @ module.down_weight.T).relu() @ module.up_weight.T)


def test_only_the_narrow_network_gets_a_gradient() -> None:
    made = toys.adapted_model(method="bottleneck")
    toys.shake(made)
    toys.logits(made).square().mean().backward()
    for name, parameter in made.named_parameters():
        own = name.rpartition(".")[2]
        assert (parameter.grad is not None) == own.startswith(("up_", "down_")) and (parameter.grad is None or parameter.grad.any())


MIXED = {"experts": {"count": 4, "per_token": 2, "intermediate_size": 12, "shared_size": 8, "layers": [1]}}
"""The first layer is plain."""


@pytest.mark.parametrize("method", ["bottleneck", "compacter"])
@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("pfeiffer", ["0.mlp.down_proj", "1.mlp"]),
        ("houlsby", ["0.self_attn.o_proj", "0.mlp.down_proj", "1.self_attn.o_proj", "1.mlp"]),
    ],
)
def test_in_a_mixture_it_stands_once_after_all_experts(method: str, placement: str, expected: list[str], tmp_path: Path) -> None:
    plain, made = toys.model(variant=MIXED), toys.model(variant=MIXED)
    values = toys.config(method=method, bottleneck={"placement": placement})
    adapt(made, values)
    assert [name.removeprefix("model.layers.") for name, _ in adapted(made)] == expected
    assert torch.equal(toys.logits(made), toys.logits(plain))
    toys.shake(made)
    own = cast(Bottleneck, made.get_submodule("model.layers.1.mlp"))
    hidden = torch.randn(1, 7, 32)
    whole, (down, up) = own.base(hidden), own.maps()
    by_formula = whole + functional.gelu(whole @ down.T + own.down_bias) @ up.T + own.up_bias
    torch.testing.assert_close(own(hidden), by_formula)
    folder = files.save(made, values, tmp_path / "adapter", base="base", digest="0")
    files.load_into(plain, folder)
    assert torch.equal(toys.logits(made), toys.logits(plain))


def test_inside_the_experts_it_stands_where_it_is_named() -> None:
    made = toys.model(variant=MIXED)
    adapt(made, toys.config(method="bottleneck", targets=["experts.*.down_proj"]))
    assert [name for name, _ in adapted(made)] == [f"model.layers.1.mlp.experts.{number}.down_proj" for number in range(4)]


def test_it_cannot_be_merged_and_says_so() -> None:
    made = toys.adapted_model(method="bottleneck")
    with pytest.raises(ModelError, match="BottleneckLinear cannot be merged into a weight. Keep the adapter beside the model"):
        merge_in_place(made)


def test_a_target_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="'o_prj', which matches nothing.*Did you mean 'o_proj'"):
        toys.adapted_model(method="bottleneck", targets=["o_prj"])
