"""How to train, whatever is trained. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from luyen.core.config import Config

RENAMED_ACTIVATIONS = {"keep": "none", "recompute": "full"}
"""Earlier names of `train.activations`, which old checkpoints have: refused in a config, the same run in a checkpoint."""


class OptimizerConfig(Config):
    """The rule that turns gradients into updates."""

    name: Literal["adamw", "adamw8bit", "paged-adamw8bit", "muon", "adafactor", "lion", "sgd"] = "adamw"
    """muon: for the matrices of the hidden layers, adamw for the rest. adamw8bit: moments of matrices in 8 bits, by the extra qlora; paged:
    on a CUDA device, moved to the host where memory is short."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate; one serves adamw in all forms, muon and adafactor. lion wants 3 to 10 times less, sgd much more."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW: decay of the first moment. Lion: how much of its memory is in a step."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW: decay of the second moment. Lion: decay of its memory (0.99 or 0.98 in its paper)."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of AdamW's second moment."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay of matrices; norms, biases and embeddings have none."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Momentum of muon and sgd; 0 lets sgd keep no state."""
    nesterov: bool = True
    """sgd: look one step ahead along the momentum, as muon always does."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; larger ones are scaled down to it."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Evaluate and keep as the model the exponential average of the weights after each update, which forgets with this; empty: none."""
    rates: dict[str, PositiveFloat] = {}
    """Other learning rates, as multiples of `learning_rate`, by pattern of the parameter's name; of several that fit the last counts."""


class ScheduleConfig(Config):
    """The learning rate over the steps, as a share of its peak."""

    name: Literal["constant", "linear", "polynomial", "cosine", "wsd", "inverse_sqrt", "ramp"] = "cosine"
    """After the warm-up: constant; linear, polynomial or cosine to the end; wsd: stable, then a decay at the end; inverse_sqrt: one over
    the root of the steps, whatever their number; ramp: rises exponentially from final_fraction to the peak, to find a rate."""
    warmup_fraction: float = Field(default=0.02, ge=0, le=1)
    """Share of all steps over which the rate rises linearly."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """The same in steps; empty: by warmup_fraction."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak that is left at the end; inverse_sqrt does not read it."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """wsd: share of all steps in the decay."""
    power: float = Field(default=2.0, gt=0)
    """polynomial: the power of what is left of the way; 1 is linear."""
    cycles: int = Field(default=1, ge=1)
    """cosine: equal periods, each from the peak again."""


class CheckpointConfig(Config):
    """When to save what is needed to continue."""

    every_steps: int = Field(default=200, ge=1)
    """Steps between two checkpoints; the last step and a stop by a signal save one too."""
    keep_last: int = Field(default=2, ge=1)
    """Valid checkpoints to keep."""
    average_last: int = Field(default=1, ge=1)
    """The model at the end is the mean of the weights after the last step and at so many checkpoints less one before it; 1: no mean."""
    asynchronous: Literal["auto"] | bool = "auto"
    """Copy the state and write it while training goes on; the copy takes as much memory of the host as the checkpoint. auto: with a GPU."""
    format: Literal["auto", "whole", "sharded"] = "auto"
    """whole: one process writes whole files; sharded: every process writes its part. auto: sharded where weights are split."""


class ParallelConfig(Config):
    """How the processes that torchrun started share the work; the numbers multiplied are all of them. The result does not depend on it."""

    data: int = Field(default=0, ge=0)
    """Groups that read different rows of a step; 0: as many as the processes allow. Alone: every process holds the whole model."""
    shard: int = Field(default=1, ge=1)
    """Processes that slice weights, gradients and optimizer among themselves and read different rows (FSDP); with adamw, lion or sgd."""
    tensor: int = Field(default=1, ge=1)
    """Processes that split heads, feed-forward columns (divides both), vocabulary and tokens of the same rows. With adamw, lion or sgd."""
    context: int = Field(default=1, ge=1)
    """Processes that split the tokens of the same rows while each has the whole model; for rows that are too long for one."""
    pipeline: int = Field(default=1, ge=1)
    """Processes that share the layers and hand the rows on, each from its layers to the next (1F1B)."""
    pipeline_stages: int = Field(default=1, ge=1)
    """Runs of layers that each of them has; 1: the schedule is 1F1B, more: interleaved 1F1B, with less waiting and more messages."""
    pipeline_pieces: int = Field(default=1, ge=1)
    """Pieces that a micro-batch is cut into between samples to pass the pipeline; the more, the less waiting."""
    offload: bool = False
    """Keep what shard slices of the layers (weights, gradients, optimizer) in the host's memory and update it there; also on one GPU."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """After so long without an answer from a process the run ends with an error that names it."""


class WatchConfig(Config):
    """What is watched while training, and what ends it before its last step. Event files for TensorBoard are always written."""

    trackers: list[Literal["wandb", "mlflow", "trackio"]] = []
    """Services that get the figures too; their packages are imported, and what they do on the network is done, only when named here."""
    project: str = "luyen"
    """What the runs are filed under there."""
    profile: str = Field(default="", pattern=r"^([1-9][0-9]*-[1-9][0-9]*)?$")
    """Steps to profile, as "10-12": an operator table and a trace in the stage's folder `profile`; empty: none."""
    synchronise: bool = False
    """GPU: wait at the end of each part of a step, so that timings.jsonl has every part's own time; steps are a little slower."""
    window: int = Field(default=64, ge=0)
    """Steps that a loss and a gradient's norm are compared with to tell a jump, at least 16; 0: nothing is told."""
    deviations: float = Field(default=8.0, gt=0)
    """How many times their usual spread they must be above the usual to be told."""
    carbon: float | str = ""
    """Grams of CO2 that a kWh costs here, or a country such as FRA: a run's CO2 then stands beside its measured energy; empty: not."""
    stop_tokens: int | None = Field(default=None, ge=1)
    """End once so many tokens were read; the schedule still spans all steps."""
    stop_hours: float | None = Field(default=None, gt=0)
    """End after so many hours of training, earlier parts of a resumed run included; where that is depends on the machine."""
    patience: int | None = Field(default=None, ge=1)
    """End when so many evaluations in a row have not made held-out text any better."""

    @property
    def profiled(self) -> tuple[int, int] | None:
        """First and last step of `profile`."""
        first, _, last = self.profile.partition("-")
        return (int(first), int(last)) if last else None

    @model_validator(mode="after")
    def _check(self) -> WatchConfig:
        if self.profiled and self.profiled[0] > self.profiled[1]:
            raise ValueError(f"watch.profile {self.profile} ends before it begins")
        return self


class TrainConfig(Config):
    """The training loop."""

    steps: int = Field(default=1000, ge=1)
    """Updates of the weights."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches per update; the gradient is that of one large batch."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    """Type of the matrix products; weights and optimizer stay fp32. auto: bf16 or fp16 on a GPU, fp32 on a CPU. fp8: those of the layers'
    linear maps, all else as bf16; needs the extra fp8 and a GPU that has it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Compile the layers by torch.compile, which takes a while and makes steps faster; auto: where the run is long enough for it to pay."""
    evaluate_every: int = Field(default=200, ge=0)
    """Steps between two evaluations, besides the ones before the first step and after the last; 0: only those two."""
    activations: Literal["none", "selective", "full", "offload"] = "none"
    """What of a layer is computed again in the backward pass instead of kept: nothing, all but its matrix products, or all; or with offload
    nothing, while what is kept waits in the host's memory."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over time."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    watch: WatchConfig = WatchConfig()
    """What is watched, and what ends the run early."""
    parallel: ParallelConfig = ParallelConfig()
    """The layout of several processes."""

    @field_validator("activations", mode="before")
    @classmethod
    def _check_activations(cls, value: object) -> object:
        if isinstance(value, str) and value in RENAMED_ACTIVATIONS:
            raise ValueError(f"{RENAMED_ACTIVATIONS[value]}, the name that {value} has now")
        return value

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.schedule.name == "ramp" and not self.schedule.final_fraction:
            raise ValueError("schedule.final_fraction is 0, and nothing rises exponentially from 0")
        if self.schedule.warmup_steps is not None and self.schedule.warmup_steps > self.steps:
            raise ValueError(f"schedule.warmup_steps {self.schedule.warmup_steps} is more than the {self.steps} steps")
        if self.checkpoint.average_last > 1:
            self._check_average()
        if self.watch.profiled and self.watch.profiled[1] > self.steps:
            raise ValueError(f"watch.profile {self.watch.profile} goes beyond the {self.steps} steps")
        if self.watch.patience is not None and not self.evaluate_every:
            raise ValueError("watch.patience counts evaluations, and evaluate_every is 0")
        return self

    def _check_average(self) -> None:
        saving = self.checkpoint
        if self.optimizer.ema_decay is not None:
            raise ValueError(f"optimizer.ema_decay and checkpoint.average_last {saving.average_last} are two averages; take one")
        if (saving.average_last - 1) * saving.every_steps >= self.steps:
            raise ValueError(
                f"checkpoint.average_last {saving.average_last} needs more checkpoints than every_steps {saving.every_steps} makes "
                f"in {self.steps} steps"
            )
        if self.watch.patience is not None:
            raise ValueError(
                f"watch.patience judges the weights at each evaluation, checkpoint.average_last {saving.average_last} makes others"
            )
