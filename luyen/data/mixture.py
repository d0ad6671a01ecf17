"""Several sources of samples in fixed shares.

A weight is a share of samples, the usual meaning (Megatron-LM's blends, Hugging Face's `interleave_datasets`): weights 3 and 1 give three
samples of the first source for one of the second, whatever their sizes. An epoch holds as many samples as all sources together. A source
that is to give more than it has repeats; one that is to give less continues in the next epoch where it stopped. Either way each source
is gone through completely, in a new order every pass, before any of its samples comes again. Without weights every source has its natural
share, and an epoch holds every sample exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from luyen.core.errors import ConfigError, DataError, nearest
from luyen.data.samples import Sample
from luyen.data.shuffle import permutation


class Mixture:
    """Sources in their shares: `samples` is all of them in one list, `order(epoch)` the indices that make an epoch."""

    def __init__(self, sources: Mapping[str, Sequence[Sample]], weights: Mapping[str, float] | None = None, *, seed: int) -> None:
        """`weights` names every source or none. Raises ConfigError for a wrong weight, DataError for an empty source."""
        self.seed = seed
        self.names = list(sources)
        self.samples = [sample for name in self.names for sample in sources[name]]
        self.sizes = {name: len(sources[name]) for name in self.names}
        for name, size in self.sizes.items():
            if not size:
                raise DataError(f"source {name!r} has no samples", fix="Remove it, or look at why its rows were dropped.")
        if not self.samples:
            raise DataError("a mixture needs at least one source")
        self.weights = _checked(weights, self.sizes)
        whole = sum(self.weights.values())
        self._quota = {name: len(self.samples) * weight / whole for name, weight in self.weights.items()}

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Indices into `samples` of epoch 0, 1, ... in a random order: a pure function of (seed, epoch)."""
        parts: list[NDArray[np.int64]] = []
        offset = 0
        for name in self.names:
            start, stop = self._range(name, epoch)
            parts += [offset + part for part in self._passes(name, start, stop)]
            offset += self.sizes[name]
        chosen = np.concatenate(parts)
        return chosen[permutation(len(chosen), self.seed, "mixture", epoch)]

    def _range(self, name: str, epoch: int) -> tuple[int, int]:
        """The stretch of the source's endless sequence of passes that the epoch takes."""
        return round(epoch * self._quota[name]), round((epoch + 1) * self._quota[name])

    def _passes(self, name: str, start: int, stop: int) -> list[NDArray[np.int64]]:
        size = self.sizes[name]
        parts = []
        for number in range(start // size, -(-stop // size)):
            order = permutation(size, self.seed, "source", name, number)
            parts.append(order[max(start - number * size, 0) : stop - number * size])
        return parts


def _checked(weights: Mapping[str, float] | None, sizes: Mapping[str, int]) -> dict[str, Fraction]:
    if weights is None:
        return {name: Fraction(size) for name, size in sizes.items()}
    for name in weights:
        if name not in sizes:
            raise ConfigError(f"weight for an unknown source {name!r}", fix=nearest(name, sizes))
    for name in sizes:
        if name not in weights:
            raise ConfigError(f"source {name!r} has no weight", expected="a weight for every source or for none")
        if not 0 < weights[name] < float("inf"):
            raise ConfigError(f"weight of {name!r}", found=weights[name], expected="a number above 0")
    return {name: Fraction(weights[name]) for name in sizes}
