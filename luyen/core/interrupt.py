"""Signals ask; the work stops at its next safe point. The handler sets a flag and does nothing else."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from luyen.core.errors import Interrupted

_requested: list[int] = []
_held: list[bool] = []


def requested() -> int:
    """The number of the signal that asked to stop, or 0."""
    return _requested[0] if _requested else 0


def check() -> None:
    """Raise Interrupted if a signal asked to stop. Call it where everything worth keeping is on disk."""
    if _requested and not _held:
        raise Interrupted(_requested[0])


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within the block `check` lets a request wait: for work that several processes do together and none may leave alone."""
    _held.append(True)
    try:
        yield
    finally:
        _held.pop()


def _handle(number: int, frame: FrameType | None) -> None:
    if _requested and number == signal.SIGINT:
        raise KeyboardInterrupt  # a second Ctrl-C means now
    _requested.append(number)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM set the flag instead of ending the process."""
    _requested.clear()
    before = {number: signal.signal(number, _handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested.clear()
