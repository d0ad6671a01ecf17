"""Every error that Luyện raises on purpose.

LuyenError                  exit 1   something failed; the message says what to do
├── UserError               exit 2   the input is wrong: what, found, expected, what to do
│   ├── ConfigError                  unknown key, wrong type, impossible combination
│   ├── DataError                    missing, empty or malformed data
│   ├── ModelError                   a folder that is not a model, or one that does not fit
│   └── FetchError                   a page that cannot be had, or an address that is refused
├── DamagedFile             exit 3   a file's content differs from its manifest
├── StorageError            exit 3   the disk is full or refuses a write
├── NonFinite               exit 4   a loss or gradient is NaN or infinite
└── Interrupted             exit 130 after SIGINT, 143 after SIGTERM; work is saved
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LuyenError(Exception):
    """Root of the tree. `exit_code` is what the command returns."""

    exit_code = 1


class UserError(LuyenError):
    """Wrong input, told in one line: what, found, expected, what to do.

    Every part but the first may be left out; newlines inside are folded so that the message stays one line.
    """

    exit_code = 2

    def __init__(self, what: str, *, found: object = None, expected: object = None, fix: str = "") -> None:
        self.what, self.found, self.expected, self.fix = what, found, expected, fix
        parts = [what]
        if found is not None:
            parts.append(f"found {found}")
        if expected is not None:
            parts.append(f"expected {expected}")
        message = "; ".join(" ".join(str(part).split()) for part in parts)
        super().__init__(f"{message}. {fix}" if fix else message)


class ConfigError(UserError):
    """A key, type or value of a config is wrong."""


class DataError(UserError):
    """Data is missing, empty or malformed."""


class ModelError(UserError):
    """A folder is not a model, or a model does not fit what is asked of it."""


class FetchError(UserError):
    """A page cannot be fetched, or its address is refused."""


class DamagedFile(LuyenError):
    """A file differs from what its manifest promises."""

    exit_code = 3

    def __init__(self, path: object, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"damaged file {path}: {reason}")


class StorageError(LuyenError):
    """The disk is full, or the folder cannot be written."""

    exit_code = 3


class NonFinite(LuyenError):
    """A loss or gradient is NaN or infinite; nothing was updated."""

    exit_code = 4


class Interrupted(LuyenError):
    """A signal asked to stop; the work so far is saved and the same command continues it."""

    def __init__(self, signal_number: int, message: str = "stopped; the same command continues") -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the closest of `known`, or lists them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(names)}."
