"""Decoders as Hugging Face folders: `config.json` and safetensors, in and out.

Only architectures that the decoder computes exactly are read; a key of `config.json` that is not known, or that asks
for something else, is refused by name. Weights come from safetensors alone, single or sharded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from luyen.core import config as configs
from luyen.core import manifest, storage
from luyen.core.errors import ConfigError, ModelError, nearest
from luyen.core.hub import download, has_hub_form
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]

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
# Keys whose only accepted values are those that change nothing.
FIXED: dict[str, tuple[object, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
    "auto_map": (None, {}),
    "sliding_window": (None,),
}
# Keys that do not change what the model computes.
IGNORED = frozenset(
    (
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "is_llama_config",
        "max_sequence_length",
        "pad_token_id",
        "pretraining_tp",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_version",
        "use_cache",
    )
)


def save(
    model: Transformer,
    folder: Path,
    *,
    bos_id: int | None = None,
    stop_ids: Sequence[int] = (),
    pad_id: int | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json, model.safetensors and generation_config.json into an existing folder.

    stop_ids end an answer; sampling holds further fields of generation_config.json (do_sample, temperature ...).
    The tokenizer's files are the tokenizer's; whole-or-nothing and the manifest are the caller's.
    """
    config = model.config
    eos = list(stop_ids) if len(stop_ids) > 1 else next(iter(stop_ids), None)
    ids = {"bos_token_id": bos_id, "eos_token_id": eos, "pad_token_id": pad_id}
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in sorted(model.state_dict().items())}
    description = {
        **{key: getattr(config, field) for key, (field, _) in FIELDS.items()},
        **ids,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": str(model.head_weight.dtype).removeprefix("torch."),
        "hidden_act": "silu",
        "mlp_bias": False,
        "model_type": "llama",
        # transformers 5 reads rope_parameters, 4 reads rope_theta and torch_dtype.
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rope_theta": config.rope_theta,
        "torch_dtype": str(model.head_weight.dtype).removeprefix("torch."),
        "use_cache": True,
    }
    generation = {key: value for key, value in {**ids, **(sampling or {})}.items() if value is not None}
    with storage.storage_errors(Path(folder)), storage.usual_mode(Path(folder) / WEIGHTS):
        save_file(tensors, Path(folder) / WEIGHTS, metadata={"format": "pt"})
    storage.write_json(Path(folder) / "config.json", description)
    storage.write_json(Path(folder) / "generation_config.json", generation)


def load(name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """A decoder from a folder or a hub name (`owner/model` or `owner/model@revision`).

    On the meta device only its names and shapes. Raises ModelError when it is no model or does not fit, DamagedFile when a sealed
    folder has changed.
    """
    folder = locate(name)
    manifest.verify_listed(folder)
    config = read_config(folder)
    with torch.device("meta"):
        model = Transformer(config)
    if torch.device(device).type == "meta":
        return model
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    tensors = _read_weights(folder, device, dtype)
    _drop_redundant(tensors, config, folder)
    _check_names_and_shapes(tensors, expected, folder)
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(True)


def locate(name: str | Path) -> Path:
    """The folder that holds `config.json`: the folder itself, its `model` subfolder, or the hub's copy on this machine."""
    folder = Path(name)
    for candidate in (folder, folder / "model"):
        if manifest.existing(candidate) and (candidate / "config.json").is_file():
            return candidate
    if folder.exists():
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing" if folder.is_dir() else "a file"
        begun = any((folder / name).exists() for name in ("state.json", "checkpoints"))
        fix = "`luyen export` makes a model of a training checkpoint." if begun else ""
        raise ModelError(f"{folder} is not a model", found=held, expected="a folder with config.json and model.safetensors", fix=fix)
    if not has_hub_form(str(name)):
        raise ModelError(f"no model {name}", expected="a folder, or a hub name such as owner/model", fix="Check the path.")
    return download(str(name), "model", HUB_FILES)


def read_config(folder: Path) -> TransformerConfig:
    """The config of a Hugging Face Llama folder. ModelError names the first key that is unknown or asks for something else."""
    path = Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read", found=error, expected="a Hugging Face config.json") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} is not a model's config", found=type(values).__name__, expected="a JSON object")
    if values.get("model_type") != "llama":
        found = repr(values.get("model_type"))
        raise ModelError(f"{path}: model_type", found=found, expected="'llama'", fix="Other architectures are not read.")
    for key, value in values.items():
        if key in FIXED and value not in FIXED[key]:
            allowed = " or ".join(map(repr, FIXED[key]))
            raise ModelError(f"{path}: {key} is not supported", found=repr(value), expected=allowed)
        if key not in FIELDS and key not in FIXED and key not in IGNORED:
            raise ModelError(f"{path}: unknown key {key!r}", found=repr(value), fix=nearest(key, {*FIELDS, *FIXED, *IGNORED}))
    fields: dict[str, Any] = {"rope_theta": _rope_theta(values, path)}
    for key, (field, default) in FIELDS.items():
        value = default if values.get(key) is None else values[key]
        if value is None:
            raise ModelError(f"{path}: key {key!r} is missing")
        fields[field] = value
    try:
        return configs.load(TransformerConfig, fields, source=str(path))
    except ConfigError as error:
        raise ModelError(str(error)) from error


def _rope_theta(values: Mapping[str, Any], path: Path) -> object:
    """The rotary base. transformers 5 keeps it in rope_parameters, 4 at the top beside rope_scaling."""
    theta = values.get("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key)
        if rope is None:
            continue
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
        if kind != "default":
            raise ModelError(f"{path}: {key} is not supported", found=repr(kind), expected="'default'")
        extra = set(rope) - {"rope_type", "type", "rope_theta"}
        if extra:
            raise ModelError(f"{path}: {key} has the unknown key {min(extra)!r}", found=repr(rope[min(extra)]))
        theta = rope.get("rope_theta", theta)
    return 10000.0 if theta is None else theta


def _read_weights(folder: Path, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors files, in `dtype` on `device`."""
    index = folder / INDEX
    listed: dict[str, str] = {}
    if (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif index.is_file():
        try:
            listed = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{index} is not an index of shards", found=repr(error), expected="a weight_map") from error
        if any(not isinstance(name, str) or Path(name).name != name for name in listed.values()):
            raise ModelError(f"{index} names a file outside its folder", found=sorted(map(str, listed.values()))[:3])
        files = sorted(set(listed.values()))
    else:
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        fix = "Such files can run code and are never read: convert them to safetensors first." if pickled else ""
        raise ModelError(f"{folder} has no {WEIGHTS}", found=", ".join(pickled) or "no weights", expected=f"{WEIGHTS} or {INDEX}", fix=fix)
    tensors: dict[str, Tensor] = {}
    for name in files:
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks the shard {name} that its index names", fix="Copy the whole folder again.")
        try:
            with safetensors.safe_open(folder / name, framework="pt", device=str(device)) as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    if listed and listed.get(key) != name:
                        raise ModelError(f"{folder / name} holds {key}, which the index puts elsewhere", found=listed.get(key))
                    tensors[key] = file.get_tensor(key).to(dtype)
        except safetensors.SafetensorError as error:
            raise ModelError(f"{folder / name} is not a whole safetensors file", found=error, fix="Copy it again.") from error
    absent = sorted(set(listed) - set(tensors))
    if absent:
        raise ModelError(f"{folder}: {absent[0]} is in the index but in no shard", found=f"{len(absent)} such tensors")
    return tensors


def _drop_redundant(tensors: dict[str, Tensor], config: TransformerConfig, folder: Path) -> None:
    """Take out what old files carry beside the weights: rotary tables, and a tied head written a second time."""
    for key in [key for key in tensors if key.endswith("rotary_emb.inv_freq")]:
        del tensors[key]
    if config.tied and "lm_head.weight" in tensors and "model.embed_tokens.weight" in tensors:
        if not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            raise ModelError(f"{folder}: tie_word_embeddings is true, but lm_head.weight differs from the embedding")
        del tensors["lm_head.weight"]


def _check_names_and_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    for problem, names in (("lacks", missing), ("has the unknown", extra)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"{folder} {problem} tensor {names[0]}{more}", fix="config.json and the weights do not belong together.")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ModelError(f"{folder}: tensor {name} does not fit config.json", found=tuple(tensors[name].shape), expected=shape)
