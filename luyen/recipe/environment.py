"""What a run ran on: versions, machine, and the code itself."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path

import luyen
from luyen.core import distributed
from luyen.core.manifest import fingerprint

RESULT_ROOMS = (
    "core", "tokenizer", "models", "adapters", "objectives", "corpus", "data", "tasks", "retrieval",
    "inference", "engine", "algorithms", "evaluation", "synthesis", "recipe",
)  # fmt: skip
"""Rooms whose code decides what a stage makes; a change there makes stages out of date."""


@functools.cache
def code_version() -> str:
    """Version and a hash of the source of every room that decides results."""
    root = Path(luyen.__file__).parent
    digests = {}
    for room in RESULT_ROOMS:
        for path in sorted((root / room).rglob("*")):
            relative = path.relative_to(root)
            source = path.suffix in (".py", ".jinja") or "templates" in relative.parts
            if source and path.is_file():
                digests[relative.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{luyen.__version__}+{fingerprint(digests)[:12]}"


@functools.cache
def versions() -> dict[str, str]:
    """Luyện, Python and every direct dependency that is installed."""
    names = ["torch", "numpy"]
    try:
        required = importlib.metadata.requires("luyen") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    names += [re.split(r"[<>=!~;\[ ]", item)[0] for item in required if "extra ==" not in item]
    found = {"luyen": code_version(), "python": platform.python_version()}
    for name in dict.fromkeys(names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, object]:
    """For `environment.json`: versions, machine and how it was started, nothing secret."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "launch": distributed.launch(),
    }
