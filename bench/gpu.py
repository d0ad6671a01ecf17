"""Pretraining on a GPU against transformers' `Trainer`: tokens/s, and the share of the device's rate (MFU), in bf16 with rows of 2048.

    python bench/gpu.py [--sizes 124m,1b] [--rounds 3] [--steps 20] [--variants luyen,...] [--rows 8]
    python bench/gpu.py --toy        # every variant at toy sizes on a CPU, a minute of its time: that the program works, no measurement

Variants: our loop plain, compiled (`train.compile=always`), with selective activations, in fp8 and compiled (needs torchao and a GPU that
has it); transformers' `Trainer` with bf16, torch.compile, torch's attention (FlashAttention by sdpa) and fused AdamW. Same sizes, rows of
random tokens, rate and clipping. Every round starts each variant in a process of its own, in turn, forwards and backwards; the cache of
compiled code is shared by the rounds. After the warm-up `steps` steps are timed, from a moment at which the device has nothing to do to
the next. MFU counts the operations of products and causal attention, forward and backward (luyen/engine/cost.py), none that are done again,
over the rate of a large product measured in the same process, and over the data sheet's peak. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

OURS: dict[str, dict[str, Any]] = {
    "luyen": {},
    "luyen_compiled": {"compile": "always"},
    "luyen_selective": {"activations": "selective"},
    "luyen_fp8": {"compile": "always", "precision": "fp8"},
}
TRAINER = "transformers_trainer"
SIZES: dict[str, tuple[str, int, int, int]] = {
    "124m": ("llama-124m", 50304, 2048, 16),
    "1b": ("llama-1b", 32000, 2048, 4),
    "toy": ("llama-1m", 512, 128, 2),
}
"""Name -> preset, vocabulary, length of a row, rows of a step."""
PACKAGES = ("luyen", "torch", "transformers", "accelerate", "triton", "torchao", "numpy")
WARM = 5
"""Steps before those that are timed; the first ones compile."""
SKIPPED = 3
"""Exit status of a variant that this machine cannot run."""


def sheet(name: str) -> str:
    """Key of a device in luyen/engine/devices.py by the name that its driver tells, "" where it is not there."""
    from luyen.engine.devices import DEVICES

    told = "".join(letter for letter in name.lower() if letter.isalnum())
    return max((key for key in DEVICES if key.replace("-", "") in told), key=len, default="")


def child(name: str, size: str, steps: int, rows: int) -> None:
    """One variant, alone in this process; prints its figures as JSON."""
    import torch

    from luyen.core.device import matmul_rate, pick_device
    from luyen.engine import cost, memory
    from luyen.models.presets import preset

    device = pick_device("auto")
    vocabulary, length = SIZES[size][1:3]
    config = preset(SIZES[size][0], vocabulary, context_length=length)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        make = trainer if name == TRAINER else luyen
        warm = WARM if device.type == "cuda" else 1
        seconds = make(name, config, rows, Path(scratch), device)(warm, steps)
    speed = steps * rows * length / seconds
    done = cost.operations(config, length).training * speed
    rate = matmul_rate(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(json.dumps({"tokens_per_second": speed, "operations": done, "rate": rate, "bytes": memory.peak_bytes(device), "device": title}))


def luyen(name: str, config: Any, rows: int, scratch: Path, device: Any) -> Callable[[int, int], float]:
    """Our loop: Run.update is what `fit` calls for each step, in the same surroundings."""
    import contextlib

    import numpy as np

    from luyen.algorithms.pretrain import Pretrain
    from luyen.core.config import load
    from luyen.core.errors import ConfigError
    from luyen.data.loader import PackedStream
    from luyen.data.samples import Sample
    from luyen.engine import fp8
    from luyen.engine.activations import recomputed
    from luyen.engine.compiling import compiled
    from luyen.engine.config import TrainConfig
    from luyen.engine.memory import freed_memory_kept
    from luyen.engine.run import Hooks, Run
    from luyen.models.transformer import Transformer

    values = {
        "steps": 100_000, "device": device.type, "precision": "bf16", "schedule": {"name": "constant", "warmup_steps": 0}, **OURS[name],
    }  # fmt: skip
    train = load(TrainConfig, values)
    ids = tokens(config, rows)
    samples = [Sample(str(row), ids[row, :-1].astype(np.int32), ids[row, 1:].astype(np.int32)) for row in range(len(ids))]
    model = Transformer(config)
    algorithm = Pretrain(model, PackedStream(samples, capacity=config.context_length, rows=rows, seed=0))

    def steps(warm: int, count: int) -> float:
        in_fp8 = train.precision == "fp8"
        try:
            if in_fp8 and device.type == "cuda":
                fp8.check(device, 1)
            with contextlib.ExitStack() as stack:
                stack.enter_context(freed_memory_kept())
                stack.enter_context(fp8.trained_in_fp8(model, in_fp8, emulate=device.type == "cpu"))
                stack.enter_context(compiled(model, train.compile == "always"))
                stack.enter_context(recomputed(model, train.activations))
                run = Run(algorithm, train, scratch / "run", 0, Hooks())
                stream = algorithm.batches(None)
                for _ in range(warm):
                    run.update(stream)
                started = moment(device)
                for _ in range(count):
                    run.update(stream)
                return moment(device) - started
        except ConfigError as error:
            print(error, file=sys.stderr)
            sys.exit(SKIPPED)

    return steps


def trainer(name: str, config: Any, rows: int, scratch: Path, device: Any) -> Callable[[int, int], float]:
    """transformers' Trainer, timed by a callback from the end of the warm-up's last step to the end of the last."""
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from luyen.models.presets import count_parameters

    transformers.logging.set_verbosity_error()
    theirs = LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
        rms_norm_eps=config.norm_eps, tie_word_embeddings=config.tied, max_position_embeddings=config.context_length, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(theirs)
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(config)
    dataset = [{"input_ids": row, "labels": row} for row in torch.from_numpy(tokens(config, rows)[:, :-1].copy())] * 64

    class Clock(TrainerCallback):
        """The moments after some steps."""

        def __init__(self, *after: int) -> None:
            self.after, self.moments = after, list[float]()

        def on_step_end(self, _arguments: Any, state: Any, _control: Any, **_more: Any) -> None:
            """Note the time, when the device has done everything."""
            if state.global_step in self.after:
                self.moments.append(moment(device))

    def steps(warm: int, count: int) -> float:
        clock = Clock(warm, warm + count)
        settings = TrainingArguments(
            output_dir=str(scratch), per_device_train_batch_size=rows, max_steps=warm + count, learning_rate=1e-3, weight_decay=0.1,
            adam_beta2=0.95, max_grad_norm=1.0, optim="adamw_torch_fused", lr_scheduler_type="constant", save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=device.type == "cpu", dataloader_num_workers=0, seed=0,
            bf16=True, torch_compile=True,
        )  # fmt: skip
        Trainer(model=model, args=settings, train_dataset=dataset, callbacks=[clock]).train()
        return clock.moments[1] - clock.moments[0]

    return steps


def tokens(config: Any, rows: int) -> Any:
    """Rows of one token more than the context of random ids, the same for all; four steps' worth."""
    import numpy as np

    return np.random.default_rng(0).integers(config.vocab_size, size=(rows * 4, config.context_length + 1)).astype(np.int64)


def moment(device: Any) -> float:
    """The time when the device has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def start(name: str, size: str, arguments: argparse.Namespace, cache: str) -> dict[str, Any] | str:
    """The figures of one process, or why there are none."""
    command = [sys.executable, __file__, "--child", name, "--sizes", size, "--steps", str(arguments.steps)]
    rows = arguments.rows or SIZES[size][3]
    done = subprocess.run(
        [*command, "--rows", str(rows)], capture_output=True, text=True, check=False, env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        print(f"{size} {name}: {reason}", file=sys.stderr, flush=True)
        return f"skipped: {reason}" if done.returncode == SKIPPED else f"failed: {reason}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{size} {name}: {found['tokens_per_second']:,.0f} tokens/s", file=sys.stderr, flush=True)
    return found


def measure(size: str, arguments: argparse.Namespace, cache: str) -> dict[str, Any]:
    """Medians of one size over interleaved rounds, and of the rounds' ratios to the Trainer."""
    names = arguments.variants.split(",")
    rounds = [
        {name: start(name, size, arguments, cache) for name in (names if number % 2 == 0 else names[::-1])}
        for number in range(arguments.rounds)
    ]
    result: dict[str, Any] = {"length": SIZES[size][2], "rows": arguments.rows or SIZES[size][3]}
    good: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        runs = [found for each in rounds if isinstance(found := each[name], dict)]
        if len(runs) < len(rounds):
            result[name] = next(found for each in rounds if isinstance(found := each[name], str))
        else:
            good[name] = runs
            result[name] = figures(runs)
    for name in (name for name in good if name != TRAINER and TRAINER in good):
        pairs = zip(good[name], good[TRAINER], strict=True)
        result[f"{name} / {TRAINER}"] = round(statistics.median(a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs), 3)
    return result


def figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One variant's medians."""
    from luyen.engine.devices import DEVICES

    speeds = [run["tokens_per_second"] for run in runs]
    key = sheet(runs[0]["device"])
    peak = DEVICES[key].peak(half=True) if key else None
    return {
        "tokens_per_second": round(statistics.median(speeds)),
        "range": f"{min(speeds):.0f}-{max(speeds):.0f}",
        "mfu_of_measured_rate": round(statistics.median(run["operations"] / run["rate"] for run in runs), 4),
        "mfu_of_data_sheet": None if peak is None else round(statistics.median(run["operations"] for run in runs) / peak, 4),
        "measured_tflops": round(statistics.median(run["rate"] for run in runs) / 1e12, 3),
        "gigabytes": round(max(run["bytes"] for run in runs) / 1e9, 2),
        "device": runs[0]["device"],
        "data_sheet": key or None,
    }


def versions() -> dict[str, str]:
    """Versions of what is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Run the sizes, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="124m,1b", help="of 124m, 1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a round")
    parser.add_argument("--rows", type=int, default=0, help="rows of a step; 0: what the size has")
    parser.add_argument("--variants", default=",".join([*OURS, TRAINER]), help=f"of {', '.join([*OURS, TRAINER])}")
    parser.add_argument("--toy", action="store_true", help="toy sizes on a CPU, one round of two steps")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.sizes, arguments.steps, arguments.rows)
        return
    if arguments.toy:
        arguments.sizes, arguments.rounds, arguments.steps = "toy", 1, 2
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not has_gpu():
        raise SystemExit("no GPU was found; --toy runs the program on a CPU")
    report: dict[str, Any] = {"bench": "gpu", "toy": arguments.toy, "command": " ".join(["python", "bench/gpu.py", *sys.argv[1:]])}
    report |= {"precision": "bf16", "rounds": arguments.rounds, "steps": arguments.steps, "versions": versions()}
    with tempfile.TemporaryDirectory() as cache:
        report["sizes"] = {size: measure(size, arguments, cache) for size in arguments.sizes.split(",")}
    print(json.dumps(report))


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
