"""The benchmark of GPUs as far as a CPU can run it: toy sizes, and the data sheet that a driver's name means."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.mark.parametrize(
    ("told", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"), ("NVIDIA L4", "l4"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("Tesla T4", "t4"), ("Quadro RTX 6000", ""),
    ],
)  # fmt: skip
def test_the_name_that_a_driver_tells_finds_the_data_sheet(told: str, key: str) -> None:
    spec = importlib.util.spec_from_file_location("gpu_bench", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.sheet(told) == key


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_toy_sizes_run_whole_on_a_cpu() -> None:
    command = [sys.executable, str(PROGRAM), "--toy", "--variants", "luyen_selective,luyen_fp8,transformers_trainer"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    found = report["sizes"]["toy"]
    assert report["toy"] and report["versions"]["torch"] and report["command"].startswith("python bench/gpu.py --toy")
    for name in ("luyen_selective", "transformers_trainer"):
        assert found[name]["tokens_per_second"] > 0 and 0 < found[name]["mfu_of_measured_rate"] < 2
    assert found["luyen_selective / transformers_trainer"] > 0
    in_fp8 = found["luyen_fp8"]
    assert in_fp8["tokens_per_second"] > 0 if importlib.util.find_spec("torchao") else "torchao is not installed" in in_fp8


def test_without_a_gpu_nothing_is_measured() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 1 and "no GPU was found; --toy" in done.stderr
