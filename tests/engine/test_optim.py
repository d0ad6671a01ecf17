"""AdamW's groups and formula, Muon against torch's, and what Newton-Schulz does to singular values."""

import math

import pytest
import torch
from torch import nn
from training_toys import toy_model

from luyen.core.errors import ConfigError
from luyen.engine.config import OptimizerConfig
from luyen.engine.optim import Muon, build, orthogonalise, set_learning_rate, split_parameters


def names_of(model, parameters):
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


def test_norms_and_embeddings_do_not_decay():
    model = toy_model(tied=False)
    hidden, matrices, plain = (names_of(model, group) for group in split_parameters(model))
    assert matrices == {"lm_head.weight"}
    assert plain == {name for name in dict(model.named_parameters()) if "norm" in name or "embed" in name}
    assert hidden == {name for name in dict(model.named_parameters()) if name.endswith("_proj.weight")}
    assert names_of(toy_model(tied=True), split_parameters(toy_model(tied=True))[1]) == set()


def test_a_frozen_parameter_is_in_no_group():
    model = toy_model()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    grouped = [parameter for group in split_parameters(model) for parameter in group]
    assert len(grouped) == len(list(model.parameters())) - 1


def test_adamw_is_algorithm_2_of_the_paper():
    """Three updates in float64 by the formula; decay only where the groups say so."""
    model = toy_model(tied=False)
    config = OptimizerConfig(learning_rate=0.01, beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3)
    optimizers = build(model, config)
    decayed = names_of(model, [p for group in split_parameters(model)[:2] for p in group])
    theory = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    first, second = ({name: torch.zeros_like(value) for name, value in theory.items()} for _ in range(2))
    for step in range(1, 4):
        set_learning_rate(optimizers, rate := 0.01 / step)
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            gradient = parameter.grad.double()
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            update = first[name] / (1 - 0.8**step) / ((second[name] / (1 - 0.9**step)).sqrt() + 1e-6)
            decay = 0.3 if name in decayed else 0.0
            theory[name] = theory[name] - rate * (update + decay * theory[name])
        for optimizer in optimizers:
            optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), theory[name].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    """The coefficients trade accuracy for speed: the post says 0.7 to 1.2 for all but tiny singular values."""
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.linalg.svdvals(result)
    assert values.quantile(0.1) > 0.65 and values.max() < 1.25
    # The singular vectors stay: U' X V is diagonal.
    rotated = left.mT @ result @ right.mT
    assert (rotated - torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-4


def test_a_batch_of_matrices_is_each_alone():
    matrices = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(1))
    alone = torch.stack([orthogonalise(matrix[None])[0] for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), alone, rtol=1e-5, atol=1e-6)


def test_muon_is_torchs_muon_without_its_bf16(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    generator = torch.Generator().manual_seed(2)
    ours = [torch.randn(shape, generator=generator) for shape in [(8, 8), (8, 20), (20, 8), (8, 8)]]
    theirs = [matrix.clone() for matrix in ours]
    mine = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1)
    torchs = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for left, right in zip(ours, theirs, strict=True):
            left.grad = torch.randn(left.shape, generator=generator)
            right.grad = left.grad.clone()
        mine.step()
        torchs.step()
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_an_update_of_muon_is_as_large_as_adamws():
    """Root mean square about 0.2 whatever the shape (arXiv:2502.16982, section 2.2)."""
    for shape in [(64, 64), (32, 96), (96, 32)]:
        matrix = torch.zeros(shape)
        optimizer = Muon([matrix], lr=1.0, momentum=0.9, weight_decay=0.0)
        matrix.grad = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        optimizer.step()
        assert matrix.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25), shape


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = toy_model(tied=False)
    adamw, muon = build(model, OptimizerConfig(name="muon"))
    assert isinstance(muon, Muon)
    assert names_of(model, muon.param_groups[0]["params"]) == names_of(model, split_parameters(model)[0])
    assert len(adamw.param_groups) == 2
    set_learning_rate([adamw, muon], 0.125)
    assert {group["lr"] for optimizer in (adamw, muon) for group in optimizer.param_groups} == {0.125}


def test_of_a_variant_routers_norms_of_heads_and_biases_are_not_muons():
    model = toy_model(variant={"qkv_bias": True, "qk_norm": "head", "experts": {"count": 3, "per_token": 1, "shared_size": 8}})
    hidden, matrices, plain = (names_of(model, part) for part in split_parameters(model))
    assert {name.split(".", 3)[3] for name in matrices} == {"mlp.gate.weight", "mlp.shared_expert_gate.weight"}
    assert {name.split(".", 3)[3] for name in hidden if "mlp" not in name} == {f"self_attn.{part}_proj.weight" for part in "qkvo"}
    assert len([name for name in hidden if "mlp" in name]) == 2 * 3 * (3 + 1)
    assert {"model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.k_proj.bias"} <= set(plain)
    build(model, OptimizerConfig(name="muon"))


def test_muon_without_layers_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer\.name; found muon; expected adamw"):
        build(nn.Linear(3, 3), OptimizerConfig(name="muon"))
    assert math.isclose(build(nn.Linear(3, 3), OptimizerConfig())[0].param_groups[0]["weight_decay"], 0.1)


def test_rates_are_multiples_by_pattern_and_the_last_pattern_counts():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    config = OptimizerConfig(weight_decay=0.0, rates={"bias": 16, "1.bias": 2})
    optimizers = build(model, config)
    set_learning_rate(optimizers, 0.01)
    model(torch.ones(3, 4)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    moved = {name: float((parameter.detach() - before[name]).abs().max()) for name, parameter in model.named_parameters()}
    expected = {"0.weight": 0.01, "0.bias": 0.16, "1.weight": 0.01, "1.bias": 0.02}
    assert moved == pytest.approx(expected, rel=1e-4)  # AdamW's first step is as long as the rate
    with pytest.raises(ConfigError, match="'basi', which names no trained parameter"):
        build(model, OptimizerConfig(rates={"basi": 2}))
