"""Pipeline parallelism (Narayanan et al., 2021, arXiv:2104.04473, section 2.2) by torch.distributed.pipelining, for a decoder.

Every rank of a pipeline keeps some runs of layers, its stages: stage s of S lies on rank s mod P. The first stage has the embedding too,
the last one the final norm and the head. The micro-batches of a step pass the stages one behind the other by torch's Schedule1F1B, or by
ScheduleInterleaved1F1B where ranks have several stages; of M micro-batches' time a rank waits (P - 1) / (M S / P + P - 1).

The model stays whole to look at: the parts of other stages have lost their parameters, and the decoder's forward runs one stage. Every
stage calls the algorithm's loss: on the last it is computed, on the others the call ends as soon as the model has given its hidden states.
Micro-batches have different lengths, so what travels is padded to the longest. Where the embedding is the head, the first and the last
rank both keep it, with the sum of their gradients. Outside of a step the stages run one after another and all ranks get the result.

Ranks of a tensor or context group hand on what each has: its piece of the tokens.

Shapes: B rows, T tokens of a rank, S of its piece, D hidden size, L room for the longest micro-batch's, V vocabulary, U rows on a rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional

from luyen.core.errors import ConfigError
from luyen.engine.layouts import bounds
from luyen.engine.parallel.mesh import check_dense
from luyen.engine.parallel.sequence import piece_length
from luyen.engine.parallel.tensors import local
from luyen.models.transformer import Transformer
from luyen.objectives.loss import Loss

if TYPE_CHECKING:
    from torch.distributed.pipelining import Schedule1F1B, ScheduleInterleaved1F1B

ROUND = 64
"""Lengths are rounded up to a multiple, so that new buffers are seldom needed."""


@dataclass(frozen=True)
class Work:
    """What one call of `Pipeline.train` is to do."""

    batches: Sequence[Any]
    loss: Callable[[Any], Loss]
    """The algorithm's."""
    factor: float
    """What the summed loss is multiplied by."""
    context: Callable[[], AbstractContextManager[Any]]
    """Made around every forward pass."""


class _Handed(Exception):
    """Ends the loss of a stage that is not the last; `hidden` goes to the next one."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__("hidden states for the next stage")
        self.hidden = hidden


class Pipeline:
    """This rank's stages of a decoder."""

    def __init__(self, model: nn.Module, mesh: DeviceMesh, stages: int, device: torch.device) -> None:
        """`stages` on every rank of the axis `pipeline`. Raises ConfigError for a model that cannot be cut so."""
        self.group, self.device = mesh.get_group("pipeline"), device
        self.tensor, self.context = mesh["tensor"], mesh["context"].size()
        self.ranks, self.rank = self.group.size(), self.group.rank()
        self.stages = self.ranks * stages
        self.model = check(model, self.stages)
        self.bounds = bounds(self.model.config.num_layers, self.stages)
        self._turn: tuple[int, Tensor] | None = None
        """Stage at work, and what it received; None when the model has been called for it."""
        self._handed: Tensor | None = None
        """What a stage that is not the last has made."""
        self._work: Work | None = None
        self._losses: dict[int, Loss] = {}
        self._shape = (0, 0)
        """Length and number of the micro-batches that the schedule is made for."""
        self._schedule: Schedule1F1B | ScheduleInterleaved1F1B | None = None

    @property
    def own(self) -> range:
        """Stages of this rank."""
        return range(self.rank, self.stages, self.ranks)

    @property
    def is_last(self) -> bool:
        """Whether this rank has the last stage."""
        return self.rank == self.ranks - 1

    def cut(self) -> None:
        """Take the parameters of other stages out of the model, and let its forward run one stage."""
        decoder = self.model.model
        absent: list[nn.Module] = [
            layer
            for stage in range(self.stages)
            if stage not in self.own
            for layer in decoder.layers[slice(*self.bounds[stage : stage + 2])]
        ]
        head = decoder.embed_tokens if self.model.config.tied else self.model.lm_head
        self._dtype = head.weight.dtype
        if self.rank and not (self.is_last and head is decoder.embed_tokens):
            absent.append(decoder.embed_tokens)
        if not self.is_last:
            absent += [decoder.norm] + [head] * (head is not decoder.embed_tokens)
        for part in absent:
            for module in part.modules():
                module._parameters.update(dict.fromkeys(module._parameters))
        self._head, self._head_here = head, head not in absent
        self._forget_head()
        decoder.forward = self._piece  # type: ignore[method-assign]

    def finish(self) -> None:
        """After the other transforms, some of which change what comes out of the decoder: only the last stage's is for the head."""
        self._whole = self.model.model.forward
        self.model.model.forward = self._forward  # type: ignore[method-assign]
        self.model.register_forward_hook(self._hand_on)

    def train(self, work: Work) -> list[Loss]:
        """Forward and backward of all micro-batches. Returns their losses on ranks that have the last stage, [] on the others."""
        self._work = work
        self._losses.clear()
        schedule = self._prepared(max(batch.tokens_T.numel() for batch in work.batches), len(work.batches))
        numbers = torch.arange(len(work.batches))
        try:
            schedule.step(*([numbers] if self.rank == 0 else []), number=numbers, target=numbers, return_outputs=False)
        except RuntimeError as error:
            raise error.__cause__ or error from None  # torch tells of an error in a stage by one of its own
        finally:
            self._work = None
        return [self._losses[number] for number in range(len(work.batches))] if self.is_last else []

    def second(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter is one that an earlier rank has too."""
        return self.model.config.tied and self.is_last and parameter is self.model.model.embed_tokens.weight

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around an evaluation: all ranks have the head in it."""
        self._forget_head()
        try:
            yield
        finally:
            self._forget_head()

    def _prepared(self, length: int, count: int) -> Schedule1F1B | ScheduleInterleaved1F1B:
        """The schedule for `count` micro-batches, a new one where the last does not fit."""
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B  # a second that others need not spend

        if self._schedule is None or count != self._shape[1] or length > self._shape[0]:
            length = max(-(-length // ROUND) * ROUND, self._shape[0])
            width = self.model.config.hidden_size
            hidden = torch.empty(self._room(length), width, dtype=self._dtype, device="meta", requires_grad=True)
            total = torch.empty((), device="meta", requires_grad=True)
            stages = [
                PipelineStage(
                    _Stage(self, stage), stage, self.stages, self.device, group=self.group,
                    input_args=hidden if stage else torch.arange(1), output_args=hidden if stage < self.stages - 1 else total,
                )
                for stage in self.own
            ]  # fmt: skip
            self._shape = (length, count)
            if len(stages) == 1:
                self._schedule = Schedule1F1B(stages[0], count, loss_fn=_same, scale_grads=False)
            else:
                self._schedule = ScheduleInterleaved1F1B(list(stages), count, loss_fn=_same, scale_grads=False)
        return self._schedule

    def _compute(self, stage: int, received: Tensor, number: int) -> Tensor:
        """A stage's work on a micro-batch: hidden states, (L, D), or on the last one its loss."""
        assert self._work is not None
        self._turn = (stage, received)
        try:
            with self._work.context():
                loss = self._work.loss(self._work.batches[number])
        except _Handed as handed:
            flat_SD = handed.hidden.flatten(0, 1)
            return functional.pad(flat_SD, (0, 0, 0, self._room(self._shape[0]) - len(flat_SD)))
        finally:
            self._turn = self._handed = None
        count = self._work.batches[number].num_targets
        assert loss.count == count, f"the loss counts {loss.count} items, its batch {count}"
        self._losses[number] = loss
        return loss.total * self._work.factor

    def _forward(self, tokens_BT: Tensor, context: Any) -> Tensor:
        """Takes the place of the decoder's forward."""
        if self._work is None or (self._turn is not None and self._turn[0] == self.stages - 1):
            return self._whole(tokens_BT, context)
        if self._turn is None:
            raise ConfigError(
                "train.parallel.pipeline", found="a loss that calls the model more than once", expected="one call",
                fix="Use train.parallel.shard.",
            )  # fmt: skip
        self._handed = self._piece(tokens_BT, context)
        return self._handed

    def _piece(self, tokens_BT: Tensor, context: Any) -> Tensor:
        """The stage at work, or outside of a step the whole decoder, each stage on its rank; all ranks call this and get the result."""
        shape = self._shape_of(tokens_BT)
        if self._turn is not None:
            (stage, received), self._turn = self._turn, None
            rows = shape[0] * shape[1]
            return self._part(stage, received[:rows].view(shape) if stage else received, tokens_BT, context)
        hidden = torch.empty(shape, dtype=self._dtype, device=self.device)
        for stage in range(self.stages):
            if stage in self.own:
                hidden = self._part(stage, hidden, tokens_BT, context).to(self._dtype).contiguous()
            dist.broadcast(hidden, group=self.group, group_src=stage % self.ranks)
        if not self._head_known:
            self._fetch_head()
        return hidden

    def _part(self, stage: int, hidden: Tensor, tokens_BT: Tensor, context: Any) -> Tensor:
        """The layers of one stage with what stands before the first and behind the last; the first does not read `hidden`."""
        decoder = self.model.model
        if stage == 0:
            hidden = decoder.embed_tokens(tokens_BT)
        for layer in decoder.layers[slice(*self.bounds[stage : stage + 2])]:
            hidden = layer(hidden, context)
        return decoder.norm(hidden) if stage == self.stages - 1 else hidden

    def _hand_on(self, _model: nn.Module, _inputs: Any, _output: Tensor) -> None:
        if self._handed is not None:
            raise _Handed(self._handed)

    def _shape_of(self, tokens_BT: Tensor) -> tuple[int, int, int]:
        """Of the hidden states between layers: (B, T, D), or (1, S, D) where a tensor group deals the tokens."""
        width = self.model.config.hidden_size
        if self.tensor.size() == 1:
            return (*tokens_BT.shape, width)  # type: ignore[return-value]
        return 1, piece_length(tokens_BT.numel(), self.tensor.size()), width

    def _room(self, tokens: int) -> int:
        """Tokens of a micro-batch of so many that a rank has at most."""
        own = tokens if self.context == 1 else 2 * piece_length(tokens, 2 * self.context)
        return piece_length(own, self.tensor.size())

    def _fetch_head(self) -> None:
        """The head's weight for the ranks that lack it, beside the model's parameters."""
        rows, width = self.model.config.vocab_size, self.model.config.hidden_size
        piece, ranks = piece_length(rows, self.tensor.size()), self.tensor.size()
        shape = (min(piece, rows - piece * self.tensor.get_local_rank()), width)
        part_UD = local(self._head.weight).detach() if self._head_here else torch.empty(shape, dtype=self._dtype, device=self.device)
        assert part_UD.shape == shape, "the head is gathered after a forward pass"
        dist.broadcast(part_UD, group=self.group, group_src=self.ranks - 1)
        if not self._head_here:
            whole = {"shape": torch.Size((rows, width)), "stride": (width, 1)}
            dealt = ranks > 1
            self._head.__dict__["weight"] = DTensor.from_local(part_UD, self.tensor, [Shard(0)], **whole) if dealt else part_UD
        self._head_known = True

    def _forget_head(self) -> None:
        if not self._head_here:
            self._head.__dict__["weight"] = torch.empty(0, dtype=self._dtype, device=self.device)
        self._head_known = False

    def add_tied(self) -> None:
        """After `train`: add the gradients that the first and the last rank have for an embedding that is the head too.

        The sum has the same bits on both.
        """
        weight = self.model.model.embed_tokens.weight
        if not self.model.config.tied or self.rank not in (0, self.ranks - 1) or not weight.requires_grad:
            return
        assert weight.grad is not None
        own = local(weight.grad)
        other, peer = torch.empty_like(own), self.ranks - 1 - self.rank
        sent = dist.P2POp(dist.isend, own, group=self.group, group_peer=peer)
        read = dist.P2POp(dist.irecv, other, group=self.group, group_peer=peer)
        for message in dist.batch_isend_irecv([sent, read] if self.rank == 0 else [read, sent]):
            message.wait()
        own += other


class _Stage(nn.Module):
    """A stage as torch's schedules call it; it has no parameters of its own."""

    def __init__(self, pipeline: Pipeline, stage: int) -> None:
        super().__init__()
        self.pipeline, self.stage = pipeline, stage

    def forward(self, received: Tensor, number: Tensor) -> Tensor:
        return self.pipeline._compute(self.stage, received, int(number))


def _same(total: Tensor, _number: Tensor) -> Tensor:
    return total


def check(model: nn.Module, stages: int) -> Transformer:
    """The model as a decoder that can be cut into so many stages. Raises ConfigError."""
    if not isinstance(model, Transformer):
        raise ConfigError("train.parallel.pipeline", found=type(model).__name__, expected="a decoder", fix="Use train.parallel.shard.")
    check_dense("train.parallel.pipeline", model.config)
    check_layers(model.config.num_layers, stages)
    return model


def check_layers(layers: int, stages: int) -> None:
    """Raise ConfigError when a decoder has fewer layers than there are stages."""
    if layers < stages:
        expected = f"at most {layers}, the layers"
        raise ConfigError("train.parallel: pipeline x pipeline_stages", found=stages, expected=expected, fix="Lower one of them.")


def check_count(count: int, ranks: int, stages: int) -> None:
    """Raise ConfigError unless so many micro-batches of a step fill a pipeline of `ranks` with `stages` on each."""
    rounds = max(1, count // ranks)
    if count < ranks or (stages > 1 and count % rounds):
        wanted = f"at least {ranks}" if count < ranks else f"a multiple of {rounds}, or of {ranks}"
        raise ConfigError(
            f"train.parallel.pipeline {ranks}: micro-batches of a step", found=count, expected=wanted,
            fix="Change train.accumulation, or cut micro-batches by train.parallel.pipeline_pieces.",
        )  # fmt: skip
