"""The batches of a step, and those of the next one, which are made while the device works on this one's.

A step's work on a GPU is launched long before it is done, and the host has nothing to do until it can read the step's figures. Batches that
depend on the data alone are made then: read, packed, dealt out and on their way to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luyen.engine.algorithm import Batch

Stream = Iterator[tuple[Any, dict[str, Any]]]
NAMED_SAMPLES = 16
"""Sample ids in an error message; the log's row has all."""


@dataclass(frozen=True)
class Step:
    """The micro-batches of one step."""

    batches: list[Batch]
    """All of them, on the host."""
    own: Sequence[Batch]
    """What this process computes of them."""
    state: dict[str, Any]
    """That of the stream after the last of them. A checkpoint holds it once they are trained on, whatever was made since."""

    @property
    def tokens(self) -> int:
        """Tokens of all of them."""
        return sum(batch.tokens_T.numel() for batch in self.batches)

    @property
    def targets(self) -> int:
        """Targets of all of them."""
        return sum(batch.num_targets for batch in self.batches)

    @property
    def sample_ids(self) -> list[str]:
        """The samples in them."""
        return [identifier for batch in self.batches for identifier in batch.sample_ids]

    @property
    def told(self) -> str:
        """The samples in a message: the first ones by their names."""
        names = self.sample_ids
        more = f" and {len(names) - NAMED_SAMPLES} more" if len(names) > NAMED_SAMPLES else ""
        return ", ".join(names[:NAMED_SAMPLES]) + more


class Feed:
    """Takes `count` batches for every step from a stream, if it may `ahead` of the step."""

    def __init__(self, count: int, share: Callable[[Sequence[Any]], Sequence[Any]], device: torch.device, ahead: bool) -> None:
        """`share` says what this process computes of a step's batches; that part goes to `device`."""
        self.count, self.share, self.device, self.ahead = count, share, device, ahead
        self._made: tuple[Stream, Step | Exception] | None = None

    def next(self, stream: Stream) -> Step:
        """The next step of the stream. Raises what the stream raised, also when that was while the step before was under way."""
        of, made = self._made or (None, None)
        self._made = None
        if of is not stream or made is None:
            return self._make(stream)
        if isinstance(made, Exception):
            raise made
        return made

    def prepare(self, stream: Stream) -> None:
        """Make what `next` will return, if that may be, and send it off: 24 bytes a token wait on the device then.

        An error waits as well, since it is not one of the step under way.
        """
        if not self.ahead:
            return
        try:
            step = self._make(stream)
            self._made = stream, Step(step.batches, [batch.to(self.device) for batch in step.own], step.state)
        except Exception as error:
            self._made = stream, error

    def _make(self, stream: Stream) -> Step:
        pulled = [next(stream) for _ in range(self.count)]
        batches = [batch for batch, _ in pulled]
        return Step(batches, self.share(batches), pulled[-1][1])
