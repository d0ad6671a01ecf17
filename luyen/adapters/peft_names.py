"""PEFT's form of an adapter: the names of its tensors and which keys of `adapter_config.json` all methods share (PEFT 0.21).

A tensor is named by the module's path in the plain model under `base_model.model.`, without the name that PEFT gives the adapter:

    LoRA     ...q_proj.lora_A.weight (R, I) and ...q_proj.lora_B.weight (O, R)
    DoRA     these and ...q_proj.lora_magnitude_vector (O,)
    AdaLoRA  ...q_proj.lora_A (R, I), lora_E (R, 1), lora_B (O, R)
    (IA)^3   ...v_proj.ia3_l (O, 1), ...down_proj.ia3_l (1, I)
    prompts  prompt_embeddings (P, D), or (P, 2 L K E) of a prefix; then what is whole has the prefix base_model. alone
    tokens   ...embed_tokens.token_adapter.trainable_tokens_delta (N, D), the rows of new tokens (see new_tokens)
    whole    ...norm.weight for modules_to_save;  ...q_proj.base_layer.bias where the map carries an adapter

Every key of a config that is read is understood, listed as one that changes nothing, or refused by name. Which modules an adapter is on
and with which rank is taken from its tensors, so patterns of any kind (a list, a regular expression, all-linear) mean what they meant.

Shapes: I inputs, O outputs, R rank; P learned positions, D hidden size, L layers, K key-value heads, E head size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luyen.adapters.config import AdapterConfig
from luyen.core.errors import ModelError, nearest

VECTORS = "prompt_embeddings"
"""The one tensor of methods that learn positions before every sequence."""
OWN_TYPE = "LUYEN_"
"""Begins the peft_type of a method that PEFT does not have; its tensors are named as the model's."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""PEFT writes a tied head that is trained a second time."""
ROWS = ".rows.weight"
"""Ends our name of the rows of new tokens."""
TOKENS = ".token_adapter.trainable_tokens_delta"
"""Ends PEFT's name of them."""
MATRICES = ("lora_A", "lora_B")
Keys = dict[str, Any]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """How PEFT writes a method."""

    peft_type: str
    suffixes: Mapping[str, str]
    """PEFT's name of each parameter that the method adds to a map."""
    write: Callable[[nn.Module, AdapterConfig], Keys]
    """Keys of the config that are the method's own."""
    read: Callable[[Keys, State, str], Keys]
    """Values of AdapterConfig from PEFT's keys and tensors; the text is the file's name, for errors."""
    whole: tuple[str, ...] = ("bias", "modules_to_save", "ensure_weight_tying")
    """Keys by which the type says what else was trained."""
    prefix: str = "base_model.model."
    flat: tuple[str, ...] = ()
    """Our parameters of one axis that PEFT holds with two."""


COMMON: Keys = {"task_type": "CAUSAL_LM", "inference_mode": True, "revision": None}
# Keys that change nothing in what a saved adapter computes, for all types.
IGNORED = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "revision",
        "runtime_config",
    )
)
TASKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")


NUMBER = (int, float)
TYPES: dict[str, tuple[type, ...]] = {
    "alpha_pattern": (dict,), "deltaT": (int,), "feedforward_modules": (list, str), "init_r": (int,), "lora_alpha": NUMBER,
    "lora_dropout": NUMBER, "num_virtual_tokens": (int,), "orth_reg_weight": NUMBER, "r": (int,), "rank_pattern": (dict,),
    "target_modules": (list, str), "target_r": (int,),
}  # fmt: skip


def check_keys(keys: Keys, read: Iterable[str], ignored: Iterable[str], fixed: Mapping[str, tuple[object, ...]], source: str) -> None:
    """ModelError for the first key that is unknown or asks for what is not done here."""
    fixed = {"task_type": TASKS, **fixed}
    for key, value in keys.items():
        if key in fixed and value not in fixed[key]:
            allowed = " or ".join(map(repr, fixed[key]))
            raise ModelError(f"{source}: {key} is not supported", found=repr(value), expected=allowed, fix="Merge it with PEFT first.")
        known = {*read, *ignored, *IGNORED, *fixed}
        if key not in known:
            raise ModelError(f"{source}: unknown key {key!r}", found=repr(value), fix=nearest(key, known))
        if value is not None and key in TYPES and not isinstance(value, TYPES[key]):
            raise ModelError(f"{source}: {key}", found=repr(value), expected=" or ".join(kind.__name__ for kind in TYPES[key]))


def plain_name(name: str) -> str:
    """The plain model's name of a module or parameter of an adapted one."""
    return re.sub(r"\.base(?=\.|$)", "", name)


def to_peft(state: Mapping[str, Tensor], maps: Mapping[str, nn.Module], form: Form) -> State:
    """Tensors by PEFT's names from those by ours: parameters of adapted maps, and whole parameters by the plain model's names."""
    named: State = {}
    for name, tensor in state.items():
        owner, _, own = name.rpartition(".")
        if name == VECTORS:
            named[name] = tensor
        elif name.endswith(ROWS):
            named[f"{form.prefix}{name.removesuffix(ROWS)}{TOKENS}"] = tensor
        elif owner in maps and own in form.suffixes:
            shaped = tensor.unsqueeze(0 if getattr(maps[owner], "inputs", False) else 1) if own in form.flat else tensor
            named[f"{form.prefix}{owner}.{form.suffixes[own]}"] = shaped
        else:
            named[f"{form.prefix}{owner}.base_layer.{own}" if owner in maps else form.prefix + name] = tensor
    return named


def from_peft(tensors: Mapping[str, Tensor], form: Form) -> State:
    """Tensors by our names from those by PEFT's. ModelError for a factor that is no matrix."""
    state: State = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(form.prefix).replace(".modules_to_save.", ".").replace(".base_layer.", ".")
        plain = f"{plain.removesuffix(TOKENS)}{ROWS}" if plain.endswith(TOKENS) else plain
        for own, suffix in form.suffixes.items():
            for ending in (f".{suffix}", f".{suffix}.weight"):
                if plain.endswith(ending):
                    plain = f"{plain.removesuffix(ending)}.{own}"
        if plain.rpartition(".")[2] in MATRICES and tensor.ndim != 2:
            raise ModelError(f"tensor {name} of the adapter", found=f"shape {tuple(tensor.shape)}", expected="a matrix",
                             fix="Save it again, gathered from all processes.")  # fmt: skip
        state[plain] = tensor.flatten() if plain.rpartition(".")[2] in form.flat else tensor
    if HEAD in state and EMBEDDING in state and torch.equal(state[HEAD], state[EMBEDDING]):
        del state[HEAD]
    return state


def maps_in(state: Iterable[str], form: Form) -> list[str]:
    """Names of the maps that carry the adapter, from tensors by our names."""
    return list(dict.fromkeys(owner for owner, _, own in (name.rpartition(".") for name in state) if own in form.suffixes))


def whole_in(state: Iterable[str], form: Form) -> list[str]:
    """Names of the parameters that were trained in whole, from tensors by our names."""
    return [name for name in state if name.rpartition(".")[2] not in form.suffixes and name != VECTORS and not name.endswith(ROWS)]


def short_targets(model: nn.Module, maps: Sequence[str]) -> list[str]:
    """The last parts of the names where these mean just these modules, else the whole names."""
    last = {name.rpartition(".")[2] for name in maps}
    plain = (plain_name(name) for name, _ in model.named_modules())
    meant = {name for name in plain if name.rpartition(".")[2] in last}
    return sorted(last) if meant == set(maps) else list(maps)


def whole_keys(model: nn.Module, whole: Iterable[str], maps: Iterable[str]) -> Keys:
    """bias and modules_to_save for parameters that are trained in whole."""
    on_map, whole = set(maps), list(whole)
    owners = [name.rpartition(".")[0] for name in whole]
    tied = bool(getattr(getattr(model, "config", None), "tied", False))
    modules = list(dict.fromkeys(owner for owner in owners if owner not in on_map))
    return {
        "bias": "lora_only" if any(name.endswith(".bias") and name.removesuffix(".bias") in on_map for name in whole) else "none",
        "modules_to_save": modules or None,
        "ensure_weight_tying": tied and any(isinstance(model.get_submodule(owner), nn.Embedding) for owner in modules),
    }


def read_targets(keys: Keys, maps: list[str]) -> list[str]:
    """A list of names as it stands; anything that picks modules in another way as the names that it picked."""
    named = keys.get("target_modules")
    if isinstance(named, list) and named and not (keys.get("layers_to_transform") or keys.get("exclude_modules")):
        return sorted(map(str, named))
    return maps
