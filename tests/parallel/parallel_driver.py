"""Trains the toy model in this process, alone or as one of several that torchrun started. Run by the tests as a program of its own.

    python -m torch.distributed.run --standalone --nproc-per-node 2 parallel_driver.py PLAN.json

The plan is a list of {"folder", "config", "toy", "signal", "in_save", "fatal"}. Every job is a call of `fit`; the main process writes
into the job's folder `weights.safetensors`, `gradients.safetensors` (of the first step, before clipping) and `result.json`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from training_toys import toy_algorithm, toy_config  # noqa: E402 (the file is also a program)

from luyen.core import distributed, interrupt  # noqa: E402
from luyen.core.errors import LuyenError  # noqa: E402
from luyen.engine import checkpoint  # noqa: E402
from luyen.engine.parallel.tensors import whole_on_main  # noqa: E402
from luyen.engine.run import Run  # noqa: E402
from luyen.engine.trainer import Hooks, fit  # noqa: E402
from luyen.inference.config import SamplingConfig  # noqa: E402
from luyen.inference.generate import generate  # noqa: E402
from luyen.models.attention import Layout  # noqa: E402
from luyen.objectives.loss import Loss  # noqa: E402

HEADS = {"num_heads": 4, "num_kv_heads": 4, "intermediate_size": 48}


@contextlib.contextmanager
def first_gradients(folder: Path) -> Any:
    """Keep the whole gradient of the first step, as it is before clipping."""
    plain = Run._clip

    def clip(run: Run, norm: float) -> None:
        if run.done.step == 0:
            grads = {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}
            found = {name: tensor.clone() for name, tensor in whole_on_main(grads).items()}
            if distributed.is_main():
                save_file(found, folder / "gradients.safetensors")
        plain(run, norm)

    Run._clip = clip  # type: ignore[method-assign]
    try:
        yield
    finally:
        Run._clip = plain  # type: ignore[method-assign]


def disturb(job: dict[str, Any], algorithm: Any) -> None:
    """Do to one rank what the job says at its nth micro-batch: a signal or a loss that is NaN; with a `mark` once in all attempts."""
    asked = job.get("signal")
    if asked is None or asked["rank"] != distributed.rank() or (asked.get("mark") and Path(asked["mark"]).exists()):
        return
    plain, seen = algorithm.loss, []

    def loss(batch: Any) -> Any:
        seen.append(1)
        if len(seen) == asked["nth"]:
            if asked.get("mark"):
                Path(asked["mark"]).touch()
            if asked["name"] == "nan":
                found = plain(batch)
                return Loss(found.total * math.nan, found.count, found.metrics)
            os.kill(os.getpid(), getattr(signal, asked["name"]))
        return plain(batch)

    algorithm.loss = loss


@contextlib.contextmanager
def disturbed_save(job: dict[str, Any]) -> Any:
    """On one rank the nth group of pieces is not written: the process is killed there or the disk is full; with a `mark` once."""
    asked = job.get("in_save")
    plain, seen = checkpoint.write_share, []

    def write(*arguments: Any) -> Any:
        seen.append(1)
        if asked and asked["rank"] == distributed.rank() and len(seen) == asked["nth"] and not Path(asked["mark"]).exists():
            Path(asked["mark"]).touch()
            if asked["name"] == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.kill(os.getpid(), getattr(signal, asked["name"]))
        return plain(*arguments)

    checkpoint.write_share = write
    try:
        yield
    finally:
        checkpoint.write_share = plain


def work(job: dict[str, Any]) -> dict[str, Any]:
    """One call of `fit`."""
    folder = Path(job["folder"])
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
    with distributed.weights_of_main():
        algorithm = toy_algorithm(**{**HEADS, **job.get("toy", {})})
    tokens = torch.arange(12)[None]

    @torch.inference_mode()
    def measure() -> dict[str, float]:
        """Something of all logits, in the mode in which held-out text is measured."""
        return {"mean": float(algorithm.model.logits(algorithm.model(tokens, Layout.packed([5, 7]))).double().square().mean())}

    def answer() -> list[dict[str, str]]:
        """What the model writes, with a cache."""
        answers = generate(algorithm.model, [[1, 2, 3], [4]], SamplingConfig(max_new_tokens=6))
        return [{"prompt": str(number), "answer": str(found.ids)} for number, found in enumerate(answers)]

    hooks = Hooks(evaluate=measure, samples=answer)
    plain = algorithm.loss

    def loss(batch: Any) -> Loss:
        """The loss, with the mean of the samples' numbers in the log, so that equal logs mean equal samples."""
        found = plain(batch)
        numbers = [float(zlib.crc32(name.encode())) for name in batch.sample_ids]
        return Loss(found.total, found.count, {"samples": (sum(numbers), len(numbers))})

    algorithm.loss = loss  # type: ignore[method-assign]
    disturb(job, algorithm)
    with first_gradients(folder), disturbed_save(job):
        result = fit(algorithm, toy_config(**job.get("config", {})), folder, seed=7, hooks=hooks)
    if distributed.is_main():
        save_file({name: tensor.detach().clone() for name, tensor in algorithm.model.state_dict().items()}, folder / "weights.safetensors")
    return {"steps": result.steps, "loss": result.loss, "evaluation": result.evaluation}


def main_jobs(jobs: list[dict[str, Any]]) -> None:
    """All jobs; an error that Luyện raises on purpose is the job's result."""
    for job in jobs:
        with interrupt.listening():
            try:
                result = work(job)
            except LuyenError as error:
                result = {"error": f"{type(error).__name__}: {error}", "exit_code": error.exit_code}
                if job.get("fatal"):
                    print(f"rank {distributed.rank()}: {result['error']}", file=sys.stderr, flush=True)
                    sys.exit(error.exit_code)
        name = "result.json" if distributed.is_main() else f"result-{distributed.rank()}.json"
        Path(job["folder"]).mkdir(parents=True, exist_ok=True)
        (Path(job["folder"]) / name).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main_jobs(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
