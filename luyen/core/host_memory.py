"""The most memory that this process held, as the system counts it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak() -> int:
    """Most bytes held by this process so far (since `reset_peak` where that is possible)."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, Linux kB


def reset_peak() -> None:
    """Count from now on. Where the system cannot (macOS) the peak stays that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the high-water mark VmHWM
    except OSError:
        return
