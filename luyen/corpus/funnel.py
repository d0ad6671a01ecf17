"""Counts of documents and bytes through the steps; they must add up, or the curation fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from luyen.core.errors import LuyenError


class Step:
    """What went into one step, what it dropped by which rule, how the bytes of the others changed, and what came out."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.documents_in = self.documents_out = 0
        self.bytes_in = self.bytes_out = self.bytes_dropped = self.bytes_changed = 0
        self.dropped: Counter[str] = Counter()

    def keep(self, before: int, after: int) -> None:
        """Count a document of `before` bytes that leaves with `after` bytes."""
        self.documents_in += 1
        self.documents_out += 1
        self.bytes_in += before
        self.bytes_out += after
        self.bytes_changed += before - after

    def drop(self, size: int, rule: str) -> None:
        """Count a document that the step drops."""
        self.documents_in += 1
        self.bytes_in += size
        self.bytes_dropped += size
        self.dropped[rule] += 1

    def dump(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "step": self.name,
            "documents_in": self.documents_in, "documents_out": self.documents_out, "dropped": dict(sorted(self.dropped.items())),
            "bytes_in": self.bytes_in, "bytes_out": self.bytes_out,
            "bytes_dropped": self.bytes_dropped, "bytes_changed": self.bytes_changed,
        }  # fmt: skip

    def add(self, other: Mapping[str, Any]) -> None:
        """Add the dumped counts of the same step of another part."""
        for name in ("documents_in", "documents_out", "bytes_in", "bytes_out", "bytes_dropped", "bytes_changed"):
            setattr(self, name, getattr(self, name) + other[name])
        self.dropped.update(other["dropped"])


class Funnel:
    """The steps in order."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.steps = {name: Step(name) for name in names}

    def __getitem__(self, name: str) -> Step:
        return self.steps[name]

    def add(self, dumped: list[dict[str, Any]]) -> None:
        """Add the dumped steps of a part."""
        for row in dumped:
            self.steps[row["step"]].add(row)

    def dump(self) -> list[dict[str, Any]]:
        """As JSON values, in order."""
        return [step.dump() for step in self.steps.values()]

    def check(self) -> None:
        """Raise LuyenError unless every step adds up and begins with what the step before left."""
        before: Step | None = None
        for step in self.steps.values():
            documents = step.documents_out + sum(step.dropped.values())
            size = step.bytes_out + step.bytes_dropped + step.bytes_changed
            if (documents, size) != (step.documents_in, step.bytes_in):
                raise LuyenError(f"the step {step.name} does not add up: {step.dump()}")
            if before is not None and (before.documents_out, before.bytes_out) != (step.documents_in, step.bytes_in):
                raise LuyenError(f"the step {step.name} does not begin with what {before.name} left: {before.dump()}, {step.dump()}")
            before = step
