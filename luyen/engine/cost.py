"""What a model costs, counted from its size alone: parameters, operations of a token, bytes of memory by part, on any layout.

Operations follow PaLM (Chowdhery et al., 2022, arXiv:2204.02311, appendix B): 2 for every weight that multiplies in the forward pass and
twice that in the backward pass; causal attention half of the square. Memory follows ZeRO (Rajbhandari et al., 2020, arXiv:1910.02054,
section 3): with AdamW 16 bytes for every parameter before any activation, split among the devices of a `shard` group. Here weights and
gradients are fp32 (4 + 4 + 8); a half-precision run adds copies of the weights in 2 bytes. Tensor parallelism splits heads, feed-forward
columns, embedding and head (Shoeybi et al., 2019, arXiv:1909.08053, section 3), and the tokens between them (Korthikanti et al., 2022,
arXiv:2205.05198); context parallelism splits tokens alone. Norms are whole on every device.

Pure functions; nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from luyen.engine.config import OptimizerConfig
from luyen.engine.layouts import Batch, Layout, rank_layers
from luyen.models import counts
from luyen.models.config import TransformerConfig

BACKWARD = 2.0
"""Operations of the backward pass for each of the forward pass."""
STATE_BYTES: dict[str, float] = {"adamw": 8, "muon": 4, "adafactor": 0, "lion": 4, "sgd": 4, "adamw8bit": 2, "paged-adamw8bit": 2}
"""Bytes of state for each parameter: two fp32 moments, one (lion, sgd with momentum, muon's matrices), two of 8 bits (matrices alone;
paged ones at most, as they leave a device that is short of room); adafactor keeps one number for each row and column of a matrix, counted
as nothing."""
ONE_DEVICE = Layout()
LAYERS_GATHERED = 2
"""Layers that a sharded run holds whole at a time: the one at work and the next."""
SLICED = ("adamw", "lion", "sgd")
"""Optimizers that can work on a slice of a weight, so that `shard` and `tensor` may be more than one."""
LOGITS = 32_000_000
"""Logits that are counted at most, twice, in fp32, on a processor. The loss makes fewer at a time (`loss_bytes`); the rest stands for what
else is there: probabilities of attention in blocks, which `activation_bytes` leaves out, and what products take for themselves."""
CHUNK_LOGITS, CHUNK_POSITIONS = 1 << 23, 64
"""Logits that the loss makes at a time, and positions at least (objectives/language_model.py)."""


class Parts:
    """A sum by part: the fields of a dataclass, in order."""

    def by_part(self) -> dict[str, float]:
        """Name of each part and its amount."""
        return {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(self.by_part().values())


@dataclass(frozen=True)
class Parameters(Parts):
    """Weights of a decoder by part."""

    embedding: int
    attention: int
    feed_forward: int
    """With all experts and their routers."""
    norms: int
    """With biases."""
    head: int
    """0 where the head is the embedding."""

    @property
    def count(self) -> int:
        """All of them."""
        return self.embedding + self.attention + self.feed_forward + self.norms + self.head

    @property
    def layers(self) -> int:
        """All but the embedding and the head, the last norm included."""
        return self.attention + self.feed_forward + self.norms


def parameters(model: TransformerConfig) -> Parameters:
    """Weights of each part of a decoder of this size (Llama 2, arXiv:2307.09288, section 2.2)."""
    table = model.vocab_size * model.hidden_size
    return Parameters(
        embedding=table,
        attention=counts.attention_weights(model),
        feed_forward=counts.feed_forward_weights(model),
        norms=counts.vector_weights(model),
        head=0 if model.tied else table,
    )


@dataclass(frozen=True)
class AdapterCost:
    """What is trained in place of a model's own weights, which are frozen."""

    weights: int
    """Numbers of the adapter, all trained, in fp32."""
    frozen_bytes: float = 4.0
    """Of each frozen weight of the layers' matrices: less where they are held in few bits."""
    own: int = 0
    """Those of the numbers that are the model's own weights, so that they are there anyway."""

    def state_bytes(self, optimizer: OptimizerConfig) -> float:
        """Bytes that an optimizer keeps; an adapter is made of matrices."""
        return state_bytes(Parameters(embedding=0, attention=self.weights, feed_forward=0, norms=0, head=0), optimizer)

    def of_layers(self, share: float) -> AdapterCost:
        """What lies in a share of the layers."""
        return replace(self, weights=int(self.weights * share), own=int(self.own * share))


@dataclass(frozen=True)
class Operations(Parts):
    """Floating-point operations of one token in the forward pass, by part."""

    projections: float
    """Query, key, value and output of attention."""
    scores: float
    """Queries with keys, weights with values: half of the square, since no token sees a later one, or what lies in a window."""
    feed_forward: float
    """Of experts those that a token goes to."""
    head: float

    @property
    def training(self) -> float:
        """Forward and backward pass of one token."""
        return self.total * (1 + BACKWARD)


def operations(model: TransformerConfig, length: int, trained: float = 1.0) -> Operations:
    """Forward operations of one token in a sequence of `length`; `trained` is the share of tokens whose target the head predicts."""
    parts = parameters(model)
    return Operations(
        projections=2.0 * parts.attention,
        scores=4.0 * model.num_heads * model.head_dim * counts.attention_pairs(model, length) / length,
        feed_forward=2.0 * (parts.feed_forward - counts.idle_weights(model)),
        head=2.0 * trained * model.vocab_size * model.hidden_size,
    )


RECOMPUTED = {"none": 0.0, "selective": 0.2, "full": 1.0, "offload": 0.0}
"""Share of the layers' forward pass, in time, that `train.activations` does a second time, the fastest first. Selective's is measured on
a CPU (5 to 7 % of a step); a GPU was not measured, nor what copies to the host take."""


def recomputed_share(activations: str) -> float:
    """Share of the forward pass that `train.activations` does a second time."""
    return RECOMPUTED[activations]


def slower_modes(activations: str) -> list[str]:
    """`train.activations` as asked, then those that keep less and take a known time more; offload only where it is asked for."""
    if activations == "offload":
        return [activations]
    modes = [mode for mode in RECOMPUTED if mode != "offload"]
    return modes[modes.index(activations) :]


def state_bytes(parts: Parameters, optimizer: OptimizerConfig) -> float:
    """Bytes that an optimizer keeps. Muon leaves all but the layers' matrices to AdamW, adamw8bit the embedding and the norms; sgd
    without momentum keeps nothing; an average of the weights is one more fp32 copy."""
    name, layers = optimizer.name, parts.attention + parts.feed_forward
    matrices = layers + parts.head
    own = {"muon": layers, "adamw8bit": matrices, "paged-adamw8bit": matrices}.get(name, parts.count)
    each = 0.0 if name == "sgd" and not optimizer.momentum else STATE_BYTES[name]
    average = 0 if optimizer.ema_decay is None else 4 * parts.count
    return each * own + STATE_BYTES["adamw"] * (parts.count - own) + average


def kept_bytes(model: TransformerConfig, half: bool, tensor: int = 1, context: int = 1) -> float:
    """Bytes that one layer keeps of one token for its backward pass, on each of `tensor` x `context` devices that share it.

    The residual twice in fp32, what both norms make of it, queries, keys, values, what attention gives, gate, up and their product. All is
    shared but what the norms give, which a tensor group gathers, and keys and values, which a context group gathers. Norms of queries and
    keys keep what they read, in fp32. On average over the layers.
    """
    width, head = model.hidden_size, model.head_dim
    columns = counts.inner_width(model)
    if half:
        shared = 8.0 * width + 4.0 * head * (model.num_heads + model.num_kv_heads) + 6.0 * columns
        inputs, gathered = 4.0 * width, 4.0 * head * model.num_kv_heads
    else:
        shared = 16.0 * width + 8.0 * head * (model.num_heads + 2 * model.num_kv_heads) + 12.0 * columns
        inputs, gathered = 8.0 * width, 8.0 * head * model.num_kv_heads
    shared += 4.0 * head * (model.num_heads + model.num_kv_heads) if model.variant.qk_norm else 0.0
    shared += counts.routing_bytes(model, half)
    return (inputs + shared / tensor) / context + (gathered / tensor if context > 1 else 0.0)


def cheap_bytes(model: TransformerConfig, half: bool, tensor: int = 1, context: int = 1) -> float:
    """Those of them that `selective` makes again: what both norms give, and the gated product, which a tensor group shares."""
    return (2.0 if half else 4.0) * (2 * model.hidden_size + counts.inner_width(model) / tensor) / context


def activation_bytes(model: TransformerConfig, tokens: float, activations: str, half: bool, tensor: int = 1, context: int = 1) -> float:
    """Bytes of all activations of a micro-batch of `tokens` tokens; what enters a layer is kept in fp32 in any case.

    A layer that is computed again counts twice, once for the gradients of what it keeps; where all layers are kept, those already done
    have made room for them. Selective makes the cheap part of one layer at a time again; of what offload keeps a layer and its gradients
    are on the device, with what goes from one layer to the next. A context group gathers the hidden states that come out, with their
    gradient.
    """
    whole = model.num_layers if activations in ("none", "selective") else min(2, model.num_layers)
    spared = (model.num_layers - 1) * cheap_bytes(model, half, tensor, context) if activations == "selective" else 0.0
    inputs = 1 if activations == "offload" else model.num_layers
    layers = whole * kept_bytes(model, half, tensor, context) - spared + 4 * inputs * model.hidden_size / (tensor * context)
    return tokens * (layers + (8.0 * model.hidden_size if context > 1 else 0.0))


def logits_bytes(model: TransformerConfig, tokens: float, share: int = 1) -> float:
    """Bytes of the logits that exist at once on each of `share` devices, which split vocabulary or positions; see LOGITS."""
    return 8.0 * min(tokens * model.vocab_size / share, LOGITS)


def loss_bytes(model: TransformerConfig, tokens: float, half: bool, tensor: int = 1, context: int = 1, trained: bool = True) -> float:
    """Bytes that the loss of so many tokens holds at most: what objectives/language_model.py makes and drops, and nothing else.

    While it goes through the chunks: logits in fp32 of this chunk and of the one before (in half precision also those as they come out and
    their gradients as they are multiplied), the gradient of the hidden states, and in fp32 that of the head, where it is `trained`, with
    one chunk's part of it in half precision. In the backward pass: both gradients and what they are scaled to.
    """
    rows, positions, each = model.vocab_size / tensor, tokens / context, 2 if half else 4
    size = max(CHUNK_POSITIONS, CHUNK_LOGITS // rows)
    chunk = min(positions, size) * rows
    logits = ((6 if half else 4) if positions <= size else (12 if half else 8)) * chunk
    states, head = each * positions * model.hidden_size, 4 * rows * model.hidden_size * trained
    return max(logits + states + head * (1.5 if half else 1.0), 2 * states + 2 * head)


def cache_bytes(model: TransformerConfig, tokens: float, half: bool) -> float:
    """Bytes of the key-value cache for `tokens` tokens of answers and their prompts: a key and a value a layer."""
    return 2.0 * model.num_layers * model.num_kv_heads * model.head_dim * tokens * (2 if half else 4)


@dataclass(frozen=True)
class Training:
    """A training run as far as its memory depends on it."""

    model: TransformerConfig
    batch: Batch
    optimizer: OptimizerConfig
    activations: str
    half: bool
    """Products in bf16, fp16 or fp8; weights, gradients and optimizer are fp32."""
    offload: bool = False
    """Whether weights, gradients and optimizer of the layers lie in the host's memory."""
    fp8: bool = False
    """Whether products are made in fp8, which takes whole ones."""
    compiled: bool = False
    """Whether the layers must be compiled, which takes whole ones and decides by itself what is kept."""
    adapter: AdapterCost | None = None
    """What is trained where the model's own weights are frozen; None: they are trained."""
    gpu: bool = False
    """Whether the loss is counted as what it makes (`loss_bytes`), and not as on a processor (`logits_bytes`)."""
    cached: int = 0
    """Tokens, of all rows together, whose keys and values are kept while the run writes its samples."""
    stages: int = 1
    """Runs of layers that each device of a pipeline has (`train.parallel.pipeline_stages`)."""

    def on(self, layout: Layout) -> Training | None:
        """The part of it that one device of a layout has; None where something of it cannot be shared so."""
        model = self.model
        if any(size % layout.tensor for size in (model.num_heads, model.num_kv_heads, model.intermediate_size)):
            return None
        if (model.variant.experts and layout.alike * layout.pipeline > 1) or (model.variant.qk_norm == "whole" and layout.tensor > 1):
            return None
        if (self.fp8 and layout.tensor > 1) or (self.compiled and (layout.alike * layout.pipeline > 1 or self.activations == "selective")):
            return None
        if (layout.shard * layout.tensor > 1 or self.offload) and self.optimizer.name not in SLICED:
            return None
        if self.offload and (layout.alike * layout.pipeline > 1 or layout.shard == 1 < layout.devices):
            return None
        each = self.batch.rows * self.batch.accumulation // layout.streams
        if layout.pipeline > each or (layout.pipeline > 1 and layout.pipeline * self.stages > model.num_layers):
            return None
        batch = self.batch.split(layout.streams, min(self.batch.rows, each // layout.pipeline))  # a micro-batch for every stage
        return None if batch is None else replace(self, batch=batch)

    def fills(self, layout: Layout) -> bool:
        """Whether the micro-batches of one device suit a pipeline's schedule; the interleaved one takes them in equal rounds."""
        count = self.batch.accumulation
        rounds = max(1, count // layout.pipeline)
        return layout.pipeline == 1 or (count >= layout.pipeline and (self.stages == 1 or count % rounds == 0))

    def under_way(self, layout: Layout, rank: int = 0) -> float:
        """Micro-batches whose activations a device of a pipeline holds at once, as 1F1B and interleaved 1F1B warm up.

        The last one has one of them under way in 1F1B; with v runs of layers, which take the micro-batches in rounds of m, the first
        v - 1 runs of a round and one of the last: ((v - 1) m + 1) / v. Each device before it has one run more in 1F1B, two in the other.
        """
        count, before = self.batch.accumulation, layout.pipeline - 1 - rank
        if self.stages == 1:
            return min(before + 1, count)
        runs = (self.stages - 1) * (count // max(1, count // layout.pipeline)) + 2 * before + 1
        return min(runs / self.stages, count)


@dataclass(frozen=True)
class Memory(Parts):
    """Bytes on one device, all at once: an upper bound, as gradients and activations have their peaks at different times."""

    weights: float
    copies: float
    """Of the weights in half precision, which autograd keeps; in a sharded run instead what is gathered at a time, with its gradient."""
    gradients: float
    optimizer: float
    adapters: float
    """Weights, gradients and optimizer of what is trained in place of all of the model's own weights, whose gradients and optimizer are
    then 0. Those that are trained of them are in `weights`, with their gradients and optimizer here."""
    activations: float
    """With an adapter as many: the products of one on every linear map read what the frozen products read, so it is kept all the same."""
    logits: float
    """With the head's gradient, where it is trained, which is summed beside the one in `gradients`."""
    cache: float
    """Keys and values of the samples that the run writes, in fp32 as the weights are, in whole on every device."""


def memory(training: Training, layout: Layout = ONE_DEVICE) -> Memory:
    """Bytes by part on each device; `training.batch` is that of one device (see `Training.on`).

    Of a pipeline's devices the fullest: the first has the most layers' activations under way, with the embedding; the last one the loss,
    with the head. Those between have fewer under way than the first and no table.
    """
    model, pipeline = training.model, layout.pipeline
    if pipeline == 1:
        return _memory(training, layout, model, parameters(model))
    layers = rank_layers(model.num_layers, pipeline, training.stages)
    batch = training.batch
    tokens = training.stages * batch.accumulation * batch.rows * batch.length
    received = 4.0 * tokens * model.hidden_size / layout.alike
    found = []
    for rank, own in enumerate(layers):
        part = model.model_copy(update={"num_layers": max(1, own)})
        table = parameters(part).embedding if rank in (0, pipeline - 1) else 0  # where it is the head too, both ends have it
        parts = replace(parameters(part), embedding=table, head=0)
        mine = _memory(training, layout, part, parts, training.under_way(layout, rank))
        found.append(replace(mine, activations=mine.activations + received, logits=mine.logits if rank == pipeline - 1 else 0.0))
    return max(found, key=lambda one: one.total)


def _memory(training: Training, layout: Layout, model: TransformerConfig, parts: Parameters, under_way: float = 1) -> Memory:
    """Of a device that has these layers and tables, with so many micro-batches under way.

    It is responsible for 1 / tensor of all matrices and for the norms in whole; of that 1 / shard lies there for good, of layers whose
    slices are on the host nothing. An adapter is sliced by `shard`, and in whole on each device of a tensor group. What is frozen has no
    gradient, neither kept nor gathered.
    """
    trained = 1 if training.adapter is None else 0
    adapter = AdapterCost(0) if training.adapter is None else training.adapter
    depth = model.num_layers / training.model.num_layers
    own, added = adapter.weights * depth, (adapter.weights - adapter.own) * depth
    tables = (parts.embedding + parts.head) / layout.tensor
    layers = (parts.attention + parts.feed_forward) / layout.tensor + parts.norms
    held = layers + tables
    kept = (tables if training.offload else held) / layout.shard
    copies = 2 * (held * (adapter.frozen_bytes > 2) + added) if training.half else 0.0  # what lies there in half needs none
    if layout.shard > 1 or training.offload:
        layer, gathered = layers / model.num_layers, min(LAYERS_GATHERED, model.num_layers)
        if training.half and layout.pipeline == 1:  # gathered in half, with a gradient in half that is summed in fp32; the head's copy
            copies = layer * (2 * gathered + (2 + 4) * trained) + 2 * added + 2 * (parts.head or parts.embedding) / layout.tensor
        else:
            copies += 4 * layer * (gathered + trained)
        copies += 4 * (1 + trained) * tables
    tokens = training.batch.rows * training.batch.length
    head = 4 * model.vocab_size * model.hidden_size / layout.tensor * trained
    logits = logits_bytes(model, tokens, layout.alike) + head
    if training.gpu:
        logits = loss_bytes(model, tokens, training.half, layout.tensor, layout.context, bool(trained))
    state = adapter.state_bytes(training.optimizer) / max(1, adapter.weights)
    spared = (4 - adapter.frozen_bytes) * (parts.attention + parts.feed_forward) / layout.tensor / layout.shard
    return Memory(
        weights=4 * kept - spared,
        copies=copies,
        gradients=4 * kept * trained,
        optimizer=state_bytes(parts, training.optimizer) * kept / parts.count * trained,
        adapters=(4 * added + (4 + state) * own) / layout.shard,
        activations=under_way * activation_bytes(model, tokens, training.activations, training.half, layout.tensor, layout.context),
        logits=logits,
        cache=cache_bytes(training.model, training.cached, half=False),
    )


def device_operations(training: Training, layout: Layout, trained: float = 1.0) -> float:
    """Operations that each device does for a token of its rows, forward and backward, with what is recomputed.

    In a pipeline those of the fullest one's layers and of the head, which the last one has; the others wait for it.
    """
    forward = operations(training.model, training.batch.length, trained)
    layers, depth = forward.total - forward.head, training.model.num_layers
    again = recomputed_share(training.activations) * layers
    stage = max(rank_layers(depth, layout.pipeline, training.stages)) / depth
    return ((forward.training + again) - (1 - stage) * ((1 + BACKWARD) * layers + again)) / layout.alike
