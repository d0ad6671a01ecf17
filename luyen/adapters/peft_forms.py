"""What PEFT's `adapter_config.json` says of each method, in and out (PEFT 0.21).

A key that is read is understood, listed as one that changes nothing in what a saved adapter computes, or refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from luyen.adapters.config import LOW_RANK, AdapterConfig
from luyen.adapters.ia3 import INPUTS, IA3Linear
from luyen.adapters.linear import adapted
from luyen.adapters.patterns import full_match
from luyen.adapters.peft_names import (
    OWN_TYPE,
    ROWS,
    VECTORS,
    Form,
    Keys,
    State,
    check_keys,
    from_peft,
    maps_in,
    read_targets,
    short_targets,
    whole_in,
)
from luyen.adapters.targets import by_pattern, matches
from luyen.core.config import load
from luyen.core.errors import ModelError
from luyen.models.config import TransformerConfig

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
    "use_bdlora": (None, False),
    "use_qalora": (False, None),
    "velora_config": (None,),
}
LORA_READ = frozenset(
    ("alpha_pattern", "init_lora_weights", "lora_alpha", "lora_dropout", "r", "rank_pattern", "target_modules", "trainable_token_indices",
     "use_dora", "use_rslora")
)  # fmt: skip
INITS = (True, False, None, "gaussian", "eva", "orthogonal", "pissa")
"""Starts after which the weights beside the adapter are the base's, and PiSSA's, whose subtraction can be made again."""


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


def _first_match(patterns: Mapping[str, Any], name: str, default: Any, source: str) -> Any:
    """The value of the first pattern that names a module, as PEFT looks it up."""
    for pattern, value in patterns.items():
        try:
            if full_match(str(pattern), name):
                return value
        except ValueError as error:
            raise ModelError(f"{source}: the pattern {str(pattern)[:80]!r} cannot be read", found=error) from error
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


def _write_adalora(model: nn.Module, config: AdapterConfig) -> Keys:
    """All triples are written, those taken away with a zero, so that what divides alpha is one number."""
    maps = dict(adapted(model))
    scale, rank = next((cast(float, module.scale), cast(Tensor, module.lora_A).shape[0]) for module in maps.values())
    return {
        "deltaT": config.allocation.every_steps,
        "fan_in_fan_out": False,
        "init_r": rank,
        "lora_alpha": _number(round(scale * rank, 9)),
        "lora_dropout": config.dropout,
        "orth_reg_weight": config.allocation.orthogonality,
        "target_modules": short_targets(model, list(maps)),
        "target_r": config.rank,
        "total_step": 1,  # PEFT wants one, and does nothing with it outside training
    }


def _read_adalora(keys: Keys, state: State, source: str) -> Keys:
    ignored = {
        *LORA_IGNORED, "alpha_pattern", "beta1", "beta2", "init_lora_weights", "r", "rank_pattern", "tfinal", "tinit", "total_step",
        "use_rslora",
    }  # fmt: skip
    read = ("deltaT", "init_r", "lora_alpha", "lora_dropout", "orth_reg_weight", "target_modules", "target_r", "trainable_token_indices")
    check_keys(keys, read, ignored, {**LORA_FIXED, "use_dora": (False, None)}, source)
    start = keys.get("init_r", 12)
    return {
        "method": "adalora",
        "targets": read_targets(keys, maps_in(state, FORMS["adalora"])),
        "rank": min(keys.get("target_r", 8), start - 1),
        "alpha": keys.get("lora_alpha", 8),
        "dropout": keys.get("lora_dropout", 0.0),
        "also": whole_in(state, FORMS["adalora"]),
        "allocation": {"start_rank": start, "every_steps": keys.get("deltaT", 1), "orthogonality": keys.get("orth_reg_weight", 0.5)},
    }


def _write_ia3(model: nn.Module, config: AdapterConfig) -> Keys:
    maps = dict(adapted(model))
    named = short_targets(model, list(maps))
    inputs = {name for name, module in maps.items() if isinstance(module, IA3Linear) and module.inputs}
    leading = [name for name in named if any(matches(whole, name) for whole in inputs)]
    return {"fan_in_fan_out": False, "feedforward_modules": leading, "init_ia3_weights": True, "target_modules": named}


def _read_ia3(keys: Keys, state: State, source: str) -> Keys:
    """ModelError where the inputs of a map are scaled that are not here, or the other way round."""
    check_keys(keys, ("target_modules", "feedforward_modules"), ("init_ia3_weights",), {"fan_in_fan_out": (False, None)}, source)
    maps = maps_in(state, FORMS["ia3"])
    leading = keys.get("feedforward_modules") or []
    for name in maps:
        listed = [leading] if isinstance(leading, str) else [re.escape(item) for item in leading]
        theirs = _first_match(dict.fromkeys(listed, True), name, False, source)
        if theirs != any(matches(name, pattern) for pattern in INPUTS):
            found = f"the {'inputs' if theirs else 'outputs'} of {name} scaled"
            raise ModelError(f"{source}: feedforward_modules", found=found, expected=f"inputs of {' and '.join(INPUTS)} alone")
    return {"method": "ia3", "targets": read_targets(keys, maps), "also": whole_in(state, FORMS["ia3"])}


def _write_prompt(model: nn.Module, config: AdapterConfig) -> Keys:
    size = cast(TransformerConfig, model.config)
    prefix = config.method == "prefix"
    own: dict[str, Keys] = {
        "prompt": {"prompt_tuning_init": "RANDOM"},
        "p-tuning": {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": config.prompt.hidden or size.hidden_size},
        "prefix": {"prefix_projection": False},
    }
    return {
        "num_attention_heads": size.num_kv_heads if prefix else size.num_heads,
        "num_layers": size.num_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": config.prompt.tokens,
        "token_dim": size.num_kv_heads * size.head_dim if prefix else size.hidden_size,
        **own[config.method],
    }


def _read_prompt(keys: Keys, state: State, source: str) -> Keys:
    """The vectors are saved as they are used, so what made them while training changes nothing."""
    ignored = {
        "encoder_dropout", "encoder_hidden_size", "encoder_num_layers", "encoder_reparameterization_type", "init_weights",
        "num_attention_heads", "num_layers", "prefix_projection", "prompt_tuning_init", "prompt_tuning_init_text", "token_dim",
        "tokenizer_kwargs", "tokenizer_name_or_path",
    }  # fmt: skip
    check_keys(keys, ("num_virtual_tokens",), ignored, {"num_transformer_submodules": (None, 1)}, source)
    if VECTORS not in state:
        raise ModelError(f"{source}: no tensor {VECTORS}", fix="Its config and its weights do not belong together.")
    method = next(method for method, form in FORMS.items() if form.peft_type == keys["peft_type"])
    return {"method": method, "prompt": {"tokens": keys.get("num_virtual_tokens")}, "also": whole_in(state, FORMS[method])}


LORA_SUFFIXES = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
DORA_SUFFIXES = {**LORA_SUFFIXES, "lora_magnitude_vector": "lora_magnitude_vector"}
ADALORA_SUFFIXES = {name: name for name in ("lora_A", "lora_B", "lora_E")}
MODULES = ("modules_to_save",)
FORMS: dict[str, Form] = {
    "adalora": Form("ADALORA", ADALORA_SUFFIXES, _write_adalora, _read_adalora, flat=("lora_E",)),
    "dora": Form("LORA", DORA_SUFFIXES, _write_lora, _read_lora),
    "ia3": Form("IA3", {"ia3_l": "ia3_l"}, _write_ia3, _read_ia3, MODULES, flat=("ia3_l",)),
    "lora": Form("LORA", LORA_SUFFIXES, _write_lora, _read_lora),
    "p-tuning": Form("P_TUNING", {}, _write_prompt, _read_prompt, MODULES, "base_model."),
    "prefix": Form("PREFIX_TUNING", {}, _write_prompt, _read_prompt, MODULES, "base_model."),
    "prompt": Form("PROMPT_TUNING", {}, _write_prompt, _read_prompt, MODULES, "base_model."),
}
"""Methods that PEFT has too. PEFT calls dora a LORA with use_dora."""


OF_MIXTURES = (".experts.", ".mlp.gate.", ".shared_expert_gate.")
"""In the names of what transformers 5 holds in another way, so that PEFT has no place for an adapter on it."""


def form_for(config: AdapterConfig, state: Iterable[str]) -> Form | None:
    """The form in which an adapter is written; None for what PEFT does not have: a method, other alphas in AdaLoRA, a mixture's experts.

    Nor has it new tokens beside other methods than LoRA and its kin.
    """
    state = list(state)
    if (config.method == "adalora" and config.lora.alphas) or any(part in name for name in state for part in OF_MIXTURES):
        return None
    if config.method not in LOW_RANK and any(name.endswith(ROWS) for name in state):
        return None
    return FORMS.get(config.method)


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
