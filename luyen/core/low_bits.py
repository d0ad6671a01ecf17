"""bitsandbytes, the library of numbers in 4 and 8 bits (the extra `qlora`), imported only when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from luyen.core.errors import ConfigError


def library(key: str, asked: str, otherwise: str) -> Any:
    """The package. Raises ConfigError when it is not installed, with the key and value that asked for it and what else could be taken."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it warns that it downloaded nothing
    try:
        with _nothing_downloaded():
            return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ConfigError(
            key,
            found=f"{asked}, but bitsandbytes is not installed",
            fix=f'Type: pip install ".[qlora]" in luyen\'s folder, or {otherwise}.',
        ) from error


@contextlib.contextmanager
def _nothing_downloaded() -> Iterator[None]:
    """While it is imported, bitsandbytes fetches code from a hub if the package `kernels` is there; within the block it is not."""
    hidden = "kernels" not in sys.modules
    if hidden:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["kernels"]
