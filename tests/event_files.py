"""Reads TensorBoard's event files, every checksum checked, by its own reading of the format."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luyen.engine.events import crc32c


def records(path: Path) -> list[dict[str, Any]]:
    """Events of a file as {"step", tag: value, ...}."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        for content, mark in ((data[:8], data[8:12]), (data[12 : 12 + length], data[12 + length : 16 + length])):
            crc = crc32c(content)
            assert struct.unpack("<I", mark)[0] == ((crc >> 15 | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
        found.append(decode(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protocol buffer."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = message[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value, at

    at = 0
    while at < len(message):
        key, at = varint(at)
        if key & 7 == 0:
            value, at = varint(at)
        else:
            size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or varint(at)
            value, at = message[at : at + size], at + size
        yield key >> 3, value


def decode(message: bytes) -> dict[str, Any]:
    """One event."""
    found: dict[str, Any] = {}
    for number, value in fields(message):
        if number == 2:
            found["step"] = value
        elif number == 3:
            found["version"] = value.decode()
        elif number == 5:
            for _, scalar in fields(value):
                inner = dict(fields(scalar))
                found[inner[1].decode()] = struct.unpack("<f", inner[2])[0]
        elif number == 7:
            found["restarts"] = dict(fields(value)) == {1: 1}
    return found


def files(folder: Path) -> list[Path]:
    """The event files of a stage, in their order."""
    return sorted((folder / "tensorboard").iterdir())


def scalars_of(folder: Path) -> list[dict[str, Any]]:
    """All events with figures of a stage."""
    return [found for path in files(folder) for found in records(path) if "version" not in found and "restarts" not in found]
