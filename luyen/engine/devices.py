"""Devices that can be rented or bought, as their makers' data sheets describe them. Peaks are dense: figures with sparsity are halved.

No sheet says what a program reaches: that is the share (`--mfu`) of `luyen plan`, or a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from luyen.core.errors import ConfigError, nearest


@dataclass(frozen=True)
class Device:
    """One line of a data sheet."""

    title: str
    half: float
    """Peak TFLOP/s of matrix products in bf16, in fp16 where there is no bf16, summed in fp32."""
    single: float
    """Peak TFLOP/s in fp32 (not TF32)."""
    memory: float
    """GB, of 10^9 bytes."""
    bandwidth: float
    """GB/s of that memory."""
    watts: float
    """Most power that it takes, the rest of the computer not counted."""
    source: str
    bf16: bool = True
    """Whether it has bf16."""

    def peak(self, half: bool) -> float:
        """Operations per second at best."""
        return 1e12 * (self.half if half else self.single)


DEVICES: dict[str, Device] = {
    "h200": Device("H200 SXM", 989.4, 66.9, 141, 4800, 700, "NVIDIA H200 data sheet, 2024"),
    "h100": Device("H100 SXM", 989.4, 66.9, 80, 3350, 700, "NVIDIA H100 data sheet, 2023; Hopper white paper, table 2"),
    "h100-pcie": Device("H100 PCIe", 756.0, 51.2, 80, 2000, 350, "NVIDIA H100 PCIe product brief PB-11133-001; H100 data sheet"),
    "a100": Device("A100 80GB SXM", 312.0, 19.5, 80, 2039, 400, "NVIDIA A100 80GB data sheet, 2021"),
    "a100-40": Device("A100 40GB SXM", 312.0, 19.5, 40, 1555, 400, "NVIDIA A100 data sheet, 2020"),
    "l40s": Device("L40S", 362.05, 91.6, 48, 864, 350, "NVIDIA L40S data sheet, 2023"),
    "a10g": Device("A10G", 70.0, 35.0, 24, 600, 300, "NVIDIA A10G data sheet for AWS, 2022"),
    "l4": Device("L4", 121.0, 30.3, 24, 300, 72, "NVIDIA L4 data sheet, 2023"),
    "t4": Device("T4", 65.0, 8.1, 16, 320, 70, "NVIDIA T4 data sheet, 2019", bf16=False),
    "rtx4090": Device("RTX 4090", 165.2, 82.6, 24, 1008, 450, "NVIDIA Ada white paper, appendix A"),
    "rtx3090": Device("RTX 3090", 71.0, 35.6, 24, 936, 350, "NVIDIA Ampere GA102 white paper, appendix A"),
    "v100": Device("V100 SXM2 32GB", 125.0, 15.7, 32, 900, 300, "NVIDIA V100 data sheet, 2018", bf16=False),
    "mi300x": Device("MI300X", 1307.4, 163.4, 192, 5300, 750, "AMD Instinct MI300X data sheet, 2023"),
}
"""Name for `--devices` -> device."""
TAKEN_BYTES = 1_000_000_000
"""What the driver's context and the libraries take of a GPU's memory before any tensor (assumed; 0.5 to 1 GB are usual)."""
LOST_SHARE = 0.05
"""Share of the memory that an allocator loses between its blocks (assumed)."""


def find(names: str) -> dict[str, Device]:
    """Devices by their names, separated by commas. Raises ConfigError for an unknown one, with the nearest."""
    found = {}
    for name in (part.strip().lower() for part in names.split(",")):
        if name not in DEVICES:
            raise ConfigError(f"--devices: unknown device {name!r}", fix=nearest(name, DEVICES))
        found[name] = DEVICES[name]
    return found


def usable_bytes(device: Device) -> float:
    """Bytes that tensors can have."""
    return device.memory * 1e9 * (1 - LOST_SHARE) - TAKEN_BYTES
