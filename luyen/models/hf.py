"""Decoders as Hugging Face folders: `config.json` and safetensors, in and out.

Only architectures that the decoder computes exactly are read (models/families.py has them); a key of `config.json` that is not known, or
that asks for something else, is refused by name. Weights come from safetensors alone, single or sharded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
from luyen.models.families import FAMILIES, FIELDS, FIXED, IGNORED, NULL_IS_ZERO, Family, check_kind, read_rope, write_rope, written_as
from luyen.models.transformer import Transformer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CLASSIFIER = "ForSequenceClassification"
"""How the architectures end whose head gives numbers."""
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


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
    The tokenizer's files are the tokenizer's; whole-or-nothing and the manifest are the caller's. Raises ModelError for a decoder that no
    family of Hugging Face's has.
    """
    eos = list(stop_ids) if len(stop_ids) > 1 else next(iter(stop_ids), None)
    ids = {"bos_token_id": bos_id, "eos_token_id": eos, "pad_token_id": pad_id}
    description = described(model.config, model.head_weight.dtype, ids)
    generation = {key: value for key, value in {**ids, **(sampling or {})}.items() if value is not None}
    write(model.state_dict(), description, Path(folder))
    storage.write_json(Path(folder) / "generation_config.json", generation)


def described(config: TransformerConfig, dtype: torch.dtype, ids: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a decoder with its head for words; `ids` are its keys of special tokens. ModelError as `save`."""
    model_type, own = written_as(config)
    return {
        **{key: getattr(config, field) for key, (field, _) in FIELDS.items()},
        **ids,
        "architectures": [FAMILIES[model_type].architecture],
        "attention_dropout": 0.0,
        "dtype": str(dtype).removeprefix("torch."),
        "hidden_act": "silu",
        "model_type": model_type,
        **write_rope(config.variant),
        # transformers 5 reads dtype, 4 reads torch_dtype.
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        **own,
    }


def write(tensors: Mapping[str, Tensor], description: Mapping[str, Any], folder: Path) -> None:
    """Tensors, under their names here, and config.json into an existing folder."""
    named = FAMILIES[description["model_type"]].in_file
    found = {named(name): tensor.detach().contiguous().cpu() for name, tensor in sorted(tensors.items())}
    with storage.storage_errors(folder), storage.usual_mode(folder / WEIGHTS):
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
    storage.write_json(folder / "config.json", dict(description))


def load(name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """A decoder from a folder or a hub name (`owner/model` or `owner/model@revision`).

    On the meta device only its names and shapes. Raises ModelError when it is no model or does not fit, DamagedFile when a sealed
    folder has changed.
    """
    folder = locate(name)
    manifest.verify_listed(folder)
    family, config = _read_described(read_values(folder), folder)
    with torch.device("meta"):
        model = Transformer(config)
    if torch.device(device).type == "meta":
        return model
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    model.load_state_dict(read_weights(folder, family, config, expected, device, lambda _: dtype), assign=True)
    return model.requires_grad_(True)


def read_weights(
    folder: Path, family: Family, config: TransformerConfig, expected: Mapping[str, tuple[int, ...]],
    device: torch.device | str, types: Callable[[str], torch.dtype],
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of a folder by our names, each in the type that its name asks for; names and shapes must be as expected. ModelError."""
    tensors = {family.in_model(key): tensor for key, tensor in _read_weights(folder, device, types).items()}
    _drop_redundant(tensors, config, folder)
    _check_names_and_shapes(tensors, expected, folder)
    return tensors


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
    """The config of a Hugging Face folder. ModelError names the first key that is unknown or asks for something else."""
    return _read_described(read_values(folder), folder)[1]


def family_of(folder: Path) -> Family:
    """The family that a folder's config names, which knows the names in its files. ModelError as `read_config`."""
    return _read_described(read_values(folder), folder)[0]


def read_values(folder: Path) -> dict[str, Any]:
    """A folder's config.json as it is. ModelError when it is none."""
    path = Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read", found=error, expected="a Hugging Face config.json") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} is not a model's config", found=type(values).__name__, expected="a JSON object")
    return values


def gives_numbers(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of a model that gives numbers in place of words: a reward model, a classifier."""
    names = values.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(CLASSIFIER) for name in names)


def _read_described(values: Mapping[str, Any], folder: Path) -> tuple[Family, TransformerConfig]:
    """Family and config of a model that writes words. ModelError also for a reward model."""
    if gives_numbers(values):
        raise ModelError(f"{folder} is a reward model, which gives a number and writes no words", found=values["architectures"][0],
                         expected="a base or chat model", fix="Give the model that it was trained from.")  # fmt: skip
    return read_described(values, folder)


def read_described(values: Mapping[str, Any], folder: Path) -> tuple[Family, TransformerConfig]:
    """Family and config of a decoder, whatever its head, from the keys of its config.json."""
    path = Path(folder) / "config.json"
    family = FAMILIES.get(str(values.get("model_type")))
    if family is None:
        found, expected = repr(values.get("model_type")), " or ".join(map(repr, FAMILIES))
        raise ModelError(f"{path}: model_type", found=found, expected=expected, fix="Other architectures are not read.")
    values = {family.other_names.get(key, key): value for key, value in values.items()}
    _check_keys(values, family, path)
    fields: dict[str, Any] = {}
    for key, (field, usual) in FIELDS.items():
        default = family.defaults.get(key, usual)
        value = 0 if key in NULL_IS_ZERO and key in values and values[key] is None else values.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelError(f"{path}: key {key!r} is missing")
        fields[field] = value
    try:
        layers = configs.load(TransformerConfig, fields, source=str(path)).num_layers
        own = {**family.keys, **values}
        for key, assumed in family.keys.items():
            check_kind(key, own[key], assumed)
        fields["variant"] = {**read_rope(values, family.theta), **family.read(own, layers)}
        return family, configs.load(TransformerConfig, fields, source=str(path))
    except ConfigError as error:
        raise ModelError(str(error)) from error
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error


def _check_keys(values: Mapping[str, Any], family: Family, path: Path) -> None:
    fixed = {**FIXED, **family.fixed}
    for key, value in values.items():
        if key in fixed and value not in fixed[key]:
            allowed = " or ".join(map(repr, fixed[key]))
            raise ModelError(f"{path}: {key} is not supported", found=repr(value), expected=allowed)
        known = {*FIELDS, *fixed, *IGNORED, *family.keys}
        if key not in known:
            raise ModelError(f"{path}: unknown key {key!r}", found=repr(value), fix=nearest(key, known))


def _read_weights(folder: Path, device: torch.device | str, types: Callable[[str], torch.dtype]) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors files, in the type of its name on `device`."""
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
                    tensors[key] = file.get_tensor(key).to(types(key))
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
