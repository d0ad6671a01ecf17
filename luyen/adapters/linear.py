"""A linear map of the model with an adapter at it: what all methods that work on linear maps share.

The map itself stays as it is, as the child `base`, frozen; it may hold its weight in 4 or 8 bits. What a method adds are parameters of
the module around it.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from luyen.core.errors import ModelError


@runtime_checkable
class Compressed(Protocol):
    """A linear map whose weight is held in another form than numbers."""

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight in numbers, (O, I): a new tensor, which the caller may change."""


class AdaptedLinear(nn.Module):
    """A linear map, or for some methods a whole mixture of experts, and what an adapter adds to it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = cast(int, base.in_features), cast(int, base.out_features)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the map itself."""
        return cast("Tensor | None", self.base.bias)

    @property
    def compressed(self) -> bool:
        """Whether the map holds its weight in another form than numbers."""
        return isinstance(self.base, Compressed)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The map's own weight, (O, I): the parameter, or a new tensor where it is compressed or of another type."""
        if isinstance(self.base, Compressed):
            return self.base.dense(dtype)
        weight = cast(Tensor, self.base.weight)
        return weight if dtype is None else weight.to(dtype)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain linear map that computes the same, new tensors. ModelError where there is none."""
        raise ModelError(f"{type(self).__name__} cannot be merged into a weight", fix="Keep the adapter beside the model.")


def own_parameters(module: AdaptedLinear) -> Iterator[tuple[str, nn.Parameter]]:
    """What the adapter added to a map, by name in it."""
    return ((name, parameter) for name, parameter in module.named_parameters() if not name.startswith("base."))


def adapted(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """All adapted maps of a model, by the name that the map had in the plain model."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, AdaptedLinear))


def replace_each(model: nn.Module, names: list[str], make: Callable[[str, nn.Module], nn.Module]) -> None:
    """Put `make(name, module)` in the place of each named module."""
    for name in names:
        parent_name, _, own = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, own, make(name, model.get_submodule(name)))
