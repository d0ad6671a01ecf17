"""Memory: the peak that a run took, and the allocator's settings while it trains."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

# Parameters of mallopt in glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
NEVER, NO_BLOCKS, USUAL_BLOCKS = 2**31 - 1, 0, 65536
# Setting one parameter stops glibc from adapting the thresholds; these are where it ends in a process that frees large blocks.
USUAL_MMAP, USUAL_TRIM = 32 << 20, 64 << 20


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within the block memory that is freed stays in the process, then it goes back to the system.

    A training step on a CPU frees and asks for the same large blocks again and again. By default glibc hands each back at once, and
    every page of it must be mapped and cleared anew. Does nothing where the C library is not glibc.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(M_MMAP_MAX, NO_BLOCKS)
    library.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, USUAL_BLOCKS)
        library.mallopt(M_MMAP_THRESHOLD, USUAL_MMAP)
        library.mallopt(M_TRIM_THRESHOLD, USUAL_TRIM)
        library.malloc_trim(0)


def peak_bytes(device: torch.device) -> int:
    """Most memory held so far: of the GPU's allocator there, else of the process (since `reset_peak` where that is possible)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kB


def reset_peak(device: torch.device) -> None:
    """Measure the peak from now on. Where the system cannot (macOS) the peak stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the high-water mark VmHWM
    except OSError:
        return
