"""Ways to run a training stage elsewhere: what fits, in which layout, for how much; and a probe of real steps here."""

import dataclasses
import inspect
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy import write_recipe  # noqa: E402

from luyen.adapters.adapt import adapt  # noqa: E402
from luyen.adapters.config import AdapterConfig  # noqa: E402
from luyen.core.config import load, parse_overrides  # noqa: E402
from luyen.engine import cost  # noqa: E402
from luyen.engine.devices import DEVICES, usable_bytes  # noqa: E402
from luyen.engine.estimate import FIRST_STEP_BYTES, LIBRARIES_BYTES, Speed  # noqa: E402
from luyen.engine.layouts import Batch, Layout  # noqa: E402
from luyen.inference.generate import generate  # noqa: E402
from luyen.models.presets import preset  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.recipe import estimate, probe  # noqa: E402
from luyen.recipe.configs import PretrainConfig, SFTConfig  # noqa: E402
from luyen.recipe.graph import Plan, StagePlan, plan  # noqa: E402
from luyen.recipe.planning import LORA_RANK, TEMPLATE_TOKENS, TOGETHER, Assumptions, TrainingPlan, candidates, outline  # noqa: E402
from luyen.recipe.probe import random_samples  # noqa: E402
from luyen.recipe.sizes import SAMPLE_TOKENS  # noqa: E402


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not this machine's speed."""
    monkeypatch.setattr(estimate, "measure_speed", lambda device, dtype: Speed(2e11, 4e10))
    monkeypatch.setattr(estimate, "measure_pace", lambda *_: 1.0)
    monkeypatch.setattr(estimate, "pace", lambda: 1.0)


def assumed(**changes: Any) -> Assumptions:
    return Assumptions(**{"devices": DEVICES, "mfu": 0.4, "prices": {}, "intensity": None, "pue": 1.0, "most": 64, **changes})


def pretraining(*words: str, **changes: Any) -> TrainingPlan:
    values = {"data": "-", "tokenizer": "-", **parse_overrides(words)}
    stage = StagePlan("pretrain", "pretrain", load(PretrainConfig, values), ())
    return outline(Plan("pretrain", "", 0, "", (stage,), {}), assumed(**changes), 32_000).trainings["pretrain"]


SEVEN = ("model.preset=llama-2-7b", "batch.rows=4", "batch.length=4096", "train.accumulation=256", "train.steps=500")


def test_the_hours_of_a_way_by_hand() -> None:
    item = pretraining(*SEVEN, prices={"a100": 2.0}, intensity=385.0, pue=1.1)
    tokens = 500 * 1024 * 4096
    assert item.tokens == tokens and item.operations == cost.operations(preset("llama-2-7b", 32_000), 4096).training * tokens
    kept = [way for way in item.ways if way.device == "a100" and way.part.activations == "none" and way.layout.tensor == 1]
    assert kept
    for way in kept:
        hours = item.operations / (312e12 * 0.4) / 3600
        assert way.device_hours == pytest.approx(hours) and way.seconds == pytest.approx(hours * 3600 / way.layout.devices)
        assert way.kwh == pytest.approx(hours * 0.4 * 1.1) and way.grams == pytest.approx(way.kwh * 385)
        assert way.money == pytest.approx(2 * hours) and way.kilograms == pytest.approx(way.kwh * 0.385)
    assert all(way.money is None for way in item.ways if way.device != "a100")
    again = {way.part.activations: way for way in item.ways if way.device == "a100-40"}
    plain, some, all_of_it = (again[mode].device_hours for mode in ("none", "selective", "full"))
    assert plain == pytest.approx(item.operations / (312e12 * 0.4) / 3600) and plain < some < all_of_it


def test_every_way_fits_and_keeps_the_global_batch() -> None:
    item = pretraining(*SEVEN)
    assert {way.device for way in item.ways} == set(DEVICES) and not item.refused
    for way in item.ways:
        assert way.bytes == cost.memory(way.part, way.layout).total <= usable_bytes(DEVICES[way.device])
        assert way.part.batch.rows * way.part.batch.accumulation * way.layout.streams == 4 * 256
        assert way.layout.devices & (way.layout.devices - 1) == 0 and way.layout.devices <= 64


def test_what_fits_on_a_device_fits_on_more_of_them() -> None:
    item = pretraining(*SEVEN)
    for name, ways in itertools.groupby(item.ways, key=lambda way: way.device):
        counts = [way.layout.devices for way in ways]
        assert counts == [2**power for power in range(7) if 2**power >= counts[0]], name


def test_the_cheapest_is_the_least_money_on_the_fewest_devices() -> None:
    item = pretraining(*SEVEN, prices={"h100": 2.5, "a100": 0.9})
    best = item.cheapest
    assert best is not None and best.money is not None
    priced = [way.money for way in item.ways if way.money is not None]
    assert best.money == min(priced)
    assert best.layout.devices == min(way.layout.devices for way in item.ways if way.money == best.money)
    without = pretraining(*SEVEN).cheapest
    assert without is not None and without.kwh == min(way.kwh for way in item.ways)


def test_the_settings_of_a_way_give_the_same_update() -> None:
    item = pretraining(*SEVEN, devices={"h100": DEVICES["h100"]})
    for way in item.ways:
        words = way.settings(item.training)
        config = load(PretrainConfig, {"data": "-", "tokenizer": "-", **parse_overrides([*SEVEN, *words])})
        assert config.batch.rows * config.train.accumulation == 4 * 256
        assert (config.train.parallel.shard, config.train.parallel.tensor) == (way.layout.shard, way.layout.tensor)
        assert config.train.parallel.data in (0, way.layout.data)
        assert config.batch.rows == way.part.batch.rows and config.train.activations == way.part.activations
    small = pretraining("model.preset=llama-1m")
    assert small.cheapest is not None and small.cheapest.settings(small.training) == []


def test_the_simplest_is_tried_first() -> None:
    training = pretraining(*SEVEN).training
    tried = list(candidates(training, 4))
    assert tried[0] == (Layout(data=4), dataclasses.replace(training, batch=Batch(4, 64, 4096)))
    assert [part.batch.rows for layout, part in tried if layout == Layout(data=4)][:3] == [4, 2, 1]
    modes = list(cost.RECOMPUTED)
    order = [(layout.context > 1, layout.pipeline > 1, layout.tensor > 1, modes.index(part.activations)) for layout, part in tried]
    assert order == sorted(order)
    assert list(candidates(dataclasses.replace(training, batch=Batch(3, 1, 64)), 4)) == list(
        (layout, part) for layout, part in candidates(dataclasses.replace(training, batch=Batch(3, 1, 64)), 4) if layout.streams == 1
    )  # three rows go to one or three readers, so four devices work on one layer


@pytest.mark.parametrize(("frozen_bytes", "shards"), [(4.0, {1, 2, 4}), (0.52, {1})], ids=["in numbers", "in few bits"])
def test_with_an_adapter_no_layout_is_tried_that_the_engine_refuses(frozen_bytes: float, shards: set[int]) -> None:
    training = dataclasses.replace(pretraining(*SEVEN).training, adapter=cost.AdapterCost(1_000_000, frozen_bytes))
    tried = [layout for layout, _ in candidates(training, 4)]
    assert all(layout.tensor == layout.pipeline == layout.context == 1 for layout in tried)
    assert {layout.shard for layout in tried} == shards


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    item = pretraining("model.preset=llama-2-70b", "batch.length=4096", "train.accumulation=64", most=2)
    assert not item.ways and item.cheapest is None
    assert "GB at least on each of 2, it has 75" in item.refused["h100"]
    assert pretraining(*SEVEN, "train.precision=bf16").refused == {"t4": "has no bf16", "v100": "has no bf16"}
    muon = pretraining(*SEVEN, "train.optimizer.name=muon")
    assert all(way.layout.shard == way.layout.tensor == 1 for way in muon.ways) and "l4" in muon.refused


def test_fp32_takes_longer_and_no_copies() -> None:
    half, single = pretraining("model.preset=llama-350m"), pretraining("model.preset=llama-350m", "train.precision=fp32")
    assert single.memory.copies == 0 < half.memory.copies and half.memory.activations < single.memory.activations
    times = [next(way.seconds for way in item.ways if way.device == "a100") for item in (half, single)]
    assert times[1] / times[0] == pytest.approx(312 / 19.5)


def test_a_recipe_has_its_training_stages_and_unknown_models_are_left_out(tmp_path: Path) -> None:
    made = plan(write_recipe(tmp_path), {})
    found = outline(made, assumed())
    assert list(found.here) == [stage.name for stage in made.stages] and list(found.trainings) == ["base", "chat"]
    base, chat = found.trainings["base"], found.trainings["chat"]
    assert base.tokens == 4 * 2 * 64 and base.training.model.vocab_size == 400
    assert "tokens per parameter" in base.advice and base.unique is not None and chat.advice == ""
    assert chat.trained == estimate.ANSWER_SHARE < base.trained == 1
    unknown = outline(plan(write_recipe(tmp_path), parse_overrides(["chat.model=some/model"])), assumed())
    assert list(unknown.trainings) == ["base"] and unknown.here["chat"].seconds is None


def test_a_verb_needs_the_vocabulary() -> None:
    stage = StagePlan("pretrain", "pretrain", load(PretrainConfig, {"data": "-", "tokenizer": "-"}), ())
    made = Plan("pretrain", "", 0, "", (stage,), {})
    assert outline(made, assumed()).trainings == {} and outline(made, assumed()).here["pretrain"].seconds is None
    told = outline(made, assumed(), 5000)
    assert told.trainings["pretrain"].training.model.vocab_size == 5000 and told.here["pretrain"].seconds is not None


def test_random_rows_are_full_and_have_the_targets() -> None:
    samples = random_samples(100, 32, 3, 0.25)
    assert len(samples) == 3 and all(len(sample.tokens) == 32 and sample.num_targets == 8 for sample in samples)
    assert all(sample.tokens.max() < 100 and (sample.targets[24:-1] == sample.tokens[25:]).all() for sample in samples)


@pytest.mark.parametrize("kind", [PretrainConfig, SFTConfig])
def test_a_probe_does_real_steps_and_leaves_nothing(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(probe.tempfile, "tempdir", None)
    given = {"data": "-", "tokenizer": "-"} if kind is PretrainConfig else {"data": "-", "model": "-"}
    train = {"steps": 500, "accumulation": 2, "device": "cpu", "parallel": {"shard": 2}, "watch": {"patience": 1}}
    config = load(kind, {**given, "batch": {"rows": 1, "length": 16}, "train": train})
    model = preset("llama-1m", 64, num_layers=1)
    found = probe.probe(config, model, predicted=1e6, steps=5)
    assert found.steps == 5 and found.step_seconds > 0 and found.bytes > 1e7
    assert found.expected_bytes > LIBRARIES_BYTES + FIRST_STEP_BYTES
    alone = estimate.of_stage(config, model).seconds(Speed(2e11, 4e10))
    assert found.seconds == pytest.approx(500 * found.step_seconds + 1e6 - alone)
    assert not list(tmp_path.glob("luyen-*"))


def test_memory_on_one_gpu_is_told_by_part() -> None:
    facts = pretraining(*SEVEN).as_dict()
    assert facts["memory_one_device"]["total"] == sum(value for name, value in facts["memory_one_device"].items() if name != "total")
    assert facts["parameters"]["total"] == 6_738_415_616 and facts["cache_bytes_per_token"] == 512 * 1024
    assert facts["cheapest"]["settings"]


@pytest.mark.parametrize("word", ["train.precision=fp8", "train.compile=always"])
def test_no_way_is_told_that_the_engine_refuses(word: str) -> None:
    """70B on one size of device wants a tensor group, which takes no products apart and no compiled layers."""
    words = ("model.preset=llama-2-70b", "batch.rows=4", "batch.length=4096", "train.accumulation=128", "train.steps=500")
    plain = pretraining(*words)
    assert any(way.layout.tensor > 1 for way in plain.ways)
    found = pretraining(*words, word)
    assert all(way.layout.tensor == 1 for way in found.ways)
    if "compile" in word:
        assert all(way.layout.pipeline * way.layout.context == 1 and way.part.activations != "selective" for way in found.ways)


LONG = ("model.preset=llama-2-7b", "model.context_length=131072", "batch.rows=1", "batch.length=131072", "train.accumulation=4")


def test_long_rows_are_shared_by_context_and_usual_ones_only_as_a_last_resort() -> None:
    item = pretraining(*LONG, devices={"h100": DEVICES["h100"]})
    ways = [way for way in item.ways if way.layout.context > 1]
    assert ways and all(way.layout.pipeline == 1 for way in item.ways)
    for way in ways:
        words = way.settings(item.training)
        assert f"train.parallel.context={way.layout.context}" in words
        assert way.bytes == cost.memory(way.part, way.layout).total <= usable_bytes(DEVICES["h100"])
    kinds = [(layout.context > 1, layout.tensor > 1) for layout, _ in candidates(item.training, 4) if layout.pipeline == 1]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [(False, False), (True, False), (False, True), (True, True)]
    usual = [layout for layout, _ in candidates(pretraining(*SEVEN).training, 4)]
    first = next(place for place, layout in enumerate(usual) if layout.context > 1)
    assert all(layout.context > 1 for layout in usual[first:]) and any(layout.pipeline > 1 for layout in usual[:first])
    muon = pretraining(*LONG, "train.optimizer.name=muon", devices={"h200": DEVICES["h200"]}, most=4)
    assert all(way.layout.shard == way.layout.tensor == 1 for way in muon.ways), "context goes with every optimizer"


def test_interleaved_stages_of_the_recipe_shorten_the_wait() -> None:
    """Muon slices no matrix, so 70B takes a pipeline."""
    words = ("model.preset=llama-2-70b", "batch.rows=1", "batch.length=1024", "train.accumulation=256", "train.optimizer.name=muon")
    kept = {"devices": {"b200": DEVICES["b200"]}} if "b200" in DEVICES else {}
    plain, interleaved = pretraining(*words, **kept), pretraining(*words, "train.parallel.pipeline_stages=2", **kept)
    pairs = [
        (one, two) for one in plain.ways for two in interleaved.ways
        if (one.device, one.layout) == (two.device, two.layout) and one.layout.pipeline > 1 and one.part.batch == two.part.batch
    ]  # fmt: skip
    assert pairs
    for one, two in pairs:
        stages, count = one.layout.pipeline, one.part.batch.accumulation
        assert (one.bubble, two.bubble) == ((stages - 1) / (count + stages - 1), (stages - 1) / (2 * count + stages - 1))
        if one.part.activations == two.part.activations and 80 % (2 * stages) == 0:  # else one device has layers more
            assert two.seconds < one.seconds


def test_an_adapter_and_what_is_written_are_told_as_memory(tmp_path: Path) -> None:
    words = ["chat.prompts=['What is it?', 'Why?']", "before_after.batch_size=16", "before_after.sampling.max_new_tokens=8"]
    found = outline(plan(write_recipe(tmp_path), parse_overrides(words)), assumed())
    chat = found.trainings["chat"]
    model, facts = chat.training.model, chat.as_dict()
    lora = facts["memory_one_device_lora"]
    assert lora["adapters"] == 16 * facts["lora_parameters"]["count"] and lora["gradients"] == lora["optimizer"] == 0
    assert lora["total"] == sum(value for name, value in lora.items() if name != "total")
    assert chat.samples is not None
    tokens = min(model.context_length, len("What is it?") + TEMPLATE_TOKENS + SAMPLE_TOKENS)
    assert (chat.samples.rows, chat.samples.tokens) == (2, tokens)
    assert chat.memory.cache == chat.samples.bytes == cost.cache_bytes(model, 2 * tokens, half=False)
    assert chat.samples.most == cost.cache_bytes(model, 2 * model.context_length, half=False)
    assert facts["samples"]["cache_bytes_full_context"] == chat.samples.most
    asked = found.evaluations["before_after"]
    assert (asked.rows, asked.new_tokens, asked.tokens, asked.half) == (16, 8, model.context_length, False)
    assert asked.bytes == asked.most == cost.cache_bytes(model, 16 * model.context_length, half=False)
    half = outline(plan(write_recipe(tmp_path), parse_overrides([*words, "before_after.precision=bf16"])), assumed())
    assert half.evaluations["before_after"].bytes == asked.bytes / 2
    for precision, device, share in (("auto", "cpu", 1), ("bf16", "cpu", 2)):
        chosen = parse_overrides([*words, f"before_after.precision={precision}", f"before_after.device={device}"])
        assert outline(plan(write_recipe(tmp_path), chosen), assumed()).evaluations["before_after"].bytes == asked.bytes / share
    silent = pretraining("model.preset=llama-1m")
    assert silent.samples is None and silent.memory.cache == 0


@pytest.mark.parametrize("name", ["moe-6m", "llama-2m"])
def test_loras_column_counts_the_adapter_of_the_models_family(name: str) -> None:
    found = pretraining(f"model.preset={name}")
    made = Transformer(found.training.model)
    adapt(made, AdapterConfig(method="lora", rank=LORA_RANK))
    count = sum(each.numel() for each in made.parameters() if each.requires_grad)
    facts = found.as_dict()
    assert facts["lora_parameters"] == {"rank": LORA_RANK, "count": count}
    assert facts["memory_one_device_lora"]["adapters"] == 16 * count


def test_what_is_written_at_a_time_is_what_generation_takes() -> None:
    assert inspect.signature(generate).parameters["max_rows"].default == TOGETHER
