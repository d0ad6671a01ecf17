"""Which process works on a folder or temporary file: locks that die with their process, so a crash leaves nothing behind.

Where the file system cannot lock (some NFS) processes must not write one artefact together: nothing tells them apart there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_ours: set[tuple[int, int]] = set()
"""Device and inode of what this process owns."""


def own(descriptor: int) -> None:
    """Mark an open file or folder as being written by this process, until `release` or the process' end."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _ours.add(_identity(descriptor))


def release(descriptor: int) -> None:
    """Give up what `own` marked; call it before closing."""
    _ours.discard(_identity(descriptor))
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a child was forked meanwhile


def owned(path: Path) -> bool:
    """Whether the process that writes `path` lives, told by its lock: a process id may be another's by now. True where nothing tells."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One process at a time inside the block, for renames in `folder`; what this process owns it need not lock again."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _identity(descriptor) in _ours:
            yield
            return
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # see `release`
    finally:
        os.close(descriptor)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
