"""What a process holds at most, and that memory which nobody uses any more does not count in what comes next."""

import gc
import sys

import pytest

from luyen.core import host_memory


@pytest.mark.skipif(not sys.platform.startswith("linux") or host_memory.glibc() is None, reason="only glibc is told to give memory back")
def test_what_was_freed_or_hangs_in_a_cycle_is_not_of_the_next_peak() -> None:
    host_memory.release()
    host_memory.reset_peak()
    before = host_memory.peak()
    gc.disable()
    try:
        cycle: list[object] = [bytearray(b"x") * 64_000 for _ in range(1500)]  # small enough that the allocator keeps them
        cycle.append(cycle)
        assert host_memory.peak() > before + 80e6
        del cycle
        host_memory.reset_peak()
        assert host_memory.peak() > before + 80e6, "the cycle still holds them"
        host_memory.release()
        host_memory.reset_peak()
        assert host_memory.peak() < before + 20e6
    finally:
        gc.enable()
