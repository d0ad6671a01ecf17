"""Makes shape suffixes true: `hidden_BTD` must have three dimensions, and B, T, D one size each within a call.

    with checked():      # or the fixture below, in a conftest: shapes = pytest.fixture(autouse=True)(shapes_are_true)
        ...

Looks at the local variables of every function of the rooms below when it returns. A digit stands for its own size.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

import luyen

ROOMS = tuple(str(Path(luyen.__file__).parent / room) for room in ("models", "objectives", "inference"))
_SUFFIX = re.compile(r"[a-z][a-z0-9_]*_([A-Z0-9]+)")


def lies(names: dict[str, object]) -> list[str]:
    """What is wrong among named values: tensors whose shape differs from their suffix, or sizes that disagree."""
    sizes: dict[str, tuple[int, str]] = {}
    found = []
    for name, value in names.items():
        match = _SUFFIX.fullmatch(name)
        if match is None or not isinstance(value, torch.Tensor):
            continue
        shape = tuple(value.shape)
        if len(shape) != len(match[1]):
            found.append(f"{name} has shape {shape}")
            continue
        for letter, size in zip(match[1], shape, strict=True):
            known, owner = (int(letter), "its name") if letter.isdigit() else sizes.setdefault(letter, (size, name))
            if size != known:
                found.append(f"{name} has {letter}={size}, but {owner} has {letter}={known}")
    return found


@contextlib.contextmanager
def checked(folders: tuple[str, ...] = ROOMS) -> Iterator[None]:
    """Within the block, collect the lies of functions defined below `folders`; AssertionError with the first at its end."""
    found: list[str] = []

    def on_event(frame: FrameType, event: str, value: object) -> None:
        if event == "return" and frame.f_code.co_filename.startswith(folders):
            found.extend(f"{frame.f_code.co_qualname}: {lie}" for lie in lies(frame.f_locals))

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert not found, f"{len(found)} shape suffixes lie; the first: {found[0]}"


def shapes_are_true() -> Iterator[None]:
    """A generator fixture that checks a whole test."""
    with checked():
        yield
