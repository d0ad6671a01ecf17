"""A base in few bits against the formula, bitsandbytes, PEFT on it, and the model in numbers."""

import sys
from pathlib import Path
from typing import Any

import adapter_toys as toys
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luyen.adapters import quantized
from luyen.adapters.adapt import adapt, merge_in_place
from luyen.adapters.linear import Compressed, adapted
from luyen.adapters.quantization_error import quantization_error
from luyen.adapters.quantized import QuantizedLinear, count_weights, dequantize, quantize, quantized_maps
from luyen.adapters.quantized_load import load_quantized
from luyen.adapters.targets import linear_maps
from luyen.core.errors import ConfigError, ModelError
from luyen.engine import states
from luyen.models import hf
from luyen.models.config import ExpertsConfig, VariantConfig

library: Any = pytest.importorskip("bitsandbytes").functional
KINDS = ("nf4", "fp4", "int8")
NF4 = [
    -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
]  # fmt: skip


def weights(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02


def quantized_toy(kind: Any = "nf4", **changes: Any) -> Any:
    made = toys.model(**changes)
    quantize(made, kind)
    return made


def test_nf4_has_the_sixteen_codes_of_the_paper() -> None:
    scale = torch.tensor(NF4).repeat(4)[None] * 0.5
    module = QuantizedLinear(scale, double_quantization=False)
    assert module.dense().unique().mul(2).tolist() == torch.tensor(NF4).tolist()
    nearest = torch.tensor(NF4)[(weights(64)[:, None] / weights(64).abs().max() - torch.tensor(NF4)).abs().argmin(1)]
    torch.testing.assert_close(QuantizedLinear(weights(1, 64), double_quantization=False).dense()[0], nearest * weights(64).abs().max())


@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_scales_and_numbers_are_those_of_bitsandbytes(kind: Any, double: bool) -> None:
    weight = weights(48, 128)
    module = QuantizedLinear(weight, kind=kind, double_quantization=double)
    codes, state = library.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=double)
    assert torch.equal(module.codes, codes.flatten())
    assert torch.equal(module.dense(), library.dequantize_4bit(codes, state))
    assert torch.equal(module.dense(torch.bfloat16), module.dense().bfloat16())
    assert module.dense(torch.float64).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(48, 32), (7, 9), (33, 90), (1, 1), (5, 128)], ids=str)
def test_any_shape_is_read_with_the_scale_of_its_own_block(kind: Any, shape: tuple[int, int]) -> None:
    weight = weights(*shape)
    module = QuantizedLinear(weight, kind=kind, double_quantization=False)
    scales = module.block_scales().repeat_interleave(quantized.BLOCK)[: weight.numel()].view(shape)
    assert module.dense().shape == shape
    assert bool(((module.dense() - weight).abs() <= scales * {"nf4": 0.16, "fp4": 0.17, "int8": 0.005}[kind]).all())
    assert module.error == pytest.approx(float((module.dense() - weight).norm() / weight.norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "double", "size"), [("nf4", True, 0.5159), ("nf4", False, 0.5625), ("fp4", True, 0.5159), ("int8", True, 1.0159)]
)
def test_a_weight_takes_what_the_paper_says(kind: Any, double: bool, size: float) -> None:
    module = QuantizedLinear(weights(512, 640), torch.zeros(512), kind, double)
    assert module.nbytes() / (512 * 640) == pytest.approx(size, abs=2e-4)
    assert {parameter.dtype for name, parameter in module.named_parameters() if name != "bias"} == {torch.uint8}
    assert not list(module.buffers()) and not list(module.children())


@pytest.mark.parametrize(("kind", "error"), [("nf4", 0.092), ("fp4", 0.122), ("int8", 0.0063)])
def test_normal_weights_err_as_expected(kind: Any, error: float) -> None:
    assert QuantizedLinear(weights(256, 512), kind=kind).error == pytest.approx(error, rel=0.03)


def test_a_large_map_is_quantized_in_pieces_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = QuantizedLinear(weights(33, 90))
    monkeypatch.setattr(quantized, "PIECE", 1024)
    pieces = QuantizedLinear(weights(33, 90))
    assert torch.equal(whole.codes, pieces.codes) and torch.equal(whole.dense(), pieces.dense())


def test_casts_change_nothing_of_what_is_held() -> None:
    module = QuantizedLinear(weights(48, 64))
    before = module.dense()
    assert torch.equal(module.half().to(torch.bfloat16).dense(), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_forward_and_gradients_are_those_of_the_numbers(kind: Any, half: bool) -> None:
    module = QuantizedLinear(weights(5, 64), weights(5), kind)
    plain = nn.Linear(64, 5)
    plain.weight.data, plain.bias.data = module.dense(), weights(5)
    module.bias.requires_grad_(True)
    hidden, slope = torch.randn(2, 7, 64, requires_grad=True), torch.randn(2, 7, 5)
    found, expected = [], []
    for made, kept in ((module, found), (plain, expected)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = made(hidden)
        kept += [output, *torch.autograd.grad(output, (hidden, made.bias), slope.to(output.dtype))]
    torch.testing.assert_close(found, expected)


def test_backward_keeps_nothing_and_reads_the_codes_again() -> None:
    module = QuantizedLinear(weights(48, 64))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, keep):
        module(torch.randn(512, 64, requires_grad=True)).sum().backward()
    assert not kept


def test_layers_are_quantized_and_nothing_else_is() -> None:
    plain, made = toys.model(), quantized_toy()
    names = [name for name, _ in quantized_maps(made)]
    assert names == linear_maps(plain) and all(isinstance(module, Compressed) for _, module in quantized_maps(made))
    assert isinstance(made.lm_head, nn.Linear) and made.lm_head.weight.dtype == torch.float32
    assert count_weights(made) == sum(parameter.numel() for parameter in plain.parameters())
    dequantize(made)
    assert not list(quantized_maps(made))
    torch.testing.assert_close(toys.logits(made), toys.logits(quantized_toy()))


def test_routers_stay_in_numbers() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"gate": nn.Linear(64, 4), "up_proj": nn.Linear(64, 64)})])})
    quantize(model)
    assert [name for name, _ in quantized_maps(model)] == ["layers.0.up_proj"]


def test_checkpoints_leave_the_codes_out_and_the_fingerprint_covers_them() -> None:
    made = quantized_toy()
    adapt(made, toys.config(rank=4))
    held = states.model_tensors(made)
    assert held and all(name.rpartition(".")[2] in ("lora_A", "lora_B") for name in held)
    assert not any(name.endswith(quantized.CODED) for name in made.state_dict())
    made.load_state_dict(made.state_dict())
    before = states.frozen_fingerprint(made)
    _, module = next(quantized_maps(made))
    module.codes.data[0] ^= 1
    assert states.frozen_fingerprint(made) != before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_a_folder_is_read_into_the_same_codes(kind: Any, tied: bool, tmp_path: Path) -> None:
    hf.save(toys.model(tied=tied), tmp_path)
    read = load_quantized(tmp_path, kind)
    torch.testing.assert_close(toys.logits(read), toys.logits(quantized_toy(kind, tied=tied)), rtol=0, atol=0)
    shapes = {name: (parameter.shape, parameter.dtype) for name, parameter in load_quantized(tmp_path, kind, "meta").named_parameters()}
    assert shapes == {name: (parameter.shape, parameter.dtype) for name, parameter in read.named_parameters()}


def test_only_one_tensor_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    hf.save(toys.model(), tmp_path)
    alive: list[Any] = []
    made = quantized.quantized_map

    def watched(name: str, weight: Tensor, *rest: Any) -> Any:
        assert not [earlier for earlier in alive if earlier() is not None]
        alive.append(weakref.ref(weight))
        return made(name, weight, *rest)

    monkeypatch.setattr("luyen.adapters.quantized_load.quantized_map", watched)
    load_quantized(tmp_path)
    assert len(alive) == 14


def test_shards_and_what_does_not_fit(tmp_path: Path) -> None:
    hf.save(toys.model(), tmp_path)
    tensors = load_file(tmp_path / hf.WEIGHTS)
    (tmp_path / hf.WEIGHTS).unlink()
    halves = [dict(list(tensors.items())[:9]), dict(list(tensors.items())[9:])]
    for number, half in enumerate(halves):
        save_file(half, tmp_path / f"{number}.safetensors")
    import json

    (tmp_path / hf.INDEX).write_text(
        json.dumps({"weight_map": {name: f"{n}.safetensors" for n, half in enumerate(halves) for name in half}})
    )
    assert torch.equal(toys.logits(load_quantized(tmp_path)), toys.logits(quantized_toy()))
    for change, told in (
        ({"more.weight": torch.zeros(1)}, "the unknown tensor more.weight"),
        ({"lm_head.weight": torch.zeros(1)}, "lm_head.weight does not fit"),
    ):
        save_file({**tensors, **change}, tmp_path / hf.WEIGHTS)
        with pytest.raises(ModelError, match=told):
            load_quantized(tmp_path)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(tensors, tmp_path / hf.WEIGHTS)
    with pytest.raises(ModelError, match="model.layers.0.mlp.up_proj: a weight that is to be quantized is not finite"):
        load_quantized(tmp_path)


def test_the_error_is_told_in_three_lines_without_both_models(tmp_path: Path) -> None:
    plain, made = toys.model(), quantized_toy()
    hf.save(plain, tmp_path)
    found, other = quantization_error(made, tmp_path, toys.tokens()), quantization_error(made, plain, toys.tokens())
    assert found == other
    with torch.no_grad():
        before, after = plain.logits(plain(toys.tokens())), made.logits(made(toys.tokens()))
    centred = before - before.mean(-1, keepdim=True), after - after.mean(-1, keepdim=True)
    assert found.logits == pytest.approx(float((centred[1] - centred[0]).norm() / centred[0].norm()), rel=1e-4)
    assert found.same_choice == pytest.approx(float((before.argmax(-1) == after.argmax(-1)).float().mean()))
    lines = found.lines()
    assert len(lines) == 3 and lines[0].startswith("14 maps in nf4: ") and "weights are off by 9." in lines[1]
    assert len(quantization_error(made).lines()) == 2
    with pytest.raises(ModelError, match="no map of this model is quantized"):
        quantization_error(plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [toys.LENGTHS, (20, 10)], ids=["folded", "beside"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_a_fresh_adapter_on_codes_changes_not_one_bit(kind: Any, lengths: tuple[int, ...], half: bool) -> None:
    plain, made = quantized_toy(kind), quantized_toy(kind)
    adapt(made, toys.config())
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(toys.logits(made, lengths), toys.logits(plain, lengths))


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_lora_on_codes_is_lora_on_their_numbers_and_merges(half: bool) -> None:
    coded, plain = quantized_toy(), quantized_toy()
    dequantize(plain)
    for made in (coded, plain):
        adapt(made, toys.config(rank=4))
    toys.shake(coded)
    plain.load_state_dict(coded.state_dict(), strict=False)
    results = []
    for made in (coded, plain):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = toys.logits(made)
        found.float().square().mean().backward()
        results.append((found, {name: parameter.grad for name, parameter in made.named_parameters() if parameter.grad is not None}))
    assert results[0][1] and results[0][1].keys() == results[1][1].keys()
    torch.testing.assert_close(results[0], results[1])
    merged = toys.model()
    for name, module in adapted(coded):
        merged.get_submodule(name).weight.data = module.merged()[0]
    torch.testing.assert_close(toys.logits(merged), toys.logits(coded), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers for it
def test_logits_and_gradients_equal_those_of_peft_on_bitsandbytes(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    wide = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}  # bitsandbytes reads other widths wrongly on some processors
    hf.save(toys.model(**wide), tmp_path)
    ours = load_quantized(tmp_path)
    torch.manual_seed(1)
    adapt(ours, toys.config(rank=4, alpha=8))
    toys.shake(ours)
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )  # fmt: skip
    base = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=settings, device_map="cpu", dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets)).train()
    named = {name.removeprefix("base_model.model."): parameter for name, parameter in theirs.named_parameters()}
    for name, module in quantized_maps(ours):
        assert torch.equal(module.codes, named[f"{name}.base_layer.weight"].flatten())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                named[f"{name}.default.weight"].copy_(parameter)
    ids = toys.tokens()
    found, expected = ours.logits(ours(ids)), theirs(input_ids=ids).logits
    assert float((found - expected).detach().abs().max() / expected.detach().abs().max()) < 1e-5
    found.square().mean().backward()
    expected.square().mean().backward()
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            grad, other = parameter.grad, named[f"{name}.default.weight"].grad
            assert grad is not None and float((grad - other).abs().max() / other.abs().max()) < 1e-5, name


def test_without_bitsandbytes_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    quantized._library.cache_clear()
    with pytest.raises(ConfigError, match=r"quantize; found .*bitsandbytes is not installed\. Type: pip install \"\.\[qlora\]\""):
        QuantizedLinear(weights(4, 4))
    quantized._library.cache_clear()


def test_merging_leaves_no_map_in_codes() -> None:
    made = toys.model()
    quantize(made)
    adapt(made, toys.config(rank=4, targets=["q_proj"]))
    toys.shake(made)
    expected = toys.logits(made)
    merge_in_place(made)
    assert not list(quantized_maps(made)) and all(parameter.requires_grad for parameter in made.parameters())
    torch.testing.assert_close(toys.logits(made), expected, rtol=1e-4, atol=1e-4)


def test_a_mixture_is_read_by_its_familys_names(tmp_path: Path) -> None:
    """Mixtral's files call an expert's maps w1, w2 and w3."""
    experts = ExpertsConfig(count=4, per_token=2)
    made = toys.model(variant=VariantConfig(experts=experts))
    hf.save(made, tmp_path)
    assert "w1" in (tmp_path / "model.safetensors").read_bytes()[:20000].decode("latin-1")
    quantize(made)
    read = load_quantized(tmp_path)
    torch.testing.assert_close(toys.logits(read), toys.logits(made), rtol=0, atol=0)
    names = {name for name, _ in quantized_maps(read)}
    assert "model.layers.0.mlp.experts.3.up_proj" in names and not any(name.endswith("gate") for name in names)
