"""The most memory that this process held, as the system counts it."""

from __future__ import annotations

import ctypes
import gc
import os
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


def glibc() -> ctypes.CDLL | None:
    """The C library of this process, where it is glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if library is not None and hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def release() -> None:
    """Drop what only cycles of references hold, and give the system the pages of freed memory, so that what comes next starts from what
    is in use. Libraries that were loaded stay."""
    gc.collect()
    library = glibc()
    if library is not None:
        library.malloc_trim(0)


def total() -> int:
    """Bytes of memory that this machine has, or that its control group may use where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(machine, int(text)) if text.isdigit() else machine
