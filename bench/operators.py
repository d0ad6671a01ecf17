"""Where the time of a training step on a CPU goes, operator by operator, for ours and for transformers' plain loop.

    python bench/operators.py [--sizes 15m,60m] [--steps 3]

Same weights, rows and settings as bench/pretrain.py. Every operator that torch runs is timed by itself, in the process' own loop and not by
torch's profiler, under which memory that was freed is asked for anew in every step. Timing costs some microseconds for each operator;
`between` is what is left of the step: Python, autograd, the timing itself. Prints a table for people on stderr and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import transformers
from pretrain import KEPT, alone
from torch.utils._python_dispatch import TorchDispatchMode

FLASH = "_scaled_dot_product_flash_attention_for_cpu"
LOSS = "_log_softmax _log_softmax_backward_data exp_ log_ gather scatter_add_ nll_loss_forward nll_loss_backward"
GROUPS = {
    "products of layers and head": ["mm", "addmm", "addmm_", "linear"],
    "products of attention": ["bmm", "baddbmm", FLASH, f"{FLASH}_backward"],
    "softmax and loss": f"_softmax softmax _softmax_backward_data {LOSS}".split(),
    "copies and layouts": ["copy_", "clone", "cat", "index_select", "_to_copy", "stack", "roll"],
    "optimizer and clipping": ["_fused_adamw_", "_foreach_norm", "_foreach_mul_", "linalg_vector_norm", "zero_"],
}


class Timer(TorchDispatchMode):
    """Seconds and calls of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.perf_counter()
        result = function(*args, **(kwargs or {}))
        name = str(function.overloadpacket).removeprefix("aten.")
        self.seconds[name] += time.perf_counter() - started
        self.calls[name] += 1
        return result


def measure(name: str, size: str, steps: int) -> dict[str, Any]:
    """Milliseconds a step by group, and of the largest operators."""
    with tempfile.TemporaryDirectory() as scratch:
        variant = alone(name, size, Path(scratch), KEPT)
        variant.steps(2)
        plain = min(variant.steps(1) for _ in range(steps))
        with Timer() as timer:
            variant.steps(1)
            timer.seconds.clear()
            timer.calls.clear()
            whole = variant.steps(steps - 1) / (steps - 1)  # with the step before those it tells
    per_step = {key: value * 1e3 / steps for key, value in timer.seconds.items()}
    groups = {group: sum(per_step.pop(key, 0.0) for key in names) for group, names in GROUPS.items()}
    groups["elementwise and the rest"] = sum(per_step.values())
    groups["between"] = whole * 1e3 - sum(groups.values())
    rest = sorted(per_step.items(), key=lambda item: -item[1])[:6]
    return {"step without timing": round(plain * 1e3), "step": round(whole * 1e3), **{key: round(value) for key, value in groups.items()},
            "largest of the rest": {key: round(value) for key, value in rest}}  # fmt: skip


def main() -> None:
    """Run the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="15m,60m", help="15m, 60m or both")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    report: dict[str, Any] = {"bench": "operators", "threads": 2}
    for size in arguments.sizes.split(","):
        report[size] = {name: measure(name, size, arguments.steps) for name in ("luyen", "transformers_loop")}
        for key in report[size]["luyen"]:
            print(f"{size} {key}: " + ", ".join(f"{name} {found[key]}" for name, found in report[size].items()), file=sys.stderr)
    print(json.dumps({**report, "unit": "ms", "torch": torch.__version__, "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
