"""The loop. It knows no algorithm: it takes batches from one, sums the gradients of their losses, divides and updates.

    gradient = d/dw  (sum of the micro-batches' losses) / (sum of their counts)

The count is known before the first forward pass, so the split into micro-batches changes nothing. After a kill, the
same call continues from the newest valid checkpoint and ends in the same weights and the same log (on a CPU with the same threads).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from luyen.core import distributed, progress
from luyen.core.device import pick_device
from luyen.core.errors import Interrupted
from luyen.engine.activations import check_offload, recomputed
from luyen.engine.algorithm import Algorithm, Batch, Hooks, TrainResult
from luyen.engine.carbon import intensity
from luyen.engine.compiling import compiled, worth
from luyen.engine.config import TrainConfig
from luyen.engine.fp8 import check as check_fp8
from luyen.engine.fp8 import trained_in_fp8
from luyen.engine.memory import freed_memory_kept
from luyen.engine.parallel.mesh import alone
from luyen.engine.parallel.plan import check as check_layout
from luyen.engine.parallel.plan import check_model
from luyen.engine.run import Run
from luyen.engine.trackers import check as check_trackers
from luyen.models.config import TransformerConfig

__all__ = ["Algorithm", "Batch", "Hooks", "TrainConfig", "TrainResult", "fit"]


def check(config: TrainConfig, model: TransformerConfig | None = None, ranks: int | None = None) -> None:
    """Raise ConfigError where this machine cannot train as `config` says. `fit` asks it; who has other work before it asks sooner.

    The layout must fit `ranks` processes, as many as were started unless given, and the decoder's size where it is known.
    """
    device, parallel = pick_device(config.device), config.parallel
    check_layout(config, ranks or distributed.ranks(), device)
    if model is not None:
        check_model(parallel, model)
    if distributed.is_main():
        check_trackers(config.watch.trackers)
    check_offload(config.activations, device)
    if config.precision == "fp8":
        check_fp8(device, parallel.tensor)
    if config.watch.carbon != "":
        intensity(str(config.watch.carbon), "train.watch.carbon")
    if config.compile == "always":
        worth(config.compile, None, device, _splits_layers(config), config.activations)


def _splits_layers(config: TrainConfig) -> bool:
    return max(config.parallel.tensor, config.parallel.context, config.parallel.pipeline) > 1


def fit(algorithm: Algorithm, config: TrainConfig, folder: Path, *, seed: int = 0, hooks: Hooks | None = None) -> TrainResult:
    """Train `algorithm.model` in place, in `folder`: checkpoints/, metrics.jsonl, timings.jsonl, samples.jsonl, tensorboard/.

    Continues what an earlier call left there; the caller gives an equal model, stream, config and seed. Raises Interrupted after
    saving when a signal asked to stop, NonFinite before an update that is not finite, StorageError when the disk is full,
    ConfigError when the folder's checkpoints are of another config. With several processes all call this and the main one writes;
    where weights are split, only it has them in the end.
    """
    hooks, device = hooks or Hooks(), pick_device(config.device)
    check(config)
    with (
        distributed.group(config.parallel.timeout_seconds),
        alone(config.parallel.offload),
        distributed.own_folder(folder) as own,
        freed_memory_kept(),
        trained_in_fp8(algorithm.model, config.precision == "fp8"),
        compiled(algorithm.model, worth(config.compile, hooks.operations, device, _splits_layers(config), config.activations)),
        recomputed(algorithm.model, config.activations),
        contextlib.closing(Run(algorithm, config, own, seed, hooks)) as run,
        progress.task("training", config.steps, "steps") as task,
    ):
        task.advance(run.done.step)
        stream = algorithm.batches(run.done.stream)
        while True:
            run.evaluate_if_due()
            run.save_if_due()
            if run.finished():
                return run.result()
            try:
                run.update(stream)
            except Interrupted:  # while a stream asked the model for its batch: what was done before is saved
                run.save()
                raise
            task.advance()
            task.note(run.note())
            if signal := run.requested_stop():
                run.save()
                raise Interrupted(signal)
