"""One training run under way: the parts of the loop in trainer.py, and everything that a checkpoint must hold."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luyen.core import config as configs
from luyen.core import distributed, progress
from luyen.core.device import pick_dtype
from luyen.core.errors import ConfigError, DataError, Interrupted, NonFinite
from luyen.core.random_state import random_state, restore_random_state, seed_everything
from luyen.core.seed import derive
from luyen.core.storage import storage_errors
from luyen.engine import checkpoint, memory, noise_scale, optim, schedule, stops
from luyen.engine.ahead import Feed, Step, Stream
from luyen.engine.algorithm import Algorithm, Batch, Hooks, TrainResult
from luyen.engine.average import Averaging
from luyen.engine.config import RENAMED_ACTIVATIONS, TrainConfig
from luyen.engine.energy import EnergyMeter
from luyen.engine.logs import LineLog
from luyen.engine.parallel.pipeline import Work
from luyen.engine.parallel.plan import Parallel
from luyen.engine.parallel.tensors import local
from luyen.engine.precision import LossScale, autocast
from luyen.engine.reading import to_host
from luyen.engine.saving import Saver
from luyen.engine.timing import OperationCount
from luyen.engine.watch import Watch
from luyen.objectives.loss import Loss


@dataclass
class Done:
    """What has been done so far; the deterministic part of a checkpoint's state."""

    step: int = 0
    tokens: int = 0
    targets: int = 0
    loss: float = math.nan
    stream: dict[str, Any] | None = None
    evaluated: int = -1
    """Step of the last evaluation that is in the log."""
    evaluation: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    """Best held-out figure so far, and how many evaluations came after it."""
    stale: int = 0
    noise: dict[str, float] = field(default_factory=dict)
    """The running sums of the gradient noise scale."""
    alarms: dict[str, Any] = field(default_factory=dict)
    """What the alarms compare the next steps with."""


class Run:
    """State and actions of one call of `fit`."""

    def __init__(self, algorithm: Algorithm, config: TrainConfig, folder: Path, seed: int, hooks: Hooks) -> None:
        self.algorithm, self.config, self.hooks, self.seed = algorithm, config, hooks, seed
        self.parallel = Parallel(config)
        self.device = self.parallel.device
        self.dtype = pick_dtype(config.precision, self.device)
        operations = OperationCount(algorithm.model)  # of the whole model, before a process loses a part of it
        self.model = self.parallel.place(algorithm.model)
        self.optimizers = self.parallel.optimizers(optim.build(self.model, config.optimizer))
        self.averaging = Averaging(self.model, self.optimizers, config, folder / "checkpoints")
        self.feed = Feed(config.accumulation, self.parallel.share, self.device, algorithm.batches_ahead)
        self.scale = LossScale.for_dtype(self.dtype)
        self.checkpoints = folder / "checkpoints"
        split, silence = self.parallel.shape.splits_weights, config.parallel.timeout_seconds
        self.saver = Saver(self.checkpoints, config.checkpoint, split, self.device, silence)
        self.done = Done()
        self.saved = (-1, -1)
        """Step of the newest checkpoint, and of the last evaluation that it holds."""
        self.frozen: str | None = None
        lengths, self.seconds_before, self.joules_before = self._resume()
        self.watch = Watch(operations, config, folder, self.device, hooks.rate)
        self.watch.open(self.done.step, lengths, self.done.alarms)
        self.metrics, self.samples = (LineLog(folder / f"{name}.jsonl", lengths.get(name, 0)) for name in ("metrics", "samples"))
        self.started = time.perf_counter()
        self.energy = EnergyMeter(self.device)
        self.step_seconds, self.step_tokens = math.nan, 0
        self.ended = self._reason()
        self.model.train()

    def _resume(self) -> tuple[Mapping[str, Any], float, float | None]:
        """Load the newest valid checkpoint, if any. Returns log lengths, seconds and joules spent before."""
        with storage_errors(self.checkpoints):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(self.checkpoints)
        found = checkpoint.newest_of_main(self.checkpoints)
        if found is None:
            seed_everything(derive(self.seed, "training"))
            self.frozen = checkpoint.frozen_fingerprint(self.model)
            return {}, 0.0, 0.0
        self._check_same(found)
        checkpoint.restore(found, self.model, self.optimizers)
        self.done = Done(**{**found.state["done"], "loss": float(found.state["done"]["loss"])})
        self.scale = LossScale(**found.state["scale"])
        self.saved = (self.done.step, self.done.evaluated)
        self.frozen = found.state.get("frozen")
        progress.say(f"continuing after step {self.done.step} from {found.folder}")
        return {**found.state["logs"], **found.timing["logs"]}, found.timing["seconds"], found.timing["joules"]

    def _check_same(self, found: checkpoint.Checkpoint) -> None:
        # A key that came after the checkpoint was made counts as its default, which must train as was done before there was the key.
        before, now = {**self._identity(TrainConfig()), **found.state["config"]}, self._identity(self.config)
        before["activations"] = RENAMED_ACTIVATIONS.get(before["activations"], before["activations"])
        different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if different:
            key = different[0]
            raise ConfigError(
                f"{found.folder.parent} holds checkpoints of another config: {key}", found=f"{before.get(key)} there",
                expected=f"{now.get(key)}", fix="Put the config back, or start anew in another folder.",
            )  # fmt: skip
        around = self._surroundings()
        changed = [f"{what} {found.state[what]} (now {here})" for what, here in around.items() if found.state.get(what, here) != here]
        if changed:
            told = "sums are rounded differently, so the result will differ in the last bits"
            progress.say(f"the checkpoint was made with {', '.join(changed)}: {told}")

    def _surroundings(self) -> dict[str, Any]:
        """What may change between the parts of a run and changes the order of sums."""
        return {
            "threads": torch.get_num_threads(), "processes": distributed.ranks(), "layout": self.parallel.shape.told,
            "device": self.device.type, "torch": torch.__version__,
        }  # fmt: skip

    def _identity(self, config: TrainConfig) -> dict[str, Any]:
        """What must be the same in all parts of a run; where it runs, how often it saves, what is watched and when it ends may change."""
        flat: dict[str, Any] = {"seed": self.seed}
        for key, value in configs.dump(config).items():
            if isinstance(value, dict):
                flat |= {f"{key}.{inner}": setting for inner, setting in value.items()}
            else:
                flat[key] = value
        return {key: value for key, value in flat.items() if key != "device" and not key.startswith(("checkpoint.", "watch.", "parallel."))}

    def update(self, stream: Stream) -> None:
        """One step: forward and backward of every micro-batch, one update of the weights, one row of the log.

        Raises NonFinite before the update when the loss or the gradient is not finite; weights and optimizer are unchanged then.
        """
        self.watch.begin(self.done.step + 1)
        part = self.watch.clock.part
        with part("data"):
            step = self.feed.next(stream)
        noise = noise_scale.Meter(step.targets)
        loss, norm, metrics = self._backward(step, noise, stream)
        used_scale = self.scale.scale
        with part("update"):
            self._clip(norm)
        row: dict[str, Any] = {"step": self.done.step + 1, "loss": loss}
        rate = self.config.optimizer.learning_rate * schedule.factor(self.config.schedule, self.done.step, self.config.steps)
        if math.isfinite(loss) and math.isfinite(norm):
            with part("update"):
                optim.set_learning_rate(self.optimizers, rate)
                for optimizer in self.optimizers:
                    optimizer.step()
            if self.hooks.updated is not None:
                self.hooks.updated(self.done.step + 1, self.config.steps)
            self.scale.updated()
            row |= {"learning_rate": rate, "gradient_norm": norm, **noise.tell(self.done.noise, norm, used_scale)}
        elif math.isfinite(loss) and self.scale.overflowed():
            row |= {"learning_rate": 0.0, "gradient_norm": None, "loss_scale": self.scale.scale}  # skipped, as fp16 demands
        else:
            self._stop_not_finite(row, norm, step)
        self.model.zero_grad(set_to_none=True)
        self.step_tokens = step.tokens
        self.done.step += 1
        self.done.tokens += self.step_tokens
        self.done.targets += step.targets
        self.done.loss, self.done.stream = loss, step.state
        row |= {"tokens": self.done.tokens, "targets": self.done.targets, **metrics, **self.watch.judge(row)}
        self.metrics.append(row)
        if self.hooks.stepped is not None:
            self.hooks.stepped(row)
        self.step_seconds = self.watch.end(row, self.step_tokens, step.batches)
        self.energy.sample()
        self.ended = self._reason()

    def _backward(self, step: Step, noise: noise_scale.Meter, stream: Stream) -> tuple[float, float, dict[str, float]]:
        """Add up the gradient of all micro-batches over their common count.

        Returns the mean loss, the norm of the whole gradient without the loss scale, and the other means. They come from the device
        in one read, before which all of the step but the update has been given to it, and the next step's batches have been made.
        """
        count = noise.targets
        if not count:
            raise DataError(f"step {self.done.step + 1} trains on nothing", found=f"no targets in {step.told}")
        totals: list[Tensor] = []
        sums: dict[str, tuple[Tensor | float, float]] = {}
        part = self.watch.clock.part
        for loss in self._losses(step.own, self.scale.scale / count, noise):
            totals.append(loss.total.detach())
            for name, (total, items) in loss.metrics.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + total, before[1] + items)
        with part("communication"):
            self.parallel.add_up(self.model)
        with part("update"):
            norm = self.parallel.norm(self.model)
        if not self._last(step):
            with part("data"):
                self.feed.prepare(stream)
        with part("wait"):
            figures = [norm, noise.norm, *totals, *(total for total, _ in sums.values())]
            scaled_norm, noise.norm, *values = to_host(figures)
            own = {name: (value, items) for (name, (_, items)), value in zip(sums.items(), values[len(totals) :], strict=True)}
            whole, means = self.parallel.totals(sum(values[: len(totals)], 0.0), own)
        others = {name: part_sum / items for name, (part_sum, items) in means.items() if items}
        return whole / count, scaled_norm / self.scale.scale, others

    def _last(self, step: Step) -> bool:
        """Whether it is known already that this step ends the run."""
        done = self.done
        return bool(stops.reason(self.config, step=done.step + 1, tokens=done.tokens + step.tokens, seconds=0.0, stale=done.stale))

    def _losses(self, batches: Sequence[Batch], factor: float, noise: noise_scale.Meter) -> Iterator[Loss]:
        """The loss of every micro-batch after its backward pass; in a pipeline after all of them, on ranks that have the last stage."""
        part = self.watch.clock.part
        if self.parallel.pipeline:
            with part("data"):
                batches = [batch.to(self.device) for batch in batches]
            with part("backward"):
                yield from self.parallel.train(Work(batches, self.algorithm.loss, factor, lambda: autocast(self.device, self.dtype)))
            return
        for batch in batches:
            with part("data"):
                here = batch.to(self.device)
            with part("forward"), autocast(self.device, self.dtype), self.parallel.one_loss():
                loss = self.algorithm.loss(here)
            assert loss.count == batch.num_targets, f"the loss counts {loss.count} items, its batch {batch.num_targets}"
            with part("backward"):
                (loss.total * factor).backward()  # type: ignore[no-untyped-call]
                if self.parallel.shape.whole_gradients:
                    noise.see(self.model, loss.count)
            yield loss

    def _clip(self, norm: float) -> None:
        """Undo the loss scale and limit the norm of the whole gradient, which is `norm` without that scale."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        factor = min(1.0, self.config.optimizer.clip_norm / (norm + 1e-6)) / self.scale.scale
        if factor != 1.0 and math.isfinite(norm):
            torch._foreach_mul_([local(gradient) for gradient in gradients], factor)

    def _stop_not_finite(self, row: dict[str, Any], norm: float, step: Step) -> None:
        what = f"loss is {row['loss']}"
        if math.isfinite(row["loss"]):
            bad = [name for name, p in self.model.named_parameters() if p.grad is not None and not bool(local(p.grad).isfinite().all())]
            what = f"gradient of {', '.join(bad[:3]) or 'all parameters together'} is not finite"
        self.model.zero_grad(set_to_none=True)
        self.metrics.append({"step": row["step"], "loss": str(row["loss"]), "gradient_norm": str(norm), "sample_ids": step.sample_ids})
        self.metrics.sync()
        self.saver.wait()
        kept = f"the checkpoint of step {self.saved[0]} is intact" if self.saved[0] >= 0 else "nothing was saved yet"
        raise NonFinite(
            f"step {row['step']}: the {what}; samples {step.told}. Nothing was updated and {kept}. "
            "Look at these samples, or lower train.optimizer.learning_rate"
        )

    def _reason(self) -> str:
        done, seconds = self.done, self.seconds_before + time.perf_counter() - self.started
        if self.config.watch.stop_hours is not None:
            seconds = self.parallel.all_say(seconds)[0]  # all stop at the same step, by one process' clock
        why = stops.reason(self.config, step=done.step, tokens=done.tokens, seconds=seconds, stale=done.stale)
        if why not in ("", "steps"):
            progress.say(stops.told(self.config, why, done.step))
        return why

    def finished(self) -> bool:
        """Whether the run is over: its steps are done, or something ended it before them."""
        return bool(self.ended)

    def evaluate_if_due(self) -> None:
        """Measure the model before the first step, every `evaluate_every` steps and after the last; changes nothing in the run."""
        step, every = self.done.step, self.config.evaluate_every
        due = step == 0 or self.finished() or (every > 0 and step % every == 0)
        if not due or self.done.evaluated == step:
            return
        if self.finished():
            self.saver.wait()  # a mean of checkpoints reads them
        before = random_state()
        self.model.eval()
        try:
            with (
                torch.no_grad(),
                self.parallel.together(self.model),
                self.watch.apart("evaluate", step),
                self.averaging.used(step, self.finished()),
            ):
                measured = dict(self.hooks.evaluate()) if self.hooks.evaluate else {}
                texts = list(self.hooks.samples()) if self.hooks.samples else []
        except Interrupted:
            restore_random_state(before)
            self.save()  # without this evaluation, which is done again when the run continues
            raise
        self.model.train()
        restore_random_state(before)
        if measured:
            self.metrics.append({"step": step, **measured})
        for text in texts:
            self.samples.append({"step": step, **text})
        self.watch.evaluated(step, measured)
        self.done.best, self.done.stale = stops.improved(self.config, self.done.best, self.done.stale, measured)
        self.done.evaluated, self.done.evaluation = step, measured
        self.ended = self.ended or self._reason()
        if self.hooks.measured:
            self.hooks.measured(step, measured)

    def save_if_due(self) -> None:
        """Save every `checkpoint.every_steps` steps and after the last."""
        self.saver.check()
        self._tell_saved()
        step = self.done.step
        if step and (step % self.config.checkpoint.every_steps == 0 or self.finished()):
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the present step, unless there is one, and delete those that are too old.

        One that a stop left before the step's evaluation is replaced by one that holds it, so that all ends as without the stop.
        """
        if self.saved == (self.done.step, self.done.evaluated):
            return
        with self.watch.apart("save", self.done.step):
            self.saver.wait()
            for log in (self.metrics, self.samples):
                log.sync()
            self.done.alarms = self.watch.state()
            state = {
                "step": self.done.step,
                "done": {**dataclasses.asdict(self.done), "loss": repr(self.done.loss)},
                "logs": {"metrics": self.metrics.length, "samples": self.samples.length},
                "scale": dataclasses.asdict(self.scale),
                "config": self._identity(self.config),
                **self._surroundings(),
                **({} if self.frozen is None else {"frozen": self.frozen}),
            }
            seconds, joules = self._spent()
            timing = {"seconds": seconds, "joules": joules, "logs": self.watch.lengths()}
            self.saver.save(self.model, self.optimizers, state, timing, self.averaging.spared(self.done.step))
        self.saved = (self.done.step, self.done.evaluated)

    def _tell_saved(self) -> None:
        """A row of timings.jsonl for every save that was finished beside the loop."""
        while self.saver.finished:
            step, seconds = self.saver.finished.pop(0)
            self.watch.told("save_beside", step, seconds)

    def _spent(self) -> tuple[float, float | None]:
        now = self.energy.joules() if self.parallel.one_meter else None
        joules = None if now is None or self.joules_before is None else self.joules_before + now
        return self.seconds_before + time.perf_counter() - self.started, joules

    def note(self) -> str:
        """The text beside the progress bar."""
        return f"loss {self.done.loss:.3f}, {self.step_tokens / self.step_seconds:,.0f} tokens/s"

    def result(self) -> TrainResult:
        """What the whole run did; the model then holds the average of its weights, if one was asked for."""
        self.averaging.finish(self.done.step)
        self.model.eval()
        self.parallel.release(self.model)
        done = self.done
        seconds, joules = self._spent()
        peak = memory.peak_bytes(self.device)
        return TrainResult(
            done.step, done.tokens, done.targets, done.loss, done.evaluation, seconds, peak, joules,
            ended=self.ended, alarms=self.watch.alarms.alarms,
        )  # fmt: skip

    def requested_stop(self) -> int:
        """The signal that asked this process, or another of the run, to stop; 0 when none did. All processes answer the same."""
        return self.parallel.requested_stop()

    def close(self) -> None:
        """Wait for the pending save, unless it waits for processes that are gone, and close the logs. Raises StorageError."""
        if distributed.ranks() > 1 and isinstance(sys.exception(), RuntimeError):
            self.saver.leave()
        try:
            self.saver.wait()
            self._tell_saved()
        finally:
            for log in (self.metrics, self.samples, self.watch):
                log.close()
