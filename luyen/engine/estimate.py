"""Time and memory of a training run, from sizes and two speeds of the machine, before anything is built.

Work is counted in two units, because a machine is fast at one and slow at the other: operations of matrix products, and bytes that
everything else moves (norms, rotations, activations, residual sums). Both speeds are measured now, under the threads that training uses.

    seconds = (operations / (operations per second) + bytes / (bytes per second)) * pace

A token costs 6 operations for every weight that multiplies (2 forward, 4 backward) and 6 L H E T for causal attention (Chowdhery et
al., 2022, arXiv:2204.02311, appendix B, halved since half of the square is masked). Muon adds its Newton-Schulz iterations to every
update, and every update moves the optimizer's bytes. Where a part of the work runs below the speed of a large product, its share is a
constant here, each measured on two cores of an AMD EPYC (Milan), fp32, torch 2.13; what another machine makes of them is the pace, which
pace.py measures. No GPU was measured.

A run in several processes is that of one of them: its share of the work and of the memory on its layout. What they tell each other is
not counted, which `Estimate.told` says.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cache

import torch

from luyen.core import distributed
from luyen.core.device import matmul_rate, pick_device, pick_dtype
from luyen.engine import cost
from luyen.engine.config import ParallelConfig, TrainConfig
from luyen.engine.layouts import Batch, Layout, bubble, rank_layers
from luyen.engine.optim import NEWTON_SCHULZ_STEPS
from luyen.models.config import TransformerConfig
from luyen.models.counts import feed_forwards, idle_weights
from luyen.models.presets import count_parameters

MATRIX_SHARE = 0.95
"""Share of the large product's rate that products of a layer's shapes reach (0.95 to 1.0 for widths of 192 to 384)."""
HEAD_SHARE = 0.8
"""The same for the head with its loss (0.79 to 0.80 for vocabularies of 2,048 to 8,192)."""
ATTENTION_SHARE = 0.5
"""The same for attention (0.3 to 0.7 for rows of 512 and 256 tokens)."""
ADAPTER_SHARE = 0.4
"""The same for an adapter's narrow products with what adds them to the weights (rank 16, widths of 640, two cores of an Intel Xeon)."""
UPDATE_SHARE = 0.88
"""The same for Muon's iterations (0.87 to 0.89)."""
DECODING_SHARE = 0.15
"""The same for answers written 64 at a time (two million parameters; one thread writes them, so half of 0.31 of one thread's rate)."""
UPDATE_BYTES = 40.0
"""Bytes that norm, clipping and AdamW move for each weight and update: ten numbers of weight, gradient and moments."""
MOVED_BYTES = 2000.0
"""Bytes that a layer moves for each token and unit of width, forward and backward (2,200 at width 192, 1,900 to 2,100 at 384)."""
FORWARD = 1 / 3
"""Share of forward and backward together that forward alone takes."""
LIBRARIES_BYTES = 290_000_000
"""Python with torch and the libraries of every verb loaded."""
FIRST_STEP_BYTES = 120_000_000
"""What torch's kernels take for themselves in a first step, whatever the model (75 to 120 MB), be it that of pace.py's trial."""
PROBE_NUMBERS = 8_000_000
"""Numbers of the vector that shows how fast memory is: 32 MB, more than a core's cache."""


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second."""

    operations: float
    """Of a large matrix product."""
    bytes: float
    """Read and written by an operation on long vectors."""
    pace: float = 1.0
    """Seconds of this model's training for each second that is counted (pace.py)."""


def measure_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """Both speeds, measured once in a process for each device, type and number of threads (about 0.2 s on two cores)."""
    return _measure(device, dtype, torch.get_num_threads())


@cache
def _measure(device: torch.device, dtype: torch.dtype, threads: int) -> Speed:
    del threads  # part of the key alone
    source = torch.ones(PROBE_NUMBERS, device=device, dtype=dtype)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        torch.mul(source, 1.5, out=target)
        target[-1].item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return Speed(matmul_rate(device, dtype), 2 * source.numel() * source.element_size() / sorted(seconds[1:])[2])


@dataclass(frozen=True)
class Work:
    """What is to be done."""

    operations: float = 0.0
    """Of matrix products, counted as if all ran at the rate of a large one."""
    bytes: float = 0.0
    """Moved by everything else."""

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.operations * times, self.bytes * times)

    def seconds(self, speed: Speed) -> float:
        """Time on a machine of this speed."""
        return (self.operations / speed.operations + self.bytes / speed.bytes) * speed.pace


@dataclass(frozen=True)
class Estimate:
    """What a training run is expected to take."""

    model: TransformerConfig
    rows: int
    """Of a micro-batch, in each process."""
    length: int
    """Tokens of a row."""
    trained: float
    """Share of them that have a target."""
    parameters: int
    tokens: int
    """Of the whole run, in all processes."""
    work: Work
    """Of the whole run, in all processes."""
    own: Work
    """What of it one process has, in a pipeline the last; while it waits for the others is counted as work."""
    bytes: int
    """Peak of weights, gradients, optimizer and activations in one process, or on its GPU; a process on a CPU has the libraries and
    kernels beside it."""
    layout: Layout
    offload: bool = False
    """Whether the layers are updated in the host's memory."""
    started: int = 1
    """Processes that there are now; a plan is asked in one about a layout of many."""

    def seconds(self, speed: Speed) -> float:
        """Time on a machine of this speed, which each process has; without what the processes tell each other."""
        return self.own.seconds(speed)

    @property
    def told(self) -> str:
        """Whose time and memory it is and what is not in it, where the run is more than one plain process; empty for that."""
        processes = f"of each of {self.layout.devices} processes ({self.layout}); their exchange is not counted"
        exchange = processes if self.layout.devices > 1 else ""
        if self.layout.devices > self.started:
            exchange += "; each is taken to have a machine of this one's speed and memory to itself"
        host = "what the host keeps and copies to and from it are not counted" if self.offload else ""
        return "; ".join(part for part in (exchange, host) if part)


def token_work(model: TransformerConfig, length: int, trained: float = 1.0, adapter: cost.AdapterCost | None = None) -> Work:
    """Forward and backward of one token in a sequence of `length`; `trained` is the share of tokens whose target the head predicts.

    With an adapter the frozen weights cost no gradient of their own, and the adapter's 6 operations each; of the model's own weights
    those that it trains cost their gradient.
    """
    counted = cost.operations(model, length, trained)
    layers = 2.0 * (cost.parameters(model).layers - idle_weights(model))  # norms with the matrices
    weights = layers / MATRIX_SHARE + counted.head / HEAD_SHARE
    operations = (1 + cost.BACKWARD) * (weights + counted.scores / ATTENTION_SHARE)
    if adapter is not None:
        operations += 6 * (adapter.weights - adapter.own) / ADAPTER_SHARE + 2 * adapter.own / MATRIX_SHARE - weights
    return Work(operations, MOVED_BYTES * model.num_layers * model.hidden_size)


def update_work(model: TransformerConfig, optimizer: str, adapter: cost.AdapterCost | None = None) -> Work:
    """One update of the weights, or of an adapter's alone.

    Muon, five times for each A x B matrix (A the shorter side): X X' (2 A A B), its square (2 A A A), their product with X (2 A A B).
    """
    update = Work(0.0, UPDATE_BYTES * (count_parameters(model) if adapter is None else adapter.weights))
    if optimizer != "muon" or adapter is not None:
        return update
    width, query, key = model.hidden_size, model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    shapes = ([(query, width)] * 2 + [(key, width)] * 2) * model.num_layers + [(size, width) for size in feed_forwards(model)] * 3
    products = sum(4 * min(shape) ** 2 * max(shape) + 2 * min(shape) ** 3 for shape in shapes)
    return update + Work(NEWTON_SCHULZ_STEPS * products / UPDATE_SHARE)


def writing_work(model: TransformerConfig, tokens: float) -> Work:
    """Writing `tokens` tokens of answers: 2 operations for every weight and token, at the rate that small steps reach."""
    return Work(2.0 * (count_parameters(model) - idle_weights(model)) * tokens / DECODING_SHARE)


def layout_of(parallel: ParallelConfig) -> Layout:
    """The layout that a config gives the processes that were started, or that it asks for where it is not for so many."""
    fixed = parallel.shard * parallel.tensor * parallel.context * parallel.pipeline
    data = parallel.data or max(1, distributed.ranks() // fixed)
    return Layout(data, parallel.shard, parallel.tensor, parallel.context, parallel.pipeline)


def estimate_training(
    model: TransformerConfig, train: TrainConfig, rows: int, length: int, trained: float = 1.0, adapter: cost.AdapterCost | None = None
) -> Estimate:
    """Estimate for `train.steps` updates on micro-batches of `rows` full rows of `length` tokens, evaluations left out.

    `trained` is the share of the tokens that have a target; `adapter` what is trained in place of the model's weights. Of several
    processes each does its share, as parallel/data.py deals it.
    """
    layout, tokens = layout_of(train.parallel), train.steps * train.accumulation * rows * length
    again = 1 + FORWARD * cost.recomputed_share(train.activations)
    update = update_work(model, train.optimizer.name, adapter) * train.steps
    whole = token_work(model, length, trained, adapter) * (tokens * again) + update
    batch = _batch(train, layout, rows, length)
    waits = bubble(layout, batch.accumulation, train.parallel.pipeline_stages)
    depth = max(rank_layers(model.num_layers, layout.pipeline, train.parallel.pipeline_stages))
    share = None if adapter is None else adapter.of_layers(depth / model.num_layers)
    stage = token_work(model.model_copy(update={"num_layers": depth}), length, trained, share)
    own = stage * (tokens * again / (layout.streams * layout.alike * (1 - waits)))
    own = own + update * (depth / model.num_layers / (layout.shard * layout.tensor))
    peak = _peak_bytes(model, train, batch, layout, adapter)
    return Estimate(
        model, batch.rows, length, trained, count_parameters(model), tokens, whole, own, peak, layout,
        offload=train.parallel.offload, started=distributed.ranks(),
    )  # fmt: skip


def evaluations(train: TrainConfig) -> int:
    """How often a training run evaluates: before the first step, every `evaluate_every` steps, after the last."""
    every = train.evaluate_every
    return 2 + (-(-train.steps // every) - 1 if every else 0)


def _batch(train: TrainConfig, layout: Layout, rows: int, length: int) -> Batch:
    """What one process sees of an update: whole micro-batches as far as their number allows, then pieces of them."""
    dealt, pieces = math.gcd(train.accumulation, layout.streams), train.parallel.pipeline_pieces if layout.pipeline > 1 else 1
    each = -(-rows // (layout.streams // dealt * pieces))
    return Batch(each, train.accumulation // dealt * pieces, length)


def _peak_bytes(model: TransformerConfig, train: TrainConfig, batch: Batch, layout: Layout, adapter: cost.AdapterCost | None) -> int:
    """What cost.py counts for one process of the layout, without keys and values of the samples that it writes (`Training.cached`).

    That is an upper bound, all parts at once. On a CPU it is nearer without the head's second gradient, which is there while the layers
    have none: 15 and 60 million weights in fp32, AdamW, one process at a vocabulary of 8,192, are then met within 1.1 % instead of 1.9 %.
    In bf16 15 million took 1.32 GB with the libraries, and are counted as 1.30.
    """
    device = pick_device(train.device)
    half = pick_dtype(train.precision, device) != torch.float32
    training = cost.Training(
        model, batch, train.optimizer, train.activations, half, train.parallel.offload, adapter=adapter,
        gpu=device.type == "cuda", stages=train.parallel.pipeline_stages,
    )  # fmt: skip
    memory = cost.memory(training, layout)
    head = 4.0 * model.vocab_size * model.hidden_size / layout.tensor if device.type == "cpu" else 0.0
    return int(memory.total - min(head, memory.logits))  # the first stage of a pipeline has none
