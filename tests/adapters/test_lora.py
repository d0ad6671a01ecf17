"""LoRA against its formula, against itself computed otherwise, and against PEFT."""

from typing import Any

import adapter_toys as toys
import pytest
import torch
from torch import Tensor, nn

from luyen.adapters.adapt import adapt, merge_in_place, trained
from luyen.adapters.linear import adapted
from luyen.adapters.lora import LoRALinear
from luyen.core.errors import ConfigError


@pytest.mark.parametrize("values", [{}, {"lora": {"scaling": "root"}}, {"dropout": 0.3}], ids=["plain", "root", "dropout"])
@pytest.mark.parametrize("lengths", [toys.LENGTHS, (20, 10)], ids=["folded", "beside"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_a_fresh_adapter_changes_not_one_bit(values: dict[str, Any], lengths: tuple[int, ...], half: bool) -> None:
    plain, adapted_model = toys.model(), toys.adapted_model(**values)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(toys.logits(adapted_model, lengths), toys.logits(plain, lengths))


def test_only_the_adapter_is_trained_and_it_is_counted() -> None:
    made = toys.adapted_model(rank=4)
    names = {name.rpartition(".")[2] for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert names == {"lora_A", "lora_B"}
    size = toys.SIZE
    inputs_and_outputs = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 56)
    assert sum(item.count for item in trained(made)) == size.num_layers * 4 * inputs_and_outputs


def by_formula(module: LoRALinear, hidden: Tensor) -> Tensor:
    a, b = module.factors()
    return hidden @ (module.dense() + module.scale * b @ a).T


def test_folded_and_beside_are_the_formula_with_its_gradients() -> None:
    torch.manual_seed(0)
    module = LoRALinear(nn.Linear(6, 5, bias=False).double().requires_grad_(False), 3, 0.7)
    module.lora_B.data.normal_()
    for rows in (100, 3):  # more and fewer than FEW
        hidden = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
        leaves = (hidden, module.lora_A, module.lora_B)
        slope = torch.randn(rows, 5, dtype=torch.float64)
        ours = torch.autograd.grad(module(hidden), leaves, slope)
        theirs = torch.autograd.grad(by_formula(module, hidden), leaves, slope)
        torch.testing.assert_close(module(hidden), by_formula(module, hidden))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_in_half_precision_both_products_are_autograds_and_no_weight_is_kept(bias: bool) -> None:
    torch.manual_seed(0)
    module = LoRALinear(nn.Linear(64, 48, bias=bias).requires_grad_(False), 4, 0.7)
    module.lora_B.data.normal_()
    hidden, slope = torch.randn(2, 40, 64, requires_grad=True), torch.randn(2, 40, 48)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    results = []
    for way in (module, lambda states: module._beside(states, *module.factors(), states)):
        kept.clear()
        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, keep):
            output = way(hidden)
        sizes = {tuple(tensor.shape) for tensor in kept}
        results.append((output, *torch.autograd.grad(output, (hidden, module.lora_A, module.lora_B), slope.bfloat16())))
        if way is module:
            assert sizes == {(2, 40, 64), (4, 64), (48, 4)}
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        assert float(((found - expected).abs().max() / expected.abs().max()).detach()) < 0.02


def test_pissa_starts_from_the_largest_singular_values_and_changes_nothing() -> None:
    plain, made = toys.model(), toys.adapted_model(rank=4, lora={"init": "pissa"})
    torch.testing.assert_close(toys.logits(made), toys.logits(plain), rtol=1e-5, atol=1e-5)
    _, module = next(adapted(made))
    assert isinstance(module, LoRALinear)
    singular = torch.linalg.svdvals(module.scale * module.lora_B @ module.lora_A)[:4]
    torch.testing.assert_close(singular, torch.linalg.svdvals(module.dense())[:4], rtol=1e-4, atol=1e-5)
    toys.shake(made)
    assert not torch.allclose(toys.logits(made), toys.logits(plain), atol=1e-3)
    weight, _ = module.merged()
    change = module.scale * (module.lora_B @ module.lora_A - module.start_B @ module.start_A)  # type: ignore[operator]
    torch.testing.assert_close(weight, module.dense() + change, rtol=1e-5, atol=1e-5)


def test_orthogonal_starts_from_factors_whose_product_is_zero() -> None:
    made = toys.adapted_model(rank=4, lora={"init": "orthogonal"})
    for _, module in adapted(made):
        assert isinstance(module, LoRALinear)
        assert module.lora_A.any() and module.lora_B.any()
        torch.testing.assert_close(module.lora_B @ module.lora_A, torch.zeros(module.out_features, module.in_features), atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="an even rank"):
        toys.adapted_model(rank=3, lora={"init": "orthogonal"})


def test_ranks_and_alphas_by_pattern() -> None:
    made = toys.adapted_model(rank=4, alpha=8, lora={"ranks": {"layers.1.*": 2, "k_proj": 3}, "alphas": {"q_proj": 6.0}})
    found = {name: (module.rank, module.scale) for name, module in adapted(made) if isinstance(module, LoRALinear)}
    assert found["model.layers.0.self_attn.q_proj"] == (4, 1.5)
    assert found["model.layers.1.self_attn.q_proj"] == (2, 3.0)
    assert found["model.layers.1.self_attn.k_proj"] == (3, 8 / 3)
    assert found["model.layers.1.mlp.up_proj"] == (2, 4.0)


def test_merged_weights_compute_what_the_adapter_does() -> None:
    made = toys.adapted_model(rank=4)
    toys.shake(made)
    expected = toys.logits(made)
    merge_in_place(made)
    assert dict(made.named_parameters()).keys() == dict(toys.model().named_parameters()).keys()
    assert not list(adapted(made)) and all(parameter.requires_grad for parameter in made.parameters())
    torch.testing.assert_close(toys.logits(made), expected, rtol=1e-5, atol=1e-5)


def test_backward_keeps_the_input_and_the_factors_alone() -> None:
    module = LoRALinear(nn.Linear(64, 48, bias=False).requires_grad_(False), 4, 1.0)
    hidden = torch.randn(512, 64, requires_grad=True)
    output, kept = toys.kept_by(module, hidden)
    output.sum().backward()
    assert {tensor.data_ptr() for tensor in kept if tensor.ndim == 2} == {
        item.data_ptr() for item in (hidden, module.lora_A, module.lora_B)
    }
    assert module.base.weight.grad is None


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"targets": ["q_prj"]}, "'q_prj', which matches nothing.*Did you mean 'q_proj'"),
        ({"targets": []}, "adapter.targets; found none"),
        ({"rank": 17, "targets": ["k_proj"]}, "found 17 for model.layers.0.self_attn.k_proj; expected at most 16"),
        ({"lora": {"ranks": {"x_proj": 2}}}, "adapter.lora.ranks; found 'x_proj', which matches no target"),
        ({"also": ["norm"]}, "adapter.also; found 'norm', which matches no parameter; expected .*norms"),
    ],
)
def test_what_cannot_be_is_told_with_its_remedy(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        toys.adapted_model(**values)


def test_also_trains_parameters_in_whole() -> None:
    made = toys.adapted_model(also=["norms", "embeddings", "layers.0.self_attn.q_proj.weight"])
    whole = {name for name, parameter in made.named_parameters() if parameter.requires_grad and "lora" not in name}
    assert "model.layers.0.self_attn.q_proj.base.weight" in whole and "model.embed_tokens.weight" in whole
    assert sum(name.endswith("norm.weight") for name in whole) == 5 and len(whole) == 7


@pytest.mark.parametrize("rows", [100, 3], ids=["folded", "beside"])
@pytest.mark.parametrize("also", ["weight", "bias"])
def test_what_of_the_map_itself_is_trained_gets_its_gradient(also: str, rows: int) -> None:
    torch.manual_seed(0)
    module = LoRALinear(nn.Linear(6, 5).double().requires_grad_(False), 3, 0.7)
    module.lora_B.data.normal_()
    whole = module.base.get_parameter(also).requires_grad_(True)
    hidden, slope = torch.randn(rows, 6, dtype=torch.float64), torch.randn(rows, 5, dtype=torch.float64)
    expected = slope.sum(0) if also == "bias" else slope.T @ hidden
    torch.testing.assert_close(torch.autograd.grad(module(hidden), whole, slope)[0], expected)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers for it
@pytest.mark.parametrize("values", [{}, {"lora": {"scaling": "root", "ranks": {"up_proj": 2}}}], ids=["lora", "rslora"])
def test_logits_and_gradients_equal_those_of_peft(values: dict[str, Any], tmp_path: Any) -> None:
    peft = pytest.importorskip("peft")
    from transformers import LlamaForCausalLM

    from luyen.models import hf

    hf.save(toys.model(), tmp_path)
    ours = toys.adapted_model(rank=4, alpha=8, **values)
    toys.shake(ours)
    options = {"use_rslora": True, "rank_pattern": {"up_proj": 2}} if values else {}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = peft.get_peft_model(
        LlamaForCausalLM.from_pretrained(tmp_path), peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, **options)
    )  # fmt: skip
    named = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter for name, parameter in theirs.named_parameters()
    }
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                named[name].copy_(parameter)
    ids = toys.tokens()
    found, expected = ours.logits(ours(ids)), theirs(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1.3e-6, atol=1e-5)
    found.square().mean().backward()
    expected.square().mean().backward()
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, named[name].grad, rtol=1e-4, atol=1e-5)


def test_full_leaves_everything_trained() -> None:
    made = toys.model()
    adapt(made, toys.config(method="full"))
    assert all(parameter.requires_grad for parameter in made.parameters()) and not list(adapted(made))
