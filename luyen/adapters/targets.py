"""Which modules an adapter is put on and which parameters are trained in whole, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from luyen.adapters.linear import AdaptedLinear, Compressed
from luyen.core.errors import ConfigError, nearest
from luyen.models.moe import Router

ALL_LINEAR = "all-linear"
ROUTER = "gate"
"""Name of the map of a mixture that chooses experts; all-linear leaves it out."""
Value = TypeVar("Value")


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names this module: its whole name, its last parts, or with * any part of the name."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def linear_maps(model: nn.Module) -> list[str]:
    """Names of the linear maps in the model's lists of layers, in order."""
    inside = {id(module) for listed in model.modules() if isinstance(listed, nn.ModuleList) for module in listed.modules()}
    return [
        name
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, (nn.Linear, Compressed, Router)) and not isinstance(module, AdaptedLinear)
    ]


def targets(model: nn.Module, patterns: Iterable[str], key: str = "adapter.targets") -> list[str]:
    """Names of the linear maps that the patterns name, in the model's order. ConfigError for a pattern that names none."""
    maps = linear_maps(model)
    routers = {name for name in maps if isinstance(model.get_submodule(name), Router)}
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in maps if (name not in routers if pattern == ALL_LINEAR else matches(name, pattern))]
        if not found:
            known = sorted({_last(name) for name in maps})
            raise ConfigError(key, found=f"{pattern!r}, which matches nothing", expected=f"{ALL_LINEAR} or some of {', '.join(known)}",
                              fix=nearest(pattern, known))  # fmt: skip
        chosen |= set(found)
    if not chosen:
        raise ConfigError(key, found="none", expected=f"{ALL_LINEAR}, or names of modules")
    return [name for name in maps if name in chosen]


def by_pattern(patterns: Mapping[str, Value], names: Iterable[str], default: Value, key: str) -> dict[str, Value]:
    """A value for each name: that of the last pattern that names it, else the default. ConfigError for a pattern that names none."""
    chosen = dict.fromkeys(names, default)
    for pattern, value in patterns.items():
        found = [name for name in chosen if matches(name, pattern)]
        if not found:
            known = sorted({_last(name) for name in chosen})
            raise ConfigError(key, found=f"{pattern!r}, which matches no target", fix=nearest(pattern, known))
        chosen.update(dict.fromkeys(found, value))
    return chosen


def whole_parameters(model: nn.Module, patterns: Iterable[str], key: str = "adapter.also") -> list[str]:
    """Names of the parameters that `also` names. ConfigError for a pattern that names none."""
    kinds = _kinds(model)
    chosen: list[str] = []
    for pattern in patterns:
        found = kinds.get(pattern) or [name for name, _ in model.named_parameters() if matches(name, pattern)]
        if not found:
            known = sorted(kind for kind, names in kinds.items() if names)
            raise ConfigError(key, found=f"{pattern!r}, which matches no parameter", expected=f"{', '.join(known)} or a pattern",
                              fix=nearest(pattern, known))  # fmt: skip
        chosen += found
    return list(dict.fromkeys(chosen))


def _kinds(model: nn.Module) -> dict[str, list[str]]:
    """Parameters by what they are for."""
    names = [name for name, _ in model.named_parameters()]
    tables = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    embeddings = {f"{name}.weight" for name in tables}
    return {
        "embeddings": [name for name in names if name in embeddings],
        "head": [name for name in names if name.startswith("lm_head.")],
        "norms": [name for name in names if name.endswith("norm.weight")],
        "biases": [name for name in names if name.endswith("bias")],
    }


def _last(name: str) -> str:
    return name.rpartition(".")[2]
