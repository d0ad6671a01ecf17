"""Routing by hand, experts against one token at a time, and what can be heard of a router."""

import pytest
import torch
from family_toys import tokens
from torch.nn import functional

from luyen.core import config as configs
from luyen.core.errors import ConfigError
from luyen.models import moe
from luyen.models.attention import Layout
from luyen.models.config import ExpertsConfig, TransformerConfig
from luyen.models.transformer import Transformer

EXPERTS = {"count": 5, "per_token": 2, "intermediate_size": 12, "shared_size": 8}
DENSE = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 40, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}


def mixture(**changes: object) -> moe.Mixture:
    torch.manual_seed(0)
    found = moe.Mixture(16, configs.load(ExpertsConfig, {**EXPERTS, **changes}))
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(0.0, 0.3)
    return found.double()


def model(**changes: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(configs.load(TransformerConfig, {**DENSE, "variant": {"experts": {**EXPERTS, **changes}}}))


def test_weights_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0]]).log()  # shares 1/2, 1/6, 1/3
    weights, choices = moe.choose(logits, 2, normalised=False)
    assert choices.tolist() == [[0, 2]]
    torch.testing.assert_close(weights, torch.tensor([[1 / 2, 1 / 3]]))
    torch.testing.assert_close(moe.choose(logits, 2, normalised=True)[0], torch.tensor([[3 / 5, 2 / 5]]))


@pytest.mark.parametrize("changes", [{}, {"normalised": False, "shared_size": 0}, {"per_token": 1}, {"per_token": 5}])
def test_every_token_is_what_its_experts_make_of_it(changes) -> None:
    layer, hidden = mixture(**changes), torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for token, output in zip(hidden.flatten(0, 1), layer(hidden).flatten(0, 1), strict=True):
        shares = functional.linear(token.float(), layer.gate.weight.float()).softmax(-1)
        largest, chosen = shares.topk(layer.per_token)
        weights = largest / largest.sum() if layer.normalised else largest
        experts = list(layer.experts.children())
        expected = sum(weight * experts[number](token) for weight, number in zip(weights.double(), chosen.tolist(), strict=True))
        if layer.shared_expert is not None:
            share = functional.linear(token.float(), layer.shared_expert_gate.weight.float()).sigmoid()
            expected = expected + share * layer.shared_expert(token)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


def test_an_expert_that_no_token_chose_has_a_gradient_of_zero() -> None:
    """So that ranks and micro-batches whose tokens choose others have gradients of the same parameters."""
    layer = mixture(per_token=1)
    layer(torch.randn(1, 1, 16, dtype=torch.float64)).sum().backward()
    norms = [sum(float(weight.grad.norm()) for weight in expert.parameters()) for expert in layer.experts.children()]
    assert sorted(norm > 0 for norm in norms) == [False] * 4 + [True]


def test_what_routers_say_is_heard_by_layer_and_only_when_asked() -> None:
    decoder, ids = model(layers=[0, 2]), tokens(1, 12)
    plain = decoder(ids, Layout.packed([5, 7]))
    with moe.heard() as routings:
        again = decoder(ids, Layout.packed([5, 7]))
    assert torch.equal(plain, again) and len(routings) == 2
    logits, choices = routings[0]
    assert logits.shape == (12, 5) and choices.shape == (12, 2) and logits.dtype == torch.float32
    assert torch.equal(choices, logits.topk(2).indices)
    decoder(ids)
    assert len(routings) == 2
    with moe.heard() as none:
        Transformer(configs.load(TransformerConfig, DENSE))(ids)
    assert none == []


def test_scores_are_fp32_under_autocast() -> None:
    decoder, ids = model(), tokens(1, 12)
    with torch.autocast("cpu", torch.bfloat16), moe.heard() as routings:
        hidden = decoder(ids)
    assert all(routing.logits_NE.dtype == torch.float32 for routing in routings)
    hidden.float().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in decoder.model.layers.parameters())
    torch.testing.assert_close(hidden.float(), decoder(ids), rtol=0.1, atol=0.1)


def test_new_weights() -> None:
    decoder = model(intermediate_size=300)
    layer = decoder.model.layers[0].mlp
    assert layer.gate.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert layer.experts.get_submodule("3").up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.experts.get_submodule("3").down_proj.weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ({"experts": {"count": 4, "per_token": 5}}, "per_token 5 is more than the 4 experts"),
        ({"experts": {"count": 4, "per_token": 2, "layers": [3]}}, r"experts.layers \[3\] names a layer that is not among the 3"),
        ({"window": 4, "window_layers": [-1]}, r"window_layers \[-1\]"),
        ({"rope_scaling": {"kind": "yarn", "factor": 4}}, "variant.rope_scaling.kind; found 'yarn'"),
        ({"rope_scaling": {"kind": "llama3", "factor": 4, "low_frequency": 4}}, "high_frequency 4.0 is not above low_frequency 4.0"),
        ({"qk_norm": "all"}, "variant.qk_norm; found 'all'"),
        ({"rope_theta": 5.0, "windows": 3}, "unknown key 'variant.windows'. Did you mean 'variant.window'"),
    ],
)
def test_impossible_variants_are_refused(variant, told) -> None:
    with pytest.raises(ConfigError, match=told):
        configs.load(TransformerConfig, {**DENSE, "variant": variant})


def test_the_base_of_the_angles_may_stand_outside_its_section() -> None:
    """As in checkpoints from before there were sections."""
    config = configs.load(TransformerConfig, {**DENSE, "rope_theta": 500.0})
    assert config.rope_theta == config.variant.rope_theta == 500.0
    assert configs.load(TransformerConfig, configs.dump(config)) == config
    same = configs.load(TransformerConfig, {**DENSE, "rope_theta": 500.0, "variant": {"window": 3}})
    assert (same.rope_theta, same.variant.window) == (500.0, 3)
    with pytest.raises(ConfigError, match=r"rope_theta is 500.0 and variant.rope_theta 7"):
        configs.load(TransformerConfig, {**DENSE, "rope_theta": 500.0, "variant": {"rope_theta": 7}})
