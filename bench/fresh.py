"""A training run in a process of its own, against transformers' `Trainer` and torch.compile: peak memory, and time to the first N steps.

    python bench/fresh.py [--sizes 15m,60m] [--steps 3] [--rounds 1] [--variants luyen,transformers_trainer,transformers_loop]
    python bench/fresh.py --sizes 15m --steps 100 --rounds 3 --variants luyen,transformers_compiled

Same weights, same rows and same settings as bench/pretrain.py. Every variant starts anew for each round, in turn, with an empty cache of
compiled code. Time counts from the start of the process to the end of the last step: imports, building, compiling and training. Memory is
the most that the process held (VmHWM), its libraries included; `over the libraries` has what is there after the imports taken off.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VARIANTS = ("luyen", "transformers_loop", "transformers_trainer", "transformers_compiled", "luyen_compiled")


def high_water() -> int:
    """Most bytes of memory that this process held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this needs Linux")


def child(name: str, size: str, steps: int, activations: str, precision: str) -> None:
    """One variant, alone in this process; prints its figures as JSON."""
    import pretrain
    import torch
    import transformers

    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    libraries = high_water()
    with tempfile.TemporaryDirectory() as scratch:
        variant = pretrain.alone(name, size, Path(scratch), activations or pretrain.KEPT, precision)
        variant.steps(steps - 1)  # it takes one step before those it is asked for
    print(json.dumps({"bytes": high_water(), "libraries": libraries}))


def start(name: str, size: str, arguments: argparse.Namespace) -> dict[str, float]:
    """The figures of one process."""
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        command = [sys.executable, __file__, "--child", name, "--sizes", size, "--steps", str(arguments.steps)]
        command += ["--activations", arguments.activations, "--precision", arguments.precision]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{size} {name}: {seconds:.1f} s, {found['bytes'] / 1e9:.2f} GB", file=sys.stderr, flush=True)
    return {"seconds": seconds, "bytes": found["bytes"], "over": found["bytes"] - found["libraries"]}


def measure(size: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of one size, and ratios of ours to each peer's."""
    names = arguments.variants.split(",")
    rounds = [
        {name: start(name, size, arguments) for name in (names if number % 2 == 0 else names[::-1])} for number in range(arguments.rounds)
    ]
    result: dict[str, Any] = {}
    for name in names:
        middle = {key: statistics.median(found[name][key] for found in rounds) for key in ("seconds", "bytes", "over")}
        result[name] = {
            "seconds": round(middle["seconds"], 1), "gigabytes": round(middle["bytes"] / 1e9, 2),
            "over the libraries": round(middle["over"] / 1e9, 2),
        }  # fmt: skip
        if name != "luyen" and "luyen" in names:
            result[f"luyen / {name}"] = {
                key: round(statistics.median(found["luyen"][key] / found[name][key] for found in rounds), 3)
                for key in ("seconds", "bytes", "over")
            }
    return result


def main() -> None:
    """Run the sizes, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="15m,60m", help="15m, 60m or both")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--variants", default=",".join(VARIANTS[:3]), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--activations", default="", help="of ours: what is computed again in the backward pass")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="type of the products")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.sizes, arguments.steps, arguments.activations, arguments.precision)
        return
    report: dict[str, Any] = {"bench": "fresh", "threads": 2, "rounds": arguments.rounds, "steps": arguments.steps}
    for size in arguments.sizes.split(","):
        report[size] = measure(size, arguments)
    print(json.dumps({**report, "activations": arguments.activations, "precision": arguments.precision}))


if __name__ == "__main__":
    main()
