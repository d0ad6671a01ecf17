"""TensorBoard event files: scalars by step, in the TFRecord format that every reader of them knows.

    record = length (uint64) | masked crc32c of these 8 bytes | data | masked crc32c of the data       little-endian
    masked(c) = rotate_right(c, 15) + 0xa282ead8  mod 2^32

The data is an `Event` protocol buffer (tensorflow/core/util/event.proto): 1 wall_time (double), 2 step (int64), 3 file_version, 5 summary,
7 session_log. A summary is a list of values: 1 tag, 2 simple_value (float). The first event of a file is its version.

Every process that trains writes a file of its own, numbered, and what a kill destroyed is cut off the earlier one when the run goes on, so
that no step is there twice; a session_log at the new file's start tells a TensorBoard that has read on to forget the same steps.
"""

from __future__ import annotations

import math
import os
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from luyen.core import progress
from luyen.core.storage import storage_errors

LARGEST = 3.4e38
"""Of the numbers that fp32 holds, nearly."""

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.luyen")
_CASTAGNOLI = 0x82F63B78
_START = b"\x08\x01"
"""SessionLog with status START."""


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (_CASTAGNOLI if byte & 1 else 0)
    return byte


_TABLE = tuple(_entry(byte) for byte in range(256))


def crc32c(data: bytes) -> int:
    """The CRC of RFC 3720, appendix B.4 (Castagnoli's polynomial)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """One record around `data`."""
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def event(seconds: float, step: int, *, version: str = "", values: Mapping[str, float] | None = None, restarts: bool = False) -> bytes:
    """An `Event` at `seconds` since 1970 and `step`: a file's version, scalars, or the start of a process that continues at this step."""
    message = b"\x09" + struct.pack("<d", seconds) + b"\x10" + _varint(step)
    if version:
        message += _field(3, version.encode())
    if values:
        scalars = (_field(1, tag.encode()) + b"\x15" + struct.pack("<f", _single(value)) for tag, value in values.items())
        message += _field(5, b"".join(_field(1, scalar) for scalar in scalars))
    return message + (_field(7, _START) if restarts else b"")


def _single(value: float) -> float:
    """The value, or infinity where fp32 has no room for it: no figure may end a run."""
    return value if abs(value) <= LARGEST or math.isnan(value) else math.copysign(math.inf, value)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


class EventLog:
    """The event files in a folder. Nothing is written before the first scalar."""

    def __init__(self, folder: Path, step: int = 0, left: Mapping[str, Any] | None = None) -> None:
        """Continue after `step`, where an earlier process had come to `left` (its `position`); what was written after that is removed."""
        self.folder, self.step = folder, step
        self._file: IO[bytes] | None = None
        self._left = dict(left) if left else None
        files = {int(match.group(1)): path for path in folder.glob("events.*") if (match := _NAME.fullmatch(path.name))}
        kept = int(self._left["file"]) if self._left else 0
        self.number = max([kept, *files]) + 1
        with storage_errors(folder):
            for number, path in files.items():
                if number > kept:
                    path.unlink()
            if self._left:
                self._cut(files.get(kept), self._left["bytes"])

    def _cut(self, path: Path | None, length: int) -> None:
        found = path.stat().st_size if path else 0
        if path and found > length:
            os.truncate(path, length)
        elif found < length:
            progress.say(f"{path or self.folder} has {found} bytes, the checkpoint was made when it had {length}: earlier scalars are lost")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of a step by tag. Raises StorageError when the disk is full."""
        with storage_errors(self.folder):
            if self._file is None:
                self._open()
            self._write(event(time.time(), step, values=values))

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.folder / f"events.out.tfevents.{self.number:06d}.luyen", "wb", buffering=0)  # noqa: SIM115 (closed by close)
        self._write(event(time.time(), 0, version="brain.Event:2"))
        if self.number > 1:
            self._write(event(time.time(), self.step + 1 if self._left else 0, restarts=True))

    def _write(self, message: bytes) -> None:
        assert self._file is not None
        left = record(message)
        while left:  # a raw write may be short when the disk is nearly full
            left = left[self._file.write(left) :]

    def position(self) -> dict[str, Any] | None:
        """The newest file's number and length, for a checkpoint; forced to the disk first."""
        if self._file is None:
            return self._left
        with storage_errors(self.folder):
            os.fsync(self._file.fileno())
        return {"file": self.number, "bytes": self._file.tell()}

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
