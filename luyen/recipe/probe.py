"""A few real steps of a training stage on this machine, on random tokens: time and peak memory measured instead of counted."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from luyen.adapters.adapt import adapt
from luyen.algorithms.pretrain import Pretrain
from luyen.core import distributed
from luyen.core.device import pick_device
from luyen.core.files import read_jsonl
from luyen.core.random_state import seed_everything
from luyen.data.loader import PackedStream
from luyen.data.samples import NOT_TRAINED, Sample
from luyen.engine.compiling import worth
from luyen.engine.config import CheckpointConfig, ParallelConfig, ScheduleConfig, TrainConfig, WatchConfig
from luyen.engine.estimate import FIRST_STEP_BYTES, Estimate
from luyen.engine.memory import reset_peak
from luyen.engine.trainer import check, fit
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer
from luyen.recipe.configs import PretrainConfig, SFTConfig
from luyen.recipe.estimate import of_stage, process_bytes, targets_share, training_rate
from luyen.recipe.sizes import row_length

STEPS = 20
"""Steps of a probe."""
WARM = 3
"""First steps whose time is not counted: memory is mapped and kernels are chosen there."""


@dataclass(frozen=True)
class Probe:
    """What was measured, and what it makes of the whole stage."""

    steps: int
    """That were done."""
    step_seconds: float
    """The median step, the first ones left out."""
    bytes: int
    """Peak of this process with its libraries, or of the GPU's memory, one checkpoint written."""
    expected_bytes: int
    """The prediction for the stage alone; within a recipe the process also holds what earlier stages loaded."""
    seconds: float
    """Of the whole stage at this pace; evaluations are added as they are predicted, and the time of compiling where it compiles."""
    expected_seconds: float
    """The prediction for the whole stage in one process, as it is probed."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    """What a probe does, in one process whatever `train.parallel` and a launcher say, and what is foretold for that."""

    train: TrainConfig
    estimate: Estimate
    """Of its steps."""

    @staticmethod
    def of(config: PretrainConfig | SFTConfig, model: TransformerConfig, steps: int = STEPS) -> Trial:
        """A trial of a stage. Raises ConfigError where the stage could not train here."""
        operations = of_stage(config, model).work.operations
        with distributed.by_itself():
            short = _short(config.train, steps, operations)
            check(short)
            return Trial(short, of_stage(config, model, short))

    @property
    def bytes(self) -> int:
        """Peak of the process, or of its GPU."""
        return process_bytes(self.train, self.estimate, FIRST_STEP_BYTES)

    @property
    def seconds(self) -> float:
        """Of its steps; measures this machine."""
        return self.estimate.seconds(training_rate(self.train, self.estimate))


def probe(config: PretrainConfig | SFTConfig, model: TransformerConfig, predicted: float, steps: int = STEPS) -> Probe:
    """Do `steps` updates of the stage's size, batch, optimizer and precision, by this process alone, in a folder that is thrown away.

    `predicted` are the seconds of the whole stage as estimate.py has them, from which its evaluations are taken. Raises NonFinite
    when the settings make even random tokens diverge.
    """
    trained, length = targets_share(config), row_length(config.batch, model.context_length - config.adapter.preamble)
    trial = Trial.of(config, model, steps)
    seed_everything(0)
    samples = random_samples(model.vocab_size, length, 2 * config.batch.rows * config.train.accumulation, trained)
    stream = PackedStream(samples, capacity=length, rows=config.batch.rows, seed=0)
    reset_peak(pick_device(config.train.device))
    with tempfile.TemporaryDirectory(prefix="luyen-probe-") as folder, distributed.by_itself():
        made = Transformer(model)
        adapt(made, config.adapter)
        result = fit(Pretrain(made, stream), trial.train, Path(folder))
        times = [float(row["seconds"]) for row in read_jsonl(Path(folder) / "timings.jsonl") if "seconds" in row]
    step = median(times[WARM:] or times)
    stage = of_stage(config, model)
    rest = max(0.0, predicted - stage.seconds(training_rate(config.train, stage)))
    compiling = max(0.0, sum(times[:WARM]) - step * len(times[:WARM])) if trial.train.compile == "always" else 0.0
    expected = trial.seconds / steps * config.train.steps + rest
    return Probe(steps, step, result.peak_bytes, trial.bytes, step * config.train.steps + compiling + rest, expected)


def _short(train: TrainConfig, steps: int, operations: float) -> TrainConfig:
    """The same loop for a few steps in one process, without evaluations; nothing is watched, tracked or profiled.

    Whether it compiles is what the stage's own `operations` and layout decide. Raises ConfigError where it cannot.
    """
    parallel = train.parallel
    splits_layers = max(parallel.tensor, parallel.context, parallel.pipeline) > 1
    compiles = worth(train.compile, operations, pick_device(train.device), splits_layers, train.activations)
    plain = {
        "schedule": ScheduleConfig(), "checkpoint": CheckpointConfig(), "watch": WatchConfig(),
        "parallel": ParallelConfig(offload=parallel.offload), "compile": "always" if compiles else "never",
    }  # fmt: skip
    return train.model_copy(update={"steps": steps, "evaluate_every": 0, **plain})


def random_samples(vocabulary: int, length: int, count: int, trained: float) -> list[Sample]:
    """Rows of random tokens, each full, of which the last `trained` share has a target."""
    generator = np.random.default_rng(0)
    samples = []
    for number in range(count):
        tokens = generator.integers(0, vocabulary, length + 1, dtype=np.int32)
        targets = tokens[1:].copy()
        targets[: int(length * (1 - trained))] = NOT_TRAINED
        samples.append(Sample(f"random{number}", tokens[:-1], targets))
    return samples
