"""Energy in joules from the counters of the processor (RAPL) and of NVIDIA GPUs (NVML). Where there are none: None, never a guess."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Adds up what the counters say between its creation and `joules()`.

    A processor's counter wraps around within minutes, so `sample()` must be called at least that often; every step is enough.
    RAPL counts whole packages: other programs on the machine are in the figure.
    """

    def __init__(self, device: torch.device, powercap: Path = POWERCAP) -> None:
        self._packages = [
            (domain / "energy_uj", _read(domain / "max_energy_range_uj"))
            for domain in sorted(powercap.glob("intel-rapl:*"))
            if domain.name.count(":") == 1 and _read(domain / "energy_uj") is not None
        ]
        self._last = [_read(path) for path, _ in self._packages]
        self._gpu = _gpu_counter(device) if device.type == "cuda" else None
        self._gpu_start = self._gpu() if self._gpu else None
        self._microjoules = 0
        self._complete = bool(self._packages) and (device.type != "cuda" or self._gpu_start is not None)

    def sample(self) -> None:
        """Take up what the processor's counters gained since the last call."""
        for index, (path, span) in enumerate(self._packages):
            now, last = _read(path), self._last[index]
            if now is None or last is None:
                self._complete = False
                continue
            if now < last and span is None:
                self._complete = False
            self._microjoules += now - last if now >= last else now - last + (span or 0)
            self._last[index] = now

    def joules(self) -> float | None:
        """Joules since the start; None when a part of the machine that worked cannot be measured."""
        self.sample()
        if not self._complete:
            return None
        gpu = 0.0
        if self._gpu is not None and self._gpu_start is not None:
            now = self._gpu()
            if now is None:
                return None
            gpu = now - self._gpu_start
        return self._microjoules / 1e6 + gpu


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _gpu_counter(device: torch.device) -> Callable[[], float | None] | None:
    """A function that reads the GPU's energy counter in joules, or None when NVML or the counter is not there."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle = ctypes.c_void_p()
    identifier = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(identifier, ctypes.byref(handle)):
        return None

    def read() -> float | None:
        millijoules = ctypes.c_ulonglong()
        failed = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return None if failed else millijoules.value / 1000

    return read if read() is not None else None
