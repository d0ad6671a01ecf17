"""BitFit and selective fine-tuning: what is trained, that nothing changes at the start, and the merged form."""

from typing import Any

import adapter_toys as toys
import pytest
import torch
from torch import nn

from luyen.adapters.adapt import trained
from luyen.adapters.bitfit import BiasLinear
from luyen.adapters.count import trained_weights
from luyen.adapters.linear import adapted
from luyen.core.errors import ConfigError


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_a_fresh_adapter_changes_not_one_bit(half: bool) -> None:
    plain, made = toys.model(), toys.adapted_model(method="bitfit")
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(toys.logits(made), toys.logits(plain))
        assert toys.logits(made).dtype == toys.logits(plain).dtype


def test_one_number_for_every_output_of_the_targets() -> None:
    everywhere, few = toys.adapted_model(method="bitfit"), toys.adapted_model(method="bitfit", targets=["q_proj", "up_proj"])
    assert sum(group.count for group in trained(everywhere)) == 2 * (2 * 32 + 2 * 16 + 2 * 56 + 32)
    assert trained_weights(toys.SIZE, toys.config(method="bitfit")) == 2 * (2 * 32 + 2 * 16 + 2 * 56 + 32)
    assert sum(group.count for group in trained(few)) == 2 * (32 + 56)
    assert {name.rpartition(".")[2] for name, _ in adapted(few)} == {"q_proj", "up_proj"}


@pytest.mark.parametrize("bias", [False, True], ids=["new", "changed"])
def test_training_it_is_training_the_bias(bias: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(6, 5, bias=bias, dtype=torch.float64)
    plain = nn.Linear(6, 5, dtype=torch.float64)
    plain.load_state_dict({"bias": torch.zeros(5), **base.state_dict()})
    module = BiasLinear(base.requires_grad_(False))
    hidden = torch.randn(9, 6, dtype=torch.float64)
    for trained_model, parameter in ((module, module.bias_change), (plain, plain.bias)):
        optimizer = torch.optim.Adam([parameter], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            trained_model(hidden).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(module(hidden), plain(hidden))
    weight, merged = module.merged()
    torch.testing.assert_close((weight, merged), (plain.weight.detach(), plain.bias.detach()))
    assert base.weight.grad is None and (base.bias is None or base.bias.grad is None)


def test_merged_maps_have_a_bias_and_compute_what_the_adapter_does() -> None:
    made, plain = toys.adapted_model(method="bitfit"), toys.model()
    toys.shake(made)
    assert not torch.allclose(toys.logits(made), toys.logits(plain), atol=1e-2)
    for name, module in adapted(made):
        weight, bias = module.merged()
        assert bias is not None
        own = plain.get_submodule(name)
        assert isinstance(own, nn.Linear)
        own.weight.data, own.bias = weight, nn.Parameter(bias)
    torch.testing.assert_close(toys.logits(plain), toys.logits(made), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("also", "expected"),
    [
        (["norms"], {"model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight",
                     "model.layers.1.input_layernorm.weight", "model.layers.1.post_attention_layernorm.weight", "model.norm.weight"}),
        (["layers.1.mlp.*"], {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}),
        (["embeddings", "head"], {"model.embed_tokens.weight", "lm_head.weight"}),
    ],
    ids=["norms", "layer", "tables"],
)  # fmt: skip
def test_selective_trains_what_also_names_and_adds_nothing(also: list[str], expected: set[str]) -> None:
    made, plain = toys.adapted_model(method="selective", also=also), toys.model()
    assert {name for name, parameter in made.named_parameters() if parameter.requires_grad} == expected
    assert [name for name, _ in made.named_parameters()] == [name for name, _ in plain.named_parameters()] and not list(adapted(made))
    made.logits(made(toys.tokens())).square().mean().backward()
    plain.logits(plain(toys.tokens())).square().mean().backward()
    whole = dict(plain.named_parameters())
    for name, parameter in made.named_parameters():
        if name in expected:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, whole[name].grad)
        else:
            assert parameter.grad is None


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"method": "bitfit", "targets": ["q_prj"]}, "'q_prj', which matches nothing.*Did you mean 'q_proj'"),
        ({"method": "selective"}, "selective trains what adapter.also names, and that is empty"),
        ({"method": "selective", "also": ["layers.7.*"]}, "'layers.7.\\*', which matches no parameter"),
    ],
)
def test_what_cannot_be_is_told_with_its_remedy(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        toys.adapted_model(**values)
