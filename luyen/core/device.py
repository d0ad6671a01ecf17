"""Which device and number format to compute in, how tensors get there, and how fast it is."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch

from luyen.core.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16", "fp16", "fp8"]
WARM_SECONDS = 0.1
"""For so long a measurement of speed only warms up."""
PINS = ("cuda",)
"""Types of devices that read the host's pinned memory by themselves."""


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU. Raises ConfigError for a device that is not here."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("device", found=repr(name), expected="auto, cpu, cuda, cuda:N or mps, present on this machine") from error
    return device


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU that has it, fp16 on one that has not, fp32 on a CPU (most emulate bf16, slowly)."""
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.float32
    # fp8 is of some products alone (engine/fp8.py); the type of all else is bf16.
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}[precision]


@cache
def multiplies_fast(dtype: torch.dtype) -> bool:
    """Whether this CPU has units for matrix products of the type: fp32 and fp64 always, bf16 with AMX (ten times the rate of fp32)."""
    return dtype in (torch.float32, torch.float64) or (dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("amx_bf16") is True)


def to_device(tensor: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    """The tensor on `device` (None: where it is), without waiting for what a GPU was told to do before.

    Such a copy must start from pinned memory: from any other the host waits until the device has done everything that it was given.
    """
    if device is None:
        return tensor
    if tensor.device.type == "cpu" and torch.device(device).type in PINS:
        return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned memory until the copy is done
    return tensor.to(device)


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, rounds: int = 5) -> float:
    """Floating-point operations per second of a square matrix product, the median of a few runs (about 0.2 s on two cores).

    `size` is its side; empty: one that fills the device, 768 on a CPU (1536 in bf16, where it has units for it) and 8192 on a GPU, where
    launching a small one takes longer. What comes first is not counted: threads start and clocks settle for WARM_SECONDS.
    """
    size = size or (8192 if device.type != "cpu" else 1536 if dtype == torch.bfloat16 and multiplies_fast(dtype) else 768)
    left = torch.randn(size, size, device=device, dtype=dtype)
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < rounds:
        started = time.perf_counter()
        (left @ left)[0, 0].item()  # waits for a GPU
        ended = time.perf_counter()
        if started > begun + WARM_SECONDS:
            seconds.append(ended - started)
    return 2 * size**3 / sorted(seconds)[rounds // 2]
