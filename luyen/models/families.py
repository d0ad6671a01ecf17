"""Families of decoders as Hugging Face's config.json describes them: which keys, what is assumed when one is missing, which variant.

One family is one row of FAMILIES and its two functions: from the keys to our `variant`, and back where it can express one. Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from luyen.core import config as configs
from luyen.core.errors import ModelError
from luyen.models.config import ExpertsConfig, TransformerConfig, VariantConfig

# config.json's key -> (our field, the value that transformers assumes when the key is missing; None: required)
FIELDS: dict[str, tuple[str, object]] = {
    "vocab_size": ("vocab_size", None),
    "hidden_size": ("hidden_size", None),
    "intermediate_size": ("intermediate_size", None),
    "num_hidden_layers": ("num_layers", None),
    "num_attention_heads": ("num_heads", None),
    "num_key_value_heads": ("num_kv_heads", 0),
    "head_dim": ("head_dim", 0),
    "max_position_embeddings": ("context_length", 2048),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "tie_word_embeddings": ("tied", False),
    "initializer_range": ("init_std", 0.02),
}
NULL_IS_ZERO = ("num_key_value_heads", "head_dim")
"""Keys that may stand there as null, which is not their default but "as many as fit"."""
# Keys whose only accepted values are those that change nothing.
FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "quantization_config": (None,),
    "auto_map": (None, {}),
}
# Keys that do not change what the model computes.
IGNORED = frozenset(
    (
        "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id",
        "is_llama_config", "max_sequence_length", "model_type", "output_router_logits", "pad_token_id", "pretraining_tp", "rope_parameters",
        "rope_scaling", "rope_theta", "torch_dtype", "transformers.js_config", "transformers_version", "unsloth_version", "use_cache",
    )
)  # fmt: skip
# config.json's key of a kind of rotary scaling -> our field
ROPE_KEYS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor", "low_freq_factor": "low_frequency", "high_freq_factor": "high_frequency",
        "original_max_position_embeddings": "original_length",
    },
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Family:
    """How one `model_type` is read and written."""

    architecture: str
    read: Callable[[Mapping[str, Any], int], dict[str, Any]]
    """Our variant, all but the rotary angles, from the keys (defaults filled in) and the number of layers. May raise ValueError."""
    write: Callable[[TransformerConfig], dict[str, Any] | None]
    """Its own keys for a config; None where it has no such decoder."""
    keys: Mapping[str, object] = field(default_factory=dict)
    """Its own keys, with the value that transformers assumes when one is missing."""
    fixed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Of FIELDS, where they are not Llama's."""
    theta: float = 10000.0
    """Base of the rotary angles where none is said."""
    other_names: Mapping[str, str] = field(default_factory=dict)
    """Further names of its keys, as transformers reads and sometimes writes them."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Parts of our parameters' names and what stands there in its files."""

    def in_file(self, name: str) -> str:
        """Our name of a parameter as it is in the family's files."""
        for ours, theirs in self.renamed:
            name = name.replace(ours, theirs)
        return name

    def in_model(self, name: str) -> str:
        """The name of a parameter in the family's files as ours."""
        for ours, theirs in self.renamed:
            name = name.replace(theirs, ours)
        return name


KINDS = {int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
LISTS = ("layer_types", "mlp_only_layers")


def check_kind(key: str, value: object, assumed: object) -> None:
    """Raise ValueError unless a family's own key holds what its assumed value is; null stands for no window, or for nothing assumed."""
    kind = list if key in LISTS else int if assumed is None else type(assumed)
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool) == isinstance(value, bool)
    absent = value is None and (assumed is None or key == "sliding_window")
    if not fits and not absent:
        raise ValueError(f"{key}; found {value!r}; expected {KINDS[kind]}")


def written_as(config: TransformerConfig) -> tuple[str, dict[str, Any]]:
    """The `model_type` of the first family that has such a decoder, and its own keys for it. Raises ModelError where none has."""
    for name, family in FAMILIES.items():
        keys = family.write(config)
        if keys is not None:
            return name, keys
    usual = configs.dump(VariantConfig())
    told = ", ".join(f"{key} {value}" for key, value in configs.dump(config.variant).items() if value != usual[key])
    fix = "Take the variant of a preset of that family."
    raise ModelError("no family of Hugging Face's has this decoder", found=told, expected=f"one of {', '.join(FAMILIES)}", fix=fix)


def read_rope(values: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of our variant. transformers 5 keeps both in rope_parameters, 4 the base at the top.

    Raises ValueError for a kind that is not computed, and for a key that its kind does not have.
    """
    base = values.get("rope_theta")
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(key) or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if not isinstance(kind, str) or not isinstance(rope, dict) or kind not in ROPE_KEYS:
        raise ValueError(f"{key} is not supported; found {kind!r}; expected {' or '.join(map(repr, ROPE_KEYS))}")
    known = ROPE_KEYS[kind]
    for unknown in sorted(set(rope) - {"rope_type", "type", "rope_theta", *known}):
        raise ValueError(f"{key} has the unknown key {unknown!r}; found {rope[unknown]!r}")
    for missing in [name for name in known if name not in rope]:
        raise ValueError(f"{key} lacks the key {missing!r} of {kind}")
    base = rope.get("rope_theta", base)
    scaling = {"kind": kind, **{ours: rope[theirs] for theirs, ours in known.items()}} if known else None
    return {"rope_theta": theta if base is None else base, "rope_scaling": scaling}


def write_rope(variant: VariantConfig) -> dict[str, Any]:
    """transformers 5 reads rope_parameters, 4 reads rope_theta and rope_scaling."""
    theta, scaling = variant.rope_theta, variant.rope_scaling
    if scaling is None:
        return {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}, "rope_theta": theta}
    kept = {"rope_type": scaling.kind, **{theirs: getattr(scaling, ours) for theirs, ours in ROPE_KEYS[scaling.kind].items()}}
    return {"rope_parameters": {"rope_theta": theta, **kept}, "rope_scaling": kept, "rope_theta": theta}


def _is(config: TransformerConfig, *, bias: bool = False, norm: str = "", experts: bool = False) -> bool:
    variant = config.variant
    return (variant.qkv_bias, variant.qk_norm, variant.experts is not None) == (bias, norm, experts)


def _one_window(config: TransformerConfig) -> bool:
    """Whether all layers see equally far."""
    return len({config.variant.window_of(layer) for layer in range(config.num_layers)}) == 1


def _some(chosen: list[int], layers: int) -> tuple[int, ...]:
    """Numbers of layers as a variant has them: none listed where it is all."""
    return () if len(chosen) == layers else tuple(chosen)


def _layer_windows(values: Mapping[str, Any], layers: int, usual: Callable[[int], bool]) -> dict[str, Any]:
    """Windows of the layers that layer_types names, or of the `usual` ones."""
    window = values["sliding_window"] if values["use_sliding_window"] else None
    kinds = values["layer_types"] or [SLIDING if window and usual(layer) else FULL for layer in range(layers)]
    if len(kinds) != layers or not set(kinds) <= {SLIDING, FULL}:
        raise ValueError(f"layer_types; found {kinds}; expected {SLIDING} or {FULL} for each of {layers} layers")
    sliding = [layer for layer, kind in enumerate(kinds) if kind == SLIDING]
    if sliding and not window:
        raise ValueError("layer_types asks for windows, but sliding_window or use_sliding_window for none")
    return {"window": window, "window_layers": _some(sliding, layers)} if sliding else {}


def _windows_out(config: TransformerConfig) -> dict[str, Any]:
    """The same back; max_window_layers is for readers that know no layer_types."""
    windows = [config.variant.window_of(layer) for layer in range(config.num_layers)]
    first = next((layer for layer, window in enumerate(windows) if window), config.num_layers)
    return {
        "use_sliding_window": any(windows), "sliding_window": max(windows) or None, "max_window_layers": first,
        "layer_types": [SLIDING if window else FULL for window in windows],
    }  # fmt: skip


WINDOWS: dict[str, object] = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
NO_WINDOW: dict[str, tuple[object, ...]] = {"sliding_window": (None,)}


def _late_windows(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    return _layer_windows(values, layers, lambda layer: layer >= values["max_window_layers"])


def _read_llama(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    return {}


def _write_llama(config: TransformerConfig) -> dict[str, Any] | None:
    return {"attention_bias": False, "mlp_bias": False} if _is(config) and not config.variant.window else None


def _read_mistral(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    return {"window": values["sliding_window"] or 0}


def _write_mistral(config: TransformerConfig) -> dict[str, Any] | None:
    return {"sliding_window": config.variant.window or None} if _is(config) and _one_window(config) else None


def _read_qwen2(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    return {"qkv_bias": True, **_late_windows(values, layers)}


def _write_qwen2(config: TransformerConfig) -> dict[str, Any] | None:
    return _windows_out(config) if _is(config, bias=True) else None


def _read_qwen3(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    return {"qk_norm": "head", **_late_windows(values, layers)}


def _write_qwen3(config: TransformerConfig) -> dict[str, Any] | None:
    return {"attention_bias": False, **_windows_out(config)} if _is(config, norm="head") else None


def _experts(values: Mapping[str, Any], count: str, **more: Any) -> dict[str, Any]:
    return {"count": values[count], "per_token": values["num_experts_per_tok"], "balance": values["router_aux_loss_coef"], **more}


def _of_one_width(config: TransformerConfig) -> ExpertsConfig | None:
    """The experts of a decoder that has them in all layers, as wide as the model says, and none that is shared."""
    experts = config.variant.experts
    fits = experts is not None and experts.intermediate_size == config.intermediate_size
    return experts if fits and experts and not experts.shared_size and not experts.layers else None


def _read_mixtral(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    return {"window": values["sliding_window"] or 0, "experts": _experts(values, "num_local_experts")}


def _write_mixtral(config: TransformerConfig) -> dict[str, Any] | None:
    experts = _of_one_width(config)
    if experts is None or not experts.normalised or not _is(config, experts=True) or not _one_window(config):
        return None
    return {
        "num_local_experts": experts.count, "num_experts_per_tok": experts.per_token, "router_aux_loss_coef": experts.balance,
        "router_jitter_noise": 0.0, "output_router_logits": False, "sliding_window": config.variant.window or None,
    }  # fmt: skip


def _read_olmoe(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    return {"qk_norm": "whole", "experts": _experts(values, "num_experts", normalised=values["norm_topk_prob"])}


def _write_olmoe(config: TransformerConfig) -> dict[str, Any] | None:
    experts = _of_one_width(config)
    usual = config.head_dim * config.num_heads == config.hidden_size  # its norms have no other size
    if experts is None or not _is(config, norm="whole", experts=True) or config.variant.window or not usual:
        return None
    return {
        "num_experts": experts.count, "num_experts_per_tok": experts.per_token, "router_aux_loss_coef": experts.balance,
        "norm_topk_prob": experts.normalised, "output_router_logits": False, "clip_qkv": None, "attention_bias": False,
    }  # fmt: skip


def _sparse_experts(values: Mapping[str, Any], layers: int, **more: Any) -> dict[str, Any]:
    """Experts in every decoder_sparse_step-th layer but mlp_only_layers."""
    step, plain = values["decoder_sparse_step"] or 0, values["mlp_only_layers"] or []
    if step < 1:
        raise ValueError(f"decoder_sparse_step; found {step}; expected 1 or more")
    chosen = [layer for layer in range(layers) if layer not in plain and (layer + 1) % step == 0]
    if not chosen:
        raise ValueError("mlp_only_layers and decoder_sparse_step leave no layer with experts")
    more |= {"intermediate_size": values["moe_intermediate_size"], "normalised": values["norm_topk_prob"], "layers": _some(chosen, layers)}
    return _experts(values, "num_experts", **more)


def _sparse_out(config: TransformerConfig, experts: ExpertsConfig) -> dict[str, Any]:
    return {
        "num_experts": experts.count, "num_experts_per_tok": experts.per_token, "router_aux_loss_coef": experts.balance,
        "norm_topk_prob": experts.normalised, "output_router_logits": False, "moe_intermediate_size": experts.intermediate_size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer in range(config.num_layers) if config.variant.experts_of(layer) is None],
    }  # fmt: skip


def _read_qwen3_moe(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    window = values["sliding_window"] if values["use_sliding_window"] else 0
    return {"qk_norm": "head", "window": window or 0, "experts": _sparse_experts(values, layers)}


def _write_qwen3_moe(config: TransformerConfig) -> dict[str, Any] | None:
    experts = config.variant.experts
    if experts is None or not _is(config, norm="head", experts=True) or experts.shared_size or not _one_window(config):
        return None
    window = config.variant.window
    return {"attention_bias": False, "use_sliding_window": window > 0, "sliding_window": window or None, **_sparse_out(config, experts)}


def _read_qwen2_moe(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    windows = _layer_windows(values, layers, lambda layer: layer % 2 == 0 and layer < values["max_window_layers"])
    experts = _sparse_experts(values, layers, shared_size=values["shared_expert_intermediate_size"])
    return {"qkv_bias": values["qkv_bias"], "experts": experts, **windows}


def _write_qwen2_moe(config: TransformerConfig) -> dict[str, Any] | None:
    experts = config.variant.experts
    if experts is None or config.variant.qk_norm or not experts.shared_size:
        return None
    shared = {"qkv_bias": config.variant.qkv_bias, "shared_expert_intermediate_size": experts.shared_size}
    return {**shared, **_windows_out(config), **_sparse_out(config, experts)}


ROUTED: dict[str, object] = {"num_experts_per_tok": 8, "router_aux_loss_coef": 0.001, "norm_topk_prob": False}
SPARSE: dict[str, object] = {**ROUTED, "decoder_sparse_step": 1, "mlp_only_layers": None}
FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _read_llama, _write_llama, fixed=NO_WINDOW),
    "mistral": Family(
        "MistralForCausalLM", _read_mistral, _write_mistral, {"sliding_window": 4096},
        defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM", _read_qwen2, _write_qwen2, WINDOWS, defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768}
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM", _read_qwen3, _write_qwen3, WINDOWS,
        defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
    ),
    "mixtral": Family(
        "MixtralForCausalLM", _read_mixtral, _write_mixtral,
        {"sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.001},
        fixed={"router_jitter_noise": (0, None)},
        defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}, theta=1e6,
        other_names={"num_experts": "num_local_experts"},
        renamed=((".mlp.", ".block_sparse_moe."), (".gate_proj.", ".w1."), (".down_proj.", ".w2."), (".up_proj.", ".w3.")),
    ),
    "olmoe": Family(
        "OlmoeForCausalLM", _read_olmoe, _write_olmoe, {**ROUTED, "num_experts": 64, "router_aux_loss_coef": 0.01},
        fixed={"clip_qkv": (None,), **NO_WINDOW}, defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
        other_names={"num_local_experts": "num_experts"},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM", _read_qwen3_moe, _write_qwen3_moe,
        {**SPARSE, "num_experts": 128, "moe_intermediate_size": 768, **WINDOWS},
        fixed={"layer_types": (None,)}, defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768},
        other_names={"num_local_experts": "num_experts"},
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM", _read_qwen2_moe, _write_qwen2_moe,
        {
            **SPARSE, "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
            "qkv_bias": True, **WINDOWS,
        },
        defaults={"num_key_value_heads": 16, "max_position_embeddings": 32768},
    ),
}  # fmt: skip
