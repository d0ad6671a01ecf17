"""What a recipe takes, on this machine and on devices that could be rented: which layouts fit, time, money, energy, CO2.

This machine is predicted as before a run (estimate.py). Other devices are counted (engine/cost.py): a stage's operations at a stated
share of a device's peak, its memory by part. What is left out is in `NOT_COUNTED`. The global batch of the recipe stays: a layout that
cannot share its rows evenly is none. When it does not fit as the recipe says, fewer rows at a time are tried, then shards, then
recomputed activations, then tensor parallelism, then pipelines, whose devices wait for each other, then context parallelism, which comes
before these two where rows are long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from luyen.adapters.config import AdapterConfig
from luyen.adapters.count import trained_weights
from luyen.core.config import dump
from luyen.core.device import pick_device, pick_dtype
from luyen.engine import carbon, cost
from luyen.engine.cost import Memory, Training
from luyen.engine.devices import Device, usable_bytes
from luyen.engine.layouts import Batch, Layout, bubble, layouts
from luyen.engine.parallel.plan import check_model
from luyen.engine.scaling import advice
from luyen.models.config import TransformerConfig
from luyen.recipe.configs import EvaluateConfig, PretrainConfig, SFTConfig, TuningConfig
from luyen.recipe.estimate import BYTES_PER_TOKEN, Outlook, Prediction, adapter_cost, predict, targets_share
from luyen.recipe.graph import Plan, StagePlan
from luyen.recipe.sizes import SAMPLE_TOKENS, row_length

NOT_COUNTED = "evaluations, loading, checkpoints, communication between devices, the computer around them"
"""What the figures of other devices leave out."""
LONG_ROW = 32_768
"""Tokens of a row from which context parallelism is tried before tensor parallelism. Llama 3 (arXiv:2407.21783, table 4) was trained
without it at 8,192 tokens and with 16 devices to a row at 131,072; this lies between."""
PLAIN, TENSOR, PIPELINE = (False, False, False), (True, False, False), (False, True, False)
CONTEXT, CONTEXT_AND_TENSOR = (False, False, True), (True, False, True)
KINDS, KINDS_OF_LONG = (PLAIN, TENSOR, PIPELINE, CONTEXT, CONTEXT_AND_TENSOR), (PLAIN, CONTEXT, TENSOR, CONTEXT_AND_TENSOR, PIPELINE)
"""Which axes beside data and shard a layout has, in the order in which they are tried (see `candidates`), for usual and for long rows."""
LORA_RANK = 16
"""Rank of the adapter whose memory is told beside that of a full fine-tuning."""
TOGETHER = 128
"""Samples that are written at a time (inference/generate.py)."""
TEMPLATE_TOKENS = 64
"""Counted for a chat template around one question; a token of text is counted as a byte, the least that it can be."""


@dataclass(frozen=True)
class Assumptions:
    """What the user states."""

    devices: Mapping[str, Device]
    mfu: float
    """Share of a device's peak that all operations reach, recomputed ones included."""
    prices: Mapping[str, float]
    """Device -> price of an hour of one; without a price there is no money."""
    intensity: float | None
    """Grams of CO2 a kWh."""
    pue: float
    """Energy of the data centre for each of its computers'."""
    most: int
    """Devices at most."""


@dataclass(frozen=True)
class Way:
    """One way to run a stage: so many devices of a kind in a layout, with what it takes."""

    device: str
    layout: Layout
    part: Training
    """What each device has of the run: its rows at a time, whether it recomputes."""
    bytes: float
    """On each device."""
    seconds: float
    device_hours: float
    kwh: float
    grams: float | None
    money: float | None

    @property
    def bubble(self) -> float:
        """Share of the time in which a pipeline's device waits."""
        return bubble(self.layout, self.part.batch.accumulation, self.part.stages)

    @property
    def kilograms(self) -> float | None:
        """Of CO2."""
        return None if self.grams is None else self.grams / 1000

    def settings(self, asked: Training) -> list[str]:
        """Settings of the stage that make it run so, where they differ from what was `asked`."""
        batch = self.part.batch
        values = {
            "batch.rows": (batch.rows, asked.batch.rows),
            "train.accumulation": (batch.accumulation * self.layout.streams, asked.batch.accumulation),
            "train.activations": (self.part.activations, asked.activations),
            **{f"train.parallel.{name}": (count, 1) for name, count in vars(self.layout).items()},
        }
        return [f"{key}={value}" for key, (value, before) in values.items() if value != before]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "device": self.device, "devices": self.layout.devices, **vars(self.layout), "rows": self.part.batch.rows,
            "accumulation": self.part.batch.accumulation, "activations": self.part.activations, "bytes": round(self.bytes),
            "bubble": self.bubble, "seconds": self.seconds, "device_hours": self.device_hours, "kwh": self.kwh,
            "co2_grams": self.grams, "money": self.money,
        }  # fmt: skip


@dataclass(frozen=True)
class Writing:
    """What a stage writes with a model."""

    model: TransformerConfig
    rows: int
    """Answers at a time."""
    new_tokens: int
    """Of an answer at most."""
    tokens: int
    """Of a prompt and its answer at most."""
    half: bool
    """Whether keys and values are in half precision."""

    @property
    def bytes(self) -> float:
        """Of the key-value cache at most."""
        return cost.cache_bytes(self.model, self.rows * self.tokens, self.half)

    @property
    def most(self) -> float:
        """The same where every row is as long as the model's context."""
        return cost.cache_bytes(self.model, self.rows * self.model.context_length, self.half)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": self.rows, "new_tokens": self.new_tokens, "tokens": self.tokens, "cache_bytes": self.bytes,
            "context_length": self.model.context_length, "cache_bytes_full_context": self.most,
        }  # fmt: skip


@dataclass(frozen=True)
class TrainingPlan:
    """A training stage, counted."""

    stage: str
    verb: str
    training: Training
    """As the recipe says, on one device."""
    steps: int
    tokens: int
    trained: float
    """Share of the tokens that have a target."""
    unique: float | None
    """Tokens of the text that it reads, where known."""
    ways: tuple[Way, ...]
    refused: Mapping[str, str]
    """Device -> why there is no way."""
    samples: Writing | None
    """What it writes at an evaluation; None: nothing."""

    @property
    def cheapest(self) -> Way | None:
        """Of the ways with a price the one of least money; without any price the one of least energy. The fewest devices of equals."""
        priced = [way for way in self.ways if way.money is not None]
        return min(priced or self.ways, key=lambda way: (way.money if priced else way.kwh, way.layout.devices), default=None)

    @property
    def operations(self) -> float:
        """Of the whole stage, forward and backward, without recomputation."""
        return cost.operations(self.training.model, self.training.batch.length, self.trained).training * self.tokens

    @property
    def memory(self) -> Memory:
        """By part, on one GPU, as the recipe says."""
        return cost.memory(self.training)

    @property
    def lora(self) -> Memory:
        """The same where an adapter of LORA_RANK on all projections is trained instead."""
        return cost.memory(replace(self.training, adapter=cost.AdapterCost(self.lora_weights)))

    @property
    def lora_weights(self) -> int:
        """Numbers of that adapter, counted on the model itself, of whatever family."""
        return trained_weights(self.training.model, AdapterConfig(method="lora", rank=LORA_RANK))

    @property
    def advice(self) -> str:
        """What is known of tokens and sizes; only for pretraining."""
        return advice(cost.parameters(self.training.model).count, self.tokens, self.unique) if self.verb == "pretrain" else ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        model, batch = self.training.model, self.training.batch
        cheapest = self.cheapest
        return {
            "verb": self.verb, "model": dump(model), "steps": self.steps, "tokens": self.tokens, "operations": self.operations,
            "parameters": {**cost.parameters(model).by_part(), "total": cost.parameters(model).count},
            "operations_per_token_forward": cost.operations(model, batch.length, self.trained).by_part(),
            "memory_one_device": {**self.memory.by_part(), "total": self.memory.total},
            "memory_one_device_lora": {**self.lora.by_part(), "total": self.lora.total},
            "samples": self.samples and self.samples.as_dict(),
            "cache_bytes_per_token": cost.cache_bytes(model, 1, self.training.half),
            "lora_parameters": {"rank": LORA_RANK, "count": self.lora_weights},
            "advice": self.advice,
            "cheapest": cheapest and {**cheapest.as_dict(), "settings": cheapest.settings(self.training)},
            "ways": [way.as_dict() for way in self.ways],
            "refused": dict(self.refused),
        }  # fmt: skip


@dataclass(frozen=True)
class Outline:
    """A whole recipe."""

    here: Mapping[str, Prediction]
    """Stage -> what it takes on this machine."""
    trainings: Mapping[str, TrainingPlan]
    evaluations: Mapping[str, Writing]
    """Stage -> what it writes with the model that has the largest key-value cache."""


def outline(plan: Plan, assumptions: Assumptions, vocabulary: int = 0) -> Outline:
    """Every stage on this machine, and the training stages whose model is known on every device.

    `vocabulary` stands for a tokenizer that is not here.
    """
    outlook = Outlook({stage.name: stage for stage in plan.stages}, {}, vocabulary)
    counted = {stage.name: _training(stage, outlook, assumptions) for stage in plan.stages}
    written = {stage.name: _evaluated(stage, outlook) for stage in plan.stages}
    return Outline(
        predict(plan, vocabulary=vocabulary),
        {name: item for name, item in counted.items() if item is not None},
        {name: item for name, item in written.items() if item is not None},
    )


def _evaluated(stage: StagePlan, outlook: Outlook) -> Writing | None:
    """What an evaluation writes, each row as long as the context, since its questions may be; None where it asks none.

    In the type that it has on the device that it would run on here: `auto` is fp32 on a CPU.
    """
    config = stage.config
    if not isinstance(config, EvaluateConfig) or config.questions is None:
        return None
    models = [model for model in map(outlook.model, config.models.values()) if model is not None]
    half, new = pick_dtype(config.precision, pick_device(config.device)) != torch.float32, config.sampling.max_new_tokens
    written = [Writing(model, config.batch_size, min(new, model.context_length), model.context_length, half) for model in models]
    return max(written, key=lambda item: item.bytes, default=None)


def _samples(config: PretrainConfig | SFTConfig, model: TransformerConfig) -> Writing | None:
    """What a training stage writes at an evaluation: its prompts, continued by the weights, which are fp32."""
    if not config.prompts:
        return None
    longest = max(len(prompt.encode()) for prompt in config.prompts) + TEMPLATE_TOKENS + SAMPLE_TOKENS
    return Writing(model, min(TOGETHER, len(config.prompts)), SAMPLE_TOKENS, min(model.context_length, longest), False)


def training_model(config: TuningConfig, outlook: Outlook) -> Any:
    """The size that a training stage trains (a TransformerConfig), None where it is not known here."""
    return outlook.tuned(config)


def _training(stage: StagePlan, outlook: Outlook, assumptions: Assumptions) -> TrainingPlan | None:
    config = stage.config
    if not isinstance(config, PretrainConfig | SFTConfig):
        return None
    model = training_model(config, outlook)
    if model is None:
        return None
    train, length = config.train, row_length(config.batch, model.context_length)
    check_model(train.parallel, model)
    batch = Batch(config.batch.rows, train.accumulation, length)
    training = Training(
        model, batch, train.optimizer, train.activations, train.precision != "fp32", train.parallel.offload,
        adapter=adapter_cost(config, model, train.precision != "fp32"),
    )  # fmt: skip
    samples = _samples(config, model)
    training = replace(training, gpu=True, cached=samples.rows * samples.tokens if samples else 0)
    training = replace(training, fp8=train.precision == "fp8", compiled=train.compile == "always", stages=train.parallel.pipeline_stages)
    size = outlook.text(config.data) if isinstance(config, PretrainConfig) else None
    found = TrainingPlan(
        stage=stage.name, verb=stage.verb, training=training, steps=train.steps,
        tokens=train.steps * train.accumulation * config.batch.rows * length,
        trained=targets_share(config), unique=size and size / BYTES_PER_TOKEN,
        ways=(), refused={}, samples=samples,
    )  # fmt: skip
    ways: list[Way] = []
    refused: dict[str, str] = {}
    for name, device in assumptions.devices.items():
        if train.precision in ("bf16", "fp8") and not device.bf16:
            refused[name] = "has no bf16"
            continue
        of_device, least = _ways(found, name, device, assumptions)
        ways += of_device
        if not of_device:
            refused[name] = f"{least / 1e9:,.0f} GB at least on each of {assumptions.most}, it has {usable_bytes(device) / 1e9:,.0f}"
    return replace(found, ways=tuple(ways), refused=refused)


def _ways(plan: TrainingPlan, name: str, device: Device, assumptions: Assumptions) -> tuple[list[Way], float]:
    """For each number of devices the simplest layout that fits, and the least memory that any layout needs."""
    found, least, room = [], float("inf"), usable_bytes(device)
    for devices in (2**power for power in range(assumptions.most.bit_length()) if 2**power <= assumptions.most):
        for layout, part in candidates(plan.training, devices):
            needed = cost.memory(part, layout).total
            least = min(least, needed)
            if needed <= room:
                found.append(_way(plan, name, layout, part, assumptions))
                break
    return found, least


def candidates(training: Training, devices: int) -> Iterator[tuple[Layout, Training]]:
    """Layouts of so many devices with what each device has, in the order in which they are tried; the first that fits is taken.

    By KINDS, of a kind by how much of the activations is kept, of that by layout (the fewest shards first), last by rows at a time. This is
    no order of the counted time, which knows no communication: that is why all that data and shards alone can do comes before axes whose
    devices exchange within every layer (tensor, context) or wait for each other. What the engine refuses with an adapter is left out: axes
    that split layers, and shards of a base in few bits.
    """
    found = layouts(devices)
    modes = cost.slower_modes(training.activations)
    if training.adapter is not None:
        coded = training.adapter.frozen_bytes < 2  # fewer than half precision takes
        found = [one for one in found if max(one.tensor, one.pipeline, one.context) == 1 and (one.shard == 1 or not coded)]
    for kind in KINDS_OF_LONG if training.batch.length >= LONG_ROW else KINDS:
        for activations in modes:
            for layout in (layout for layout in found if (layout.tensor > 1, layout.pipeline > 1, layout.context > 1) == kind):
                part = replace(training, activations=activations).on(layout)
                rows = part.batch.rows if part else 0
                while part is not None and rows:
                    batch = training.batch.split(layout.streams, rows)
                    assert batch is not None
                    tried = replace(part, batch=batch)
                    if tried.fills(layout):
                        yield layout, tried
                    rows = batch.rows // 2


def _way(plan: TrainingPlan, name: str, layout: Layout, part: Training, assumptions: Assumptions) -> Way:
    device = assumptions.devices[name]
    done = plan.tokens / layout.streams * cost.device_operations(part, layout, plan.trained)
    seconds = done / (device.peak(part.half) * assumptions.mfu) / (1 - bubble(layout, part.batch.accumulation, part.stages))
    hours = seconds / 3600 * layout.devices
    kwh = carbon.kilowatt_hours(hours, device.watts, assumptions.pue)
    grams = None if assumptions.intensity is None else carbon.grams(kwh, assumptions.intensity)
    price = assumptions.prices.get(name)
    money = None if price is None else hours * price
    return Way(name, layout, part, cost.memory(part, layout).total, seconds, hours, kwh, grams, money)
