"""Counts by hand, against the built model, against what torch keeps, and against the published sizes and rules."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from luyen.core.config import load
from luyen.core.errors import ConfigError
from luyen.engine import cost
from luyen.engine.config import OptimizerConfig, TrainConfig
from luyen.engine.cost import (
    RECOMPUTED,
    SLICED,
    STATE_BYTES,
    AdapterCost,
    Training,
    activation_bytes,
    cache_bytes,
    cheap_bytes,
    device_operations,
    kept_bytes,
    loss_bytes,
    memory,
    operations,
    parameters,
    slower_modes,
    state_bytes,
)
from luyen.engine.layouts import Batch, Layout, bubble, layouts, rank_layers
from luyen.engine.optim import build
from luyen.engine.parallel.pipeline import check_count
from luyen.engine.parallel.plan import ELEMENTWISE
from luyen.models import attention
from luyen.models.attention import Layout as Packed
from luyen.models.config import TransformerConfig
from luyen.models.counts import feed_forwards
from luyen.models.presets import PRESETS, count_parameters, preset
from luyen.models.transformer import Transformer
from luyen.objectives import language_model
from luyen.objectives.language_model import linear_cross_entropy


def tiny(**changes: object) -> TransformerConfig:
    sizes = {"hidden_size": 4, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 8}
    return load(TransformerConfig, {"vocab_size": 10, "context_length": 8, "tied": True, **sizes, **changes})


@pytest.mark.parametrize(
    ("name", "published"),
    [("llama-2-7b", 6_738_415_616), ("llama-2-13b", 13_015_864_320), ("llama-2-70b", 68_976_648_192), ("llama-1b", 1_100_048_384)],
)
def test_published_sizes_are_exact(name: str, published: int) -> None:
    assert parameters(preset(name, 32_000)).count == published


@pytest.mark.parametrize("name", PRESETS)
def test_the_parts_sum_to_the_size(name: str) -> None:
    model = preset(name, 8192)
    parts = parameters(model)
    assert parts.count == parts.total == count_parameters(model) == sum(parts.by_part().values())


@pytest.mark.parametrize("tied", [True, False])
def test_the_parts_are_those_of_the_built_model(tied: bool) -> None:
    built = Transformer(tiny(tied=tied, num_layers=2))
    named = {name: weight.numel() for name, weight in built.named_parameters()}
    parts = parameters(built.config)
    assert parts.attention == sum(size for name, size in named.items() if "self_attn" in name)
    assert parts.feed_forward == sum(size for name, size in named.items() if "mlp" in name)
    assert parts.norms == sum(size for name, size in named.items() if "norm" in name)
    assert (parts.embedding, parts.head) == (named["model.embed_tokens.weight"], named.get("lm_head.weight", 0))


def test_operations_of_a_token_by_hand() -> None:
    # q and o are 4x4, k and v 2x4: 48 weights; three of 8x4: 96; head 10x4. Eight tokens, half of the square: 2 heads x 2 x 8 / 2 x 2 x 2.
    counted = operations(tiny(), 8)
    assert counted.by_part() == {"projections": 96, "scores": 64, "feed_forward": 192, "head": 80}
    assert counted.training == 3 * (96 + 64 + 192 + 80)
    assert operations(tiny(), 8, trained=0.25).head == 20


def test_operations_are_palms_six_for_each_weight() -> None:
    model = preset("llama-2-7b", 32_000)
    matrices = parameters(model).count - parameters(model).norms - parameters(model).embedding
    assert operations(model, 4096).training == 6 * matrices + 6 * 32 * 32 * 128 * 4096


def run(model: TransformerConfig, **changes: object) -> Training:
    values: dict[str, object] = {"batch": Batch(1, 8, 1024), "activations": "full", "half": True, **changes}
    return Training(model, optimizer=optimizer(str(values.pop("optimizer", "adamw"))), **values)  # type: ignore[arg-type]


def optimizer(name: str, **values: object) -> OptimizerConfig:
    return load(OptimizerConfig, {"name": name, **values})


def test_adamw_takes_the_16_bytes_of_the_zero_paper() -> None:
    size = 6_738_415_616
    whole = memory(run(preset("llama-2-7b", 32_000), half=False))
    assert whole.weights + whole.gradients + whole.optimizer == 16 * size
    assert (whole.weights, whole.gradients, whole.optimizer, whole.copies) == (4 * size, 4 * size, 8 * size, 0)
    half = memory(run(preset("llama-2-7b", 32_000)))
    assert half.weights + half.gradients + half.optimizer == 16 * size and half.copies == 2 * size
    split = memory(run(preset("llama-2-7b", 32_000)), Layout(shard=64))
    assert split.weights + split.gradients + split.optimizer == pytest.approx(16 * size / 64)  # figure 1 of the paper: 16 Psi / N


def test_activations_of_a_7b_by_hand() -> None:
    model = preset("llama-2-7b", 32_000)
    layer = 12 * 4096 + 4 * 128 * 64 + 6 * 11008
    assert kept_bytes(model, half=True) == layer == 147_968
    assert activation_bytes(model, 4096, "none", half=True) == 4096 * 32 * (layer + 4 * 4096)
    assert activation_bytes(model, 4096, "full", half=True) == 4096 * (2 * layer + 32 * 4 * 4096)
    cheap = 2 * (2 * 4096 + 11008)  # what both norms give, the gated product
    assert activation_bytes(model, 4096, "selective", half=True) == 4096 * (32 * (layer + 4 * 4096) - 31 * cheap)
    split = 2 * (2 * 4096 + 11008 / 2)  # what the norms give is whole on each device
    assert cheap_bytes(model, True, tensor=2) == split and cheap_bytes(model, True, 2, 4) == split / 4


VARIANTS: dict[str, dict[str, object]] = {
    "llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": "head"}, "window": {"window": 64},
    "mixtral": {"experts": {"count": 8, "per_token": 2, "intermediate_size": 176}},
    "qwen2-moe": {"qkv_bias": True, "experts": {"count": 16, "per_token": 4, "intermediate_size": 88, "shared_size": 200}},
    "olmoe": {"qk_norm": "whole", "experts": {"count": 16, "per_token": 8, "intermediate_size": 64, "normalised": False}},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_parts_of_a_variant_are_those_of_the_built_model(variant: dict[str, object]) -> None:
    built = Transformer(tiny(num_layers=2, hidden_size=8, variant=variant))
    named = {name: weight for name, weight in built.named_parameters()}
    parts = parameters(built.config)
    assert parts.count == sum(weight.numel() for weight in named.values()) == count_parameters(built.config)
    assert parts.attention == sum(weight.numel() for name, weight in named.items() if "self_attn" in name and weight.ndim == 2)
    assert parts.feed_forward == sum(weight.numel() for name, weight in named.items() if "mlp" in name)
    assert sum(3 * 8 * size for size in feed_forwards(built.config)) == sum(
        weight.numel() for name, weight in named.items() if "mlp" in name and "gate.weight" not in name
    )


def test_operations_of_a_mixture_by_hand() -> None:
    # Two of four experts of 3x 6x4 and a router of 4x4 instead of 96; a window of 2 leaves 28 / 2 of 64 / 2 pairs.
    experts = {"count": 4, "per_token": 2, "intermediate_size": 6, "shared_size": 5}
    counted = operations(tiny(variant={"experts": experts, "window": 2}), 8)
    assert counted.feed_forward == 2 * (2 * 72 + 16 + 60 + 4)
    assert counted.scores == 4 * 2 * 2 * (64 - 36) / 2 / 8
    assert parameters(tiny(variant={"experts": experts})).feed_forward == 4 * 72 + 16 + 60 + 4


def test_experts_are_not_split_over_layers_tokens_or_heads() -> None:
    model = preset("moe-6m", 512, num_kv_heads=6)
    batch = Batch(8, 8, 64)
    assert run(model, batch=batch).on(Layout(data=2, shard=4)) is not None
    assert [run(model, batch=batch).on(layout) for layout in (Layout(tensor=2), Layout(context=2), Layout(pipeline=2))] == [None] * 3
    whole = tiny(hidden_size=8, num_kv_heads=2, variant={"qk_norm": "whole"})
    assert run(whole, batch=batch).on(Layout(tensor=2)) is None and run(whole, batch=batch).on(Layout(context=2)) is not None


@pytest.mark.parametrize("variant", [VARIANTS[name] for name in VARIANTS if name != "window"])  # a GPU's kernel needs no mask
def test_what_torch_keeps_of_a_layer_is_what_is_counted(monkeypatch: pytest.MonkeyPatch, variant: dict[str, object]) -> None:
    """Bytes of the different tensors that autograd keeps, from the difference of two depths, without the copies of the weights.

    With torch's fused attention, as on a GPU: attention in blocks, which a CPU takes, keeps its probabilities too.
    """
    monkeypatch.setattr(attention, "fits", lambda *_: False)
    kept = {}
    for depth in (1, 3):
        model = Transformer(preset("llama-1m", 64, num_layers=depth, variant=variant))
        own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        found: dict[int, torch.Tensor] = {}
        pack = lambda tensor, found=found: found.setdefault(tensor.untyped_storage().data_ptr(), tensor) is None or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
            model(torch.arange(256)[None] % 64, Packed.packed([256]))
        kept[depth] = sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in own)
    layer = parameters(model.config).layers / 3
    assert ((kept[3] - kept[1]) / 2 - 2 * layer) / 256 == pytest.approx(kept_bytes(model.config, half=True), rel=0.08)


def test_every_optimizer_has_its_bytes() -> None:
    parts = parameters(preset("llama-1m", 512, tied=False))
    names = get_args(OptimizerConfig.model_fields["name"].annotation)
    assert set(names) == set(STATE_BYTES)
    per = {name: state_bytes(parts, optimizer(name)) / parts.count for name in names}
    assert (per["adamw"], per["lion"], per["sgd"], per["adafactor"]) == (8, 4, 4, 0)
    assert state_bytes(parts, optimizer("sgd", momentum=0.0)) == 0
    assert state_bytes(parts, optimizer("lion", ema_decay=0.99)) == 8 * parts.count
    assert 4 < per["muon"] < 8 and 2 < per["adamw8bit"] == per["paged-adamw8bit"] < 8


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "sgd", "adafactor"])
def test_an_optimizers_bytes_are_those_it_holds(name: str) -> None:
    model = Transformer(preset("llama-1m", 512, num_layers=1, tied=False))
    optimizers = build(model, optimizer(name))
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    for one in optimizers:
        one.step()
    held = [value for one in optimizers for state in one.state.values() for value in state.values()]
    counted = sum(value.nbytes for value in held if isinstance(value, torch.Tensor) and value.ndim)
    assert counted == pytest.approx(
        state_bytes(parameters(model.config), optimizer(name)), rel=0.001, abs=0.02 * 4 * count_parameters(model.config)
    )


def test_a_cache_by_hand() -> None:
    # Llama 2 7B, 4,096 tokens in half precision: 2 x 32 layers x 4,096 x 2 bytes a token = 512 KiB.
    assert cache_bytes(preset("llama-2-7b", 32_000), 4096, half=True) == 4096 * 512 * 1024
    assert cache_bytes(preset("llama-2-70b", 32_000), 1, half=True) == 2 * 80 * 8 * 128 * 2


def test_a_batch_is_shared_evenly_or_not_at_all() -> None:
    whole = Batch(rows=12, accumulation=1, length=256)
    assert whole.split(1) == whole
    assert whole.split(4) == Batch(3, 1, 256)
    assert whole.split(8) is None and whole.split(24) is None
    assert Batch(8, 4, 16).split(2) == Batch(8, 2, 16)
    assert Batch(8, 4, 16).split(1, rows=3) == Batch(2, 16, 16)  # 3 does not divide 32


@pytest.mark.parametrize("name", ["llama-15m", "llama-1b", "llama-2-70b"])
@pytest.mark.parametrize(("rule", "half"), [("adamw", True), ("lion", True), ("sgd", False), ("adamw", False)])
def test_more_devices_in_a_group_never_need_more_memory_each(name: str, rule: str, half: bool) -> None:
    whole = run(preset(name, 32_000), batch=Batch(2, 64, 512), optimizer=rule, half=half, activations="none")
    sides = (1, 2, 4, 8, 16, 32)
    taken = {}
    for data, shard, tensor in itertools.product((1, 2), sides, (1, 2, 4)):
        layout = Layout(data, shard, tensor)
        mine = whole.on(layout)
        if mine is not None:
            taken[layout] = memory(mine, layout).total
    tables_rule = name == "llama-15m"  # gathered tables of 32,000 rows outweigh half of so small a model: from two shards on it holds
    for layout, bytes_ in taken.items():
        more = [Layout(layout.data, layout.shard, 2 * layout.tensor)]
        more += [] if tables_rule and layout.shard == 1 else [Layout(layout.data, 2 * layout.shard, layout.tensor)]
        for other in more:
            assert other not in taken or taken[other] <= bytes_, (str(layout), str(other))
    assert len(taken) > 20


def test_layouts_multiply_to_the_devices_and_the_simplest_is_first() -> None:
    for devices in (1, 2, 8, 64):
        found = layouts(devices)
        assert all(layout.devices == devices for layout in found) and len(set(found)) == len(found)
        assert found[0] == Layout(data=devices)
    assert [str(layout) for layout in layouts(2)] == ["data 2", "shard 2", "tensor 2", "pipeline 2", "context 2"]
    assert run(preset("llama-2-70b", 32_000)).on(Layout(tensor=16)) is None  # eight key-value heads


def test_tensor_parallelism_shares_all_but_norms_and_what_products_read() -> None:
    whole = run(preset("llama-2-7b", 32_000))
    one, two = memory(whole), memory(whole, Layout(tensor=2))
    parts = parameters(whole.model)
    assert two.weights == 4 * ((parts.count - parts.norms) / 2 + parts.norms)
    shared = 2 * (8 * 4096 + 4 * 128 * 64 + 6 * 11008) + 32 * 4 * 4096  # two layers are there at a time, what enters is kept of all
    assert one.activations - two.activations == 1024 * shared / 2
    head = 4 * 32_000 * 4096
    assert (one.logits, two.logits) == (8 * 32_000_000 + head, 8 * 1024 * 32_000 / 2 + head / 2)
    kept = run(preset("llama-2-7b", 32_000), activations="none")
    counted = operations(whole.model, 1024)
    assert device_operations(kept, Layout()) == counted.training
    assert device_operations(kept, Layout(tensor=2)) == device_operations(kept, Layout(context=2)) == counted.training / 2
    assert device_operations(whole, Layout()) == counted.training + counted.total - counted.head


def test_context_parallelism_shares_tokens_and_no_weights() -> None:
    whole = run(preset("llama-2-70b", 32_000), activations="none")
    one, four = memory(whole), memory(whole, Layout(context=4))
    assert (one.weights, one.optimizer, one.copies) == (four.weights, four.optimizer, four.copies)
    keys_and_values, final = 80 * 4 * 128 * 8, 8 * 8192  # of all tokens on every device
    assert four.activations == one.activations / 4 + 1024 * (keys_and_values + final)
    both = Layout(tensor=2, context=2)
    assert (both.devices, both.streams, str(both)) == (4, 1, "tensor 2, context 2")
    assert memory(whole, both).activations < memory(whole, Layout(tensor=2)).activations


def test_a_sharded_run_holds_its_slice_and_what_is_gathered_by_hand() -> None:
    whole = run(preset("llama-2-7b", 32_000), half=False)
    split = memory(whole, Layout(shard=8))
    layer, tables = (6_738_415_616 - 2 * 131_072_000) / 32, 2 * 131_072_000
    assert split.weights == split.gradients == 4 * 6_738_415_616 / 8 and split.optimizer == 6_738_415_616
    assert split.copies == pytest.approx(4 * (3 * layer + 2 * tables))


def test_in_half_precision_a_sharded_run_gathers_layers_in_half_and_keeps_no_copy_of_them() -> None:
    whole = run(preset("llama-2-7b", 32_000))
    split = memory(whole, Layout(shard=8))
    layer, table = (6_738_415_616 - 2 * 131_072_000) / 32, 131_072_000
    # Two layers and a gradient in 2 bytes, the gradient's sum in 4; both tables with their gradients in 4, the head's copy in 2.
    assert split.copies == pytest.approx(layer * (2 * 2 + 2 + 4) + table * (2 * 8 + 2))
    cut = replace(whole, batch=Batch(2, 4, 1024))
    with_pipeline, plain = memory(cut, Layout(shard=2, pipeline=2)), memory(replace(cut, half=False), Layout(shard=2, pipeline=2))
    assert with_pipeline.copies > plain.copies, "a pipeline gathers fp32, beside autocast's copies"


def test_slices_on_the_host_leave_the_tables_on_the_device() -> None:
    whole = replace(run(preset("llama-2-7b", 32_000)), offload=True)
    host, device, tables = memory(whole, Layout(shard=8)), memory(replace(whole, offload=False), Layout(shard=8)), 2 * 131_072_000
    assert (host.weights, host.gradients, host.optimizer) == (4 * tables / 8, 4 * tables / 8, 8 * tables / 8)
    assert (host.copies, host.activations, host.logits) == (device.copies, device.activations, device.logits)
    assert memory(whole).weights == 4 * tables, "also on one device"
    assert whole.on(Layout()) and whole.on(Layout(shard=2)) and whole.on(Layout(2, 2))
    assert not any(whole.on(layout) for layout in (Layout(data=2), Layout(shard=2, tensor=2), Layout(context=2), Layout(pipeline=2)))
    assert replace(whole, optimizer=optimizer("muon")).on(Layout()) is None


def test_activations_on_the_host_leave_a_layer_with_its_gradients() -> None:
    model = preset("llama-2-7b", 32_000)
    assert activation_bytes(model, 4096, "offload", half=True) == 4096 * (2 * 147_968 + 4 * 4096)
    assert slower_modes("selective") == ["selective", "full"] and slower_modes("offload") == ["offload"]
    assert set(RECOMPUTED) == set(get_args(TrainConfig.model_fields["activations"].annotation))


def test_optimizers_of_whole_matrices_are_not_sliced() -> None:
    assert set(SLICED) == set(ELEMENTWISE)
    assert run(preset("llama-2-7b", 32_000), optimizer="muon").on(Layout(shard=2)) is None
    assert run(preset("llama-2-7b", 32_000), optimizer="muon").on(Layout(data=2)) is not None


def test_a_pipeline_shares_layers_and_waits() -> None:
    """Muon cannot slice matrices, but a stage has whole ones."""
    whole = run(preset("llama-2-7b", 32_000), optimizer="muon", activations="none", batch=Batch(8, 2, 1024))
    layout = Layout(pipeline=4)
    part = whole.on(layout)
    assert part is not None and part.batch == Batch(4, 4, 1024)  # a micro-batch for every stage
    assert bubble(layout, 4) == 3 / 7 and bubble(Layout(data=4), 4) == 0
    assert bubble(layout, 4, stages=2) == 3 / 11 and bubble(Layout(data=4), 4, stages=2) == 0
    mine, counted = memory(part, layout), parameters(whole.model)
    table = 32_000 * 4096
    assert mine.weights == 4 * ((counted.attention + counted.feed_forward + counted.norms - 4096) / 4 + 4096 + table)
    layers = 4096 * 8 * (147_968 + 4 * 4096)
    received = 4 * 4 * 4096 * 4096
    assert (mine.activations, mine.logits) == (4 * layers + received, 0)  # the first stage has four under way, the last one the loss
    kept = operations(whole.model, 1024)
    assert device_operations(part, layout) == pytest.approx(3 * ((kept.total - kept.head) / 4 + kept.head))
    assert whole.on(Layout(pipeline=32)) is None and whole.on(Layout(pipeline=2, shard=2)) is None


def test_an_interleaved_pipeline_waits_less_and_holds_more() -> None:
    """Two runs of layers on each of two devices: before the first backward pass of the first device 2 + 2 + 1 runs have gone forward."""
    plain = run(preset("llama-2-7b", 32_000), activations="none", batch=Batch(1, 8, 1024))
    layout, interleaved = Layout(pipeline=2), replace(plain, stages=2)
    part = interleaved.on(layout)
    assert part is not None and part.fills(layout) and part.under_way(layout) == 5 / 2 and plain.under_way(layout) == 2
    assert memory(part, layout).activations > memory(plain, layout).activations
    assert interleaved.on(Layout(pipeline=32)) is None, "32 layers give no 64 runs"
    assert not replace(part, batch=Batch(1, 5, 1024)).fills(layout), "five micro-batches make no two equal rounds"
    assert replace(plain, batch=Batch(1, 5, 1024)).fills(layout)


def test_the_last_device_of_an_interleaved_pipeline_by_hand() -> None:
    """7B, vocabulary 128,000: four runs of layers take rounds of two micro-batches, so (3 x 2 + 1) / 4 are under way on the last device."""
    model, layout = preset("llama-2-7b", 128_000), Layout(pipeline=2)
    part = replace(run(model, activations="none", batch=Batch(1, 8, 1024)), stages=4, gpu=True)
    assert (part.under_way(layout, 1), part.under_way(layout, 0)) == (7 / 4, 9 / 4)
    assert [replace(part, stages=1).under_way(Layout(pipeline=4), rank) for rank in range(4)] == [4, 3, 2, 1]
    mine = memory(part, layout)
    received = 4 * (4 * 8 * 1024) * 4096  # what every run of layers is handed, of all micro-batches
    assert mine.activations == 7 / 4 * 1024 * 16 * (147_968 + 4 * 4096) + received
    assert mine.logits == 2 * 2 * 1024 * 4096 + 2 * 4 * 128_000 * 4096
    assert round((mine.activations + mine.logits) / 1e9, 2) == 9.46


def test_the_fullest_rank_has_the_layers_that_the_engine_gives_it() -> None:
    assert rank_layers(80, 8, 4) == [12, 8] * 4 and rank_layers(12, 2, 4) == [8, 4]
    model = preset("llama-2-7b", 32_000, num_layers=12)
    layout, part = Layout(pipeline=2), replace(run(model, half=False, activations="none"), stages=4)
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert memory(part, layout).weights == 4 * (8 * layer + 32_000 * 4096 + 4096)
    counted = operations(model, 1024)
    assert device_operations(part, layout) == pytest.approx(3 * ((counted.total - counted.head) * 8 / 12 + counted.head))


def test_a_pipelines_device_between_its_ends_has_no_table() -> None:
    """Five layers on three devices are 2, 2 and 1: with a small vocabulary the first is the fullest, with a large one it or the last."""
    for size in (1000, 1_000_000):
        model = preset("llama-2-7b", size, num_layers=5)
        assert memory(run(model, half=False), Layout(pipeline=3)).weights >= 4 * (2 * 4 * 4096**2 + size * 4096)


@pytest.mark.parametrize(("count", "pipeline", "stages"), [(8, 2, 2), (5, 2, 2), (5, 2, 1), (1, 2, 1), (6, 4, 3), (9, 4, 2), (12, 4, 2)])
def test_what_fills_a_pipeline_is_what_the_engine_takes(count: int, pipeline: int, stages: int) -> None:
    part = replace(run(preset("llama-2-7b", 32_000), batch=Batch(1, count, 64)), stages=stages)
    if part.fills(Layout(pipeline=pipeline)):
        check_count(count, pipeline, stages)
    else:
        with pytest.raises(ConfigError):
            check_count(count, pipeline, stages)


def test_an_adapter_is_trained_alone_by_hand() -> None:
    model, size = preset("llama-2-7b", 32_000), 6_738_415_616
    full = run(model, half=False)
    lora = replace(full, adapter=AdapterCost(2 * 19_988_480))  # rank 16
    whole, mine = memory(full), memory(lora)
    assert (mine.weights, mine.gradients, mine.optimizer) == (4 * size, 0, 0)
    assert mine.adapters == 16 * 2 * 19_988_480 and whole.adapters == 0
    assert mine.activations == whole.activations and mine.copies == 0
    assert whole.logits - mine.logits == 4 * 32_000 * 4096, "a frozen head has no gradient"
    split, layer, tables = memory(lora, Layout(shard=8)), (size - 2 * 131_072_000) / 32, 2 * 131_072_000
    assert split.adapters == mine.adapters / 8 and split.weights == 4 * size / 8
    assert split.copies == pytest.approx(4 * (2 * layer + tables)), "gathered without gradients"
    cut = replace(lora, batch=Batch(1, 2, 1024))
    assert memory(cut, Layout(pipeline=2)).adapters == mine.adapters / 2
    assert memory(replace(lora, half=True)).copies == 2 * (size + 2 * 19_988_480)
    # Sliced and in half: two layers gathered without a gradient, the whole adapter's copies, tables in fp32, the head's copy.
    sliced = memory(replace(lora, half=True), Layout(shard=8))
    assert sliced.copies == pytest.approx(2 * 2 * layer + 2 * 2 * 19_988_480 + 4 * tables + 2 * tables / 2)


def test_trained_weights_of_the_model_itself_are_counted_once() -> None:
    model, size = preset("llama-2-7b", 32_000), 6_738_415_616
    beside = replace(run(model, half=False), adapter=AdapterCost(1_000_000))
    inside = replace(beside, adapter=AdapterCost(1_000_000, own=1_000_000))
    assert memory(inside).weights == memory(beside).weights == 4 * size
    assert memory(beside).adapters == 16_000_000 and memory(inside).adapters == 12_000_000, "gradient and both moments"
    assert memory(replace(inside, half=True)).copies == 2 * size
    assert AdapterCost(8, own=4).of_layers(0.5) == AdapterCost(4, own=2)


@pytest.mark.parametrize(
    ("name", "each"), [("adamw", 8), ("muon", 4), ("lion", 4), ("adamw8bit", 2), ("paged-adamw8bit", 2), ("adafactor", 0)]
)
def test_an_adapters_state_is_that_of_matrices(name: str, each: int) -> None:
    assert AdapterCost(1000).state_bytes(optimizer(name)) == each * 1000


def test_samples_keep_keys_and_values_in_fp32_on_every_device() -> None:
    whole = replace(run(preset("llama-2-7b", 32_000)), cached=4096)
    assert memory(whole).cache == memory(whole, Layout(shard=8)).cache == 4096 * 1024 * 1024
    assert memory(replace(whole, cached=0)).cache == 0
    assert memory(whole).total - memory(replace(whole, cached=0)).total == 4096 * 1024 * 1024


def test_the_loss_by_hand() -> None:
    assert cost.CHUNK_LOGITS == language_model.CHUNK_LOGITS
    model, head, states = preset("llama-2-7b", 32_000), 32_000 * 4096, 4096 * 4096
    chunk = 262 * 32_000  # 2^23 / 32,000 positions
    assert loss_bytes(model, 4096, half=False) == max(8 * chunk + 4 * states + 4 * head, 8 * states + 8 * head) == 8 * states + 8 * head
    assert loss_bytes(model, 4096, half=False, trained=False) == 2 * 4 * states > 4 * states + 8 * 262
    assert loss_bytes(model, 4096, half=True) == 2 * 2 * states + 2 * 4 * head
    small = preset("llama-1m", 8192)
    width = small.hidden_size
    assert loss_bytes(small, 4096, half=True) == 12 * 1024 * 8192 + 2 * 4096 * width + 6 * 8192 * width
    assert loss_bytes(small, 1000, half=False) == 4 * 1000 * 8192 + 4 * 1000 * width + 4 * 8192 * width, "one chunk"
    assert loss_bytes(small, 8192, half=False, tensor=2) == 8 * 2048 * 4096 + 4 * 8192 * width + 4 * 4096 * width
    whole = run(preset("llama-2-7b", 32_000))
    assert memory(replace(whole, gpu=True)).logits == loss_bytes(whole.model, 1024, half=True) != memory(whole).logits


@pytest.mark.parametrize("tokens", [48, 512])
@pytest.mark.parametrize("trained", [True, False])
def test_the_loss_takes_what_is_counted(tokens: int, trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most bytes that the allocator gave during one loss and its backward pass, in fp32."""
    for module in (cost, language_model):
        monkeypatch.setattr(module, "CHUNK_LOGITS", 64 * 4096)
    model = preset("llama-1m", 4096)
    hidden = torch.randn(tokens, model.hidden_size, requires_grad=True)
    head = torch.randn(4096, model.hidden_size, requires_grad=trained)
    targets = torch.randint(4096, (tokens,))
    asked = [hidden, head] if trained else [hidden]
    taken = most_allocated(lambda: torch.autograd.grad(linear_cross_entropy(hidden, head, targets), asked))
    counted = loss_bytes(model, tokens, half=False, trained=trained)
    assert 0.9 * counted <= taken <= 1.15 * counted


def most_allocated(work: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    sizes: list[tuple[int, int]] = []
    events = list(profiled.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    while events:
        event = events.pop()
        events += event.children
        if hasattr(event.extra_fields, "alloc_size"):
            sizes.append((event.start_time_ns, event.extra_fields.alloc_size))
    return max(itertools.accumulate(size for _, size in sorted(sizes)))
