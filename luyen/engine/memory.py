"""Memory: the peak that a run took, and the allocator's settings while it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from luyen.core import host_memory

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
    library = host_memory.glibc()
    if library is None:
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


def give_back() -> None:
    """Give the system the pages of freed memory, also of pieces that lie between others in use. Does nothing where there is no glibc.

    Torch asks for aligned memory, and glibc does not put an aligned block into a gap that is just as large as the block. So blocks that are
    made and freed one after another, with something small that stays after each, take new memory every time.
    """
    library = host_memory.glibc()
    if library is not None:
        library.malloc_trim(0)


def peak_bytes(device: torch.device) -> int:
    """Most memory held so far: of the GPU's allocator there, else of the process (since `reset_peak` where that is possible)."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else host_memory.peak()


def reset_peak(device: torch.device) -> None:
    """Measure the peak from now on. Where the system cannot (macOS) the peak stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        host_memory.reset_peak()
