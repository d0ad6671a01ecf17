"""The line files beside a training run. They can be cut back to a checkpoint, so a resumed run's end up the same."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from luyen.core import progress
from luyen.core.storage import storage_errors


class LineLog:
    """A JSON-lines file that is appended to, one write per row."""

    def __init__(self, path: Path, length: int) -> None:
        """Open `path` for appending after its first `length` bytes; what follows them is cut off."""
        self.path = path
        with storage_errors(path):
            self._file: IO[bytes] = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
            found = os.fstat(self._file.fileno()).st_size
            if found < length:
                progress.say(f"{path} has {found} bytes, the checkpoint was made when it had {length}: earlier rows are lost")
            self._file.truncate(min(length, found))
        self.length = min(length, found)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. Raises StorageError when the disk is full."""
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass") + b"\n"
        with storage_errors(self.path):
            written = self._file.write(line)
            while written < len(line):  # a raw write may be short when the disk is nearly full
                written += self._file.write(line[written:])
        self.length += len(line)

    def sync(self) -> None:
        """Force what was appended to the disk."""
        with storage_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
