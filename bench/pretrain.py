"""Pretraining tokens/s against transformers' LlamaForCausalLM: plain loop, `Trainer` and, if asked, torch.compile.

    python bench/pretrain.py [--sizes 15m,60m] [--rounds 5] [--steps 3] [--compile] [--precision bf16]

With --compile both also as compiled: transformers' whole model, and the layers of ours as `train.compile=always` does. With
--precision bf16 all make their products in bf16 by autocast, which pays on a CPU with units for it (AMX).

Same weights, same rows of 512 random tokens (8 rows for 15m, 4 for 60m, vocabulary 8192), fused AdamW, clip 1.0, 2 threads. In every
round each variant runs `steps` timed steps after one that is not timed, in turn, with the matrix-product rate of the moment beside it;
reported are medians over the rounds and the median of the rounds' ratios. Prints one JSON line.

`luyen` is the whole loop as a user runs it, with logs and without checkpoints or evaluations inside the timed steps. The plain loop
has no logging. `Trainer` is given fused AdamW, no saving and no logging; its time is that of its own steps, measured by a callback.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from luyen.algorithms.pretrain import Pretrain
from luyen.core.config import load
from luyen.core.device import matmul_rate
from luyen.data.loader import PackedStream
from luyen.data.samples import Sample
from luyen.engine.activations import recomputed
from luyen.engine.compiling import compiled
from luyen.engine.config import TrainConfig
from luyen.engine.memory import freed_memory_kept
from luyen.engine.run import Hooks, Run
from luyen.models import hf
from luyen.models.presets import preset
from luyen.models.transformer import Transformer

VOCABULARY, LENGTH, RATE = 8192, 512, 1e-3
ROWS = {"15m": 8, "60m": 4}
KEPT = TrainConfig().activations
CPU = torch.device("cpu")


class Peer:
    """One variant of one size: `steps(n)` returns the seconds of n steps. `kept` is held as long as the variant is."""

    def __init__(self, name: str, steps: Callable[[int], float], kept: object = None) -> None:
        self.name, self.steps, self.kept = name, steps, kept


def data(rows: int) -> np.ndarray[Any, Any]:
    """Rows of LENGTH + 1 random ids, the same for all."""
    return np.random.default_rng(0).integers(VOCABULARY, size=(rows * 4, LENGTH + 1)).astype(np.int64)


def luyen(
    model: Transformer, ids: np.ndarray[Any, Any], rows: int, folder: Path, activations: str = KEPT, compile_layers: bool = False,
    precision: str = "fp32",
) -> Peer:  # fmt: skip
    """Our loop: Run.update is what `fit` calls for each step, in the same surroundings."""
    samples = [Sample(str(row), ids[row, :-1].astype(np.int32), ids[row, 1:].astype(np.int32)) for row in range(len(ids))]
    algorithm = Pretrain(model, PackedStream(samples, capacity=LENGTH, rows=rows, seed=0))
    values = {
        "steps": 100_000, "device": "cpu", "precision": precision, "schedule": {"name": "constant", "warmup_steps": 0},
        "optimizer": {"learning_rate": RATE},
    }  # fmt: skip
    run = Run(algorithm, load(TrainConfig, values), folder, 0, Hooks())
    stream = algorithm.batches(None)
    kept = contextlib.ExitStack()  # leaving and entering it would compile anew
    kept.enter_context(compiled(model, compile_layers))

    def steps(count: int) -> float:
        with freed_memory_kept(), recomputed(model, activations):  # type: ignore[arg-type]
            run.update(stream)
            started = time.perf_counter()
            for _ in range(count):
                run.update(stream)
            return time.perf_counter() - started

    return Peer("luyen_compiled" if compile_layers else "luyen", steps, kept)


def plain_loop(model: LlamaForCausalLM, ids: np.ndarray[Any, Any], rows: int, compiled: bool, precision: str = "fp32") -> Peer:
    """A loop as in a tutorial: forward with labels, backward, clip, fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model
    batches = cycle(ids, rows)

    def steps(count: int) -> float:
        started = time.perf_counter()
        for index in range(count + 1):
            if index == 1:
                started = time.perf_counter()
            tokens = torch.from_numpy(next(batches)[:, :-1].copy())
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    return Peer("transformers_compiled" if compiled else "transformers_loop", steps)


class Clock(TrainerCallback):
    """Seconds of the Trainer's steps after the first, data and optimizer included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def trainer(model: LlamaForCausalLM, ids: np.ndarray[Any, Any], rows: int, folder: Path, precision: str = "fp32") -> Peer:
    """transformers' Trainer on the same rows. A call of train() starts anew; its first step is not timed."""
    dataset = [{"input_ids": torch.from_numpy(row[:-1]), "labels": torch.from_numpy(row[:-1])} for row in ids] * 8

    def steps(count: int) -> float:
        clock = Clock()
        settings = TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=rows, max_steps=count + 1, learning_rate=RATE, weight_decay=0.1,
            adam_beta2=0.95, max_grad_norm=1.0, optim="adamw_torch_fused", lr_scheduler_type="constant", save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, dataloader_num_workers=0, seed=0,
            bf16=precision == "bf16",
        )  # fmt: skip
        Trainer(model=model, args=settings, train_dataset=dataset, callbacks=[clock]).train()
        return clock.ends[-1] - clock.ends[0]

    return Peer("transformers_trainer", steps)


def cycle(ids: np.ndarray[Any, Any], rows: int) -> Iterator[np.ndarray[Any, Any]]:
    """Batches of rows without end."""
    while True:
        for start in range(0, len(ids), rows):
            yield ids[start : start + rows]


def alone(name: str, size: str, scratch: Path, activations: str = KEPT, precision: str = "fp32") -> Peer:
    """One variant by name, with weights that every process draws alike."""
    torch.manual_seed(0)
    model = Transformer(preset(f"llama-{size}", VOCABULARY))
    rows, ids = ROWS[size], data(ROWS[size])
    if name.startswith("luyen"):
        return luyen(model, ids, rows, scratch / "run", activations, name == "luyen_compiled", precision)
    folder = scratch / f"model-{size}"
    folder.mkdir()
    hf.save(model, folder)
    del model
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    if name == "transformers_trainer":
        return trainer(theirs, ids, rows, scratch / "trainer", precision)
    return plain_loop(theirs, ids, rows, name == "transformers_compiled", precision)


def peers(size: str, scratch: Path, with_compiled: bool, precision: str) -> list[Peer]:
    """Every variant with its own copy of the same weights, after checking that they compute the same loss."""
    torch.manual_seed(0)
    model = Transformer(preset(f"llama-{size}", VOCABULARY))
    folder = scratch / f"model-{size}"
    folder.mkdir()
    hf.save(model, folder)
    rows, ids = ROWS[size], data(ROWS[size])

    def theirs() -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).train()

    with torch.no_grad():
        tokens = torch.from_numpy(ids[:2, :-1].copy())
        torch.testing.assert_close(model.logits(model(tokens)), theirs()(tokens).logits, rtol=1e-4, atol=1e-4)
    run_folder = scratch / f"run-{size}"
    found = [
        luyen(model, ids, rows, run_folder, precision=precision),
        plain_loop(theirs(), ids, rows, False, precision),
        trainer(theirs(), ids, rows, scratch / "trainer", precision),
    ]
    if not with_compiled:
        return found
    ours = luyen(hf.load(folder), ids, rows, scratch / f"run-{size}-compiled", compile_layers=True, precision=precision)
    return [*found, ours, plain_loop(theirs(), ids, rows, True, precision)]


def measure(size: str, arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Interleaved rounds of one size."""
    variants = peers(size, scratch, arguments.compile, arguments.precision)
    tokens = arguments.steps * ROWS[size] * LENGTH
    speeds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    rates: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for round_number in range(arguments.rounds):
        for variant in variants if round_number % 2 == 0 else variants[::-1]:
            gc.collect()
            before = matmul_rate(CPU, torch.float32)
            speeds[variant.name].append(tokens / variant.steps(arguments.steps))
            rates[variant.name].append((before + matmul_rate(CPU, torch.float32)) / 2e9)
            print(f"{size} round {round_number + 1} {variant.name}: {speeds[variant.name][-1]:.0f} tokens/s", file=sys.stderr, flush=True)
    result: dict[str, Any] = {"rows": ROWS[size], "length": LENGTH}
    for name, values in speeds.items():
        spread = f"{min(values):.0f}-{max(values):.0f}"
        speed, rate = round(statistics.median(values)), round(statistics.median(rates[name]))
        result[name] = {"tokens_per_second": speed, "range": spread, "gflops": rate}
        for own in (own for own in speeds if own.startswith("luyen") and not name.startswith("luyen")):
            ratios = [ours / other for ours, other in zip(speeds[own], values, strict=True)]
            result[f"{own} / {name}"] = round(statistics.median(ratios), 3)
    return result


def main() -> None:
    """Run the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="15m,60m", help="15m, 60m or both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round")
    parser.add_argument("--compile", action="store_true", help="both also with torch.compile (a minute to start)")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="type of the products")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    report: dict[str, Any] = {
        "bench": "pretrain",
        "precision": arguments.precision,
        "threads": 2,
        "rounds": arguments.rounds,
        "steps": arguments.steps,
    }
    with tempfile.TemporaryDirectory() as scratch:
        for size in arguments.sizes.split(","):
            report[size] = measure(size, arguments, Path(scratch))
    print(json.dumps({**report, "torch": torch.__version__, "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
