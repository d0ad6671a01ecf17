"""A model with its adapter for a while left out: the base that it was made from, without a second copy of its weights.

What preferences and policies are compared with is that base (the reference), where nothing but the adapter was trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from luyen.adapters.linear import adapted, replace_each
from luyen.adapters.new_tokens import new_rows
from luyen.adapters.preamble import Preamble
from luyen.core.errors import ModelError


@contextlib.contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within the block the model computes what its base does: maps as they were, no learned positions, no rows of new tokens.

    Raises ModelError where weights of the base itself are trained, which nothing brings back: then a second, frozen model is needed.
    """
    modules = dict(adapted(model))
    tables = {name: module for name, module in new_rows(model)}
    own = {id(parameter) for module in (*modules.values(), *tables.values()) for parameter in _added(module)}
    own |= {id(parameter) for module in model.modules() if isinstance(module, Preamble) for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in own:
            raise ModelError(f"{name} is trained itself, so the model without its adapter is not the one before training",
                             fix="Compare it with a frozen copy.")  # fmt: skip
    taken: dict[str, nn.Module] = {**modules, **tables}
    inner_first = sorted(taken, key=lambda name: name.count("."), reverse=True)
    replace_each(model, inner_first, lambda name, _: cast(nn.Module, taken[name].base))
    try:
        with _hooks_out(model):
            yield
    finally:
        replace_each(model, inner_first[::-1], lambda name, _: taken[name])


def _added(module: nn.Module) -> list[nn.Parameter]:
    """What stands beside a module's base."""
    return [parameter for name, parameter in module.named_parameters() if not name.startswith("base.")]


@contextlib.contextmanager
def _hooks_out(model: nn.Module) -> Iterator[None]:
    """Without the hooks that put learned positions before sequences."""
    kept: list[tuple[Any, dict[int, Any]]] = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            if any(isinstance(getattr(hook, "__self__", None), Preamble) for hook in hooks.values()):
                kept.append((hooks, dict(hooks)))
    try:
        for hooks, before in kept:
            for key, hook in before.items():
                if isinstance(getattr(hook, "__self__", None), Preamble):
                    del hooks[key]
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)
