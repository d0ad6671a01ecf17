"""PEFT's form of an adapter: the names of its tensors and the keys of `adapter_config.json`, in and out (PEFT 0.21).

A tensor is named by the module's path in the plain model under `base_model.model.`, without the name that PEFT gives the adapter:

    LoRA     ...q_proj.lora_A.weight (R, I) and ...q_proj.lora_B.weight (O, R)
    DoRA     these and ...q_proj.lora_magnitude_vector (O,)
    whole    ...norm.weight for modules_to_save;  ...q_proj.base_layer.bias where the map carries an adapter

Every key of a config that is read is understood, listed as one that changes nothing, or refused by name. Which modules an adapter is on
and with which rank is taken from its tensors, so patterns of any kind (a list, a regular expression, all-linear) mean what they meant.

Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from luyen.adapters.config import AdapterConfig
from luyen.adapters.linear import adapted
from luyen.adapters.targets import by_pattern
from luyen.core.config import load
from luyen.core.errors import ModelError, nearest

PREFIX = "base_model.model."
OWN_TYPE = "LUYEN_"
"""Begins the peft_type of a method that PEFT does not have; its tensors are named as the model's."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""PEFT writes a tied head that is trained a second time."""
Keys = dict[str, Any]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """How PEFT writes a method that works on linear maps."""

    peft_type: str
    suffixes: Mapping[str, str]
    """PEFT's name of each parameter that the method adds to a map."""
    write: Callable[[nn.Module, AdapterConfig], Keys]
    """Keys of the config that are the method's own."""
    read: Callable[[Keys, State, str], Keys]
    """Values of AdapterConfig from PEFT's keys and tensors; the text is the file's name, for errors."""
    whole: tuple[str, ...] = ("bias", "modules_to_save", "ensure_weight_tying")
    """Keys by which the type says what else was trained."""


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
LORA_IGNORED = frozenset(
    ("bias", "corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_config", "megatron_core", "qalora_group_size")
)
# Keys whose only accepted values are those that change nothing.
LORA_FIXED: dict[str, tuple[object, ...]] = {
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "fan_in_fan_out": (False, None),
    "kasa_config": (None,),
    "layer_replication": (None, []),
    "lora_bias": (False, None),
    "monteclora_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "use_bdlora": (None, False),
    "use_qalora": (False, None),
    "velora_config": (None,),
}
LORA_READ = frozenset(
    ("alpha_pattern", "init_lora_weights", "lora_alpha", "lora_dropout", "r", "rank_pattern", "target_modules", "use_dora", "use_rslora")
)
INITS = (True, False, None, "gaussian", "eva", "orthogonal", "pissa")
"""Starts after which the weights beside the adapter are the base's, and PiSSA's, whose subtraction can be made again."""


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


def plain_name(name: str) -> str:
    """The plain model's name of a module or parameter of an adapted one."""
    return re.sub(r"\.base(?=\.|$)", "", name)


def to_peft(state: Mapping[str, Tensor], maps: Iterable[str], form: Form) -> State:
    """Tensors by PEFT's names from those by ours: parameters of adapted maps, and whole parameters by the plain model's names."""
    on_map = set(maps)
    named: State = {}
    for name, tensor in state.items():
        owner, _, own = name.rpartition(".")
        if owner in on_map:
            named[f"{PREFIX}{owner}.{form.suffixes.get(own, f'base_layer.{own}')}"] = tensor
        else:
            named[PREFIX + name] = tensor
    return named


def from_peft(tensors: Mapping[str, Tensor], form: Form) -> State:
    """Tensors by our names from those by PEFT's."""
    state: State = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(PREFIX).replace(".modules_to_save.", ".").replace(".base_layer.", ".")
        for own, suffix in form.suffixes.items():
            for ending in (f".{suffix}", f".{suffix}.weight"):
                if plain.endswith(ending):
                    plain = f"{plain.removesuffix(ending)}.{own}"
        state[plain] = tensor
    if HEAD in state and EMBEDDING in state and torch.equal(state[HEAD], state[EMBEDDING]):
        del state[HEAD]
    return state


def maps_in(state: Iterable[str], form: Form) -> list[str]:
    """Names of the maps that carry the adapter, from tensors by our names."""
    return list(dict.fromkeys(owner for owner, _, own in (name.rpartition(".") for name in state) if own in form.suffixes))


def whole_in(state: Iterable[str], form: Form) -> list[str]:
    """Names of the parameters that were trained in whole, from tensors by our names."""
    return [name for name in state if name.rpartition(".")[2] not in form.suffixes]


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


def _write_lora(model: nn.Module, config: AdapterConfig) -> Keys:
    """Rank and alpha of every map from its tensors; twice both where a start was taken off."""
    maps = dict(adapted(model))
    alphas = by_pattern(config.lora.alphas, maps, config.alpha, "adapter.lora.alphas")
    ranks = {name: int(cast(Tensor, module.lora_A).shape[0]) for name, module in maps.items()}
    doubled = [name for name, module in maps.items() if getattr(module, "start_A", None) is not None]
    more = 2.0**0.5 if config.lora.scaling == "root" else 2.0
    for name in doubled:
        ranks[name] *= 2
        alphas[name] *= more
    rank, alpha = _usual(ranks.values()), _usual(alphas.values())
    return {
        "alpha_pattern": {name: _number(value) for name, value in alphas.items() if value != alpha},
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_alpha": _number(alpha),
        "lora_dropout": config.dropout,
        "r": rank,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "target_modules": short_targets(model, list(maps)),
        "use_dora": config.method == "dora",
        "use_rslora": config.lora.scaling == "root",
    }


def _read_lora(keys: Keys, state: State, source: str) -> Keys:
    check_keys(keys, LORA_READ, LORA_IGNORED, LORA_FIXED, source)
    form = form_of(keys, source)
    init = keys.get("init_lora_weights", True)
    if init not in INITS:
        raise ModelError(f"{source}: init_lora_weights={init!r} changed the weights of the base", expected="an adapter of the weights as "
                         "they were", fix="Save it in PEFT with path_initial_model_for_weight_conversion.")  # fmt: skip
    maps = maps_in(state, form)
    ranks = {name: int(state[f"{name}.lora_A"].shape[0]) for name in maps if f"{name}.lora_A" in state}
    rank, alpha = keys.get("r", 8), keys.get("lora_alpha", 8)
    alphas = {name: _first_match(keys.get("alpha_pattern") or {}, name, alpha, source) for name in maps}
    return {
        "method": "dora" if keys.get("use_dora") else "lora",
        "targets": read_targets(keys, maps),
        "rank": rank,
        "alpha": alpha,
        "dropout": keys.get("lora_dropout", 0.0),
        "also": whole_in(state, form),
        "lora": {
            "scaling": "root" if keys.get("use_rslora") else "rank",
            "init": "pissa" if init == "pissa" else "default",
            "ranks": {name: value for name, value in ranks.items() if value != rank},
            "alphas": {name: value for name, value in alphas.items() if value != alpha},
        },
    }


def read_targets(keys: Keys, maps: list[str]) -> list[str]:
    """A list of names as it stands; anything that picks modules in another way as the names that it picked."""
    named = keys.get("target_modules")
    if isinstance(named, list) and named and not (keys.get("layers_to_transform") or keys.get("exclude_modules")):
        return sorted(map(str, named))
    return maps


def _first_match(patterns: Mapping[str, Any], name: str, default: Any, source: str) -> Any:
    """The value of the first pattern that names a module, as PEFT looks it up."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error as error:
            raise ModelError(f"{source}: the pattern {pattern!r} cannot be read", found=error) from error
    return default


def _usual(values: Iterable[Any]) -> Any:
    """The most frequent value, the first of equally frequent ones."""
    counts: dict[Any, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return max(counts, key=lambda value: counts[value])


def _number(value: float) -> float | int:
    """A whole number as such, which is how PEFT writes alpha."""
    return int(value) if value == int(value) else value


LORA_SUFFIXES = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
FORMS: dict[str, Form] = {"lora": Form("LORA", LORA_SUFFIXES, _write_lora, _read_lora)}
"""Methods that PEFT has too. PEFT calls dora a LORA with use_dora."""


def form_of(keys: Keys, source: str) -> Form:
    """The form of PEFT's config. ModelError for a type that is not read here."""
    kind = keys.get("peft_type")
    known = {form.peft_type: form for form in FORMS.values()}
    if kind == "LORA":
        return FORMS["dora" if keys.get("use_dora") else "lora"]
    if kind not in known:
        own = str(kind).startswith(OWN_TYPE)
        fix = "Its config stands in luyen.json, which is missing: copy the whole folder." if own else "Merge it with its own library first."
        raise ModelError(f"{source}: peft_type", found=repr(kind), expected=" or ".join(sorted(known)), fix=fix)
    return known[str(kind)]


def read_keys(keys: Keys, tensors: Mapping[str, Tensor], source: str) -> AdapterConfig:
    """Our config from PEFT's and the tensors beside it. ModelError for a type, key or value that is not done here."""
    form = form_of(keys, source)
    return load(AdapterConfig, form.read(keys, from_peft(tensors, form), source), source=source)
