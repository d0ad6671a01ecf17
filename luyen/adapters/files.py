"""Adapters on disk: `adapter_config.json` and `adapter_model.safetensors`, which PEFT reads, and `luyen.json` beside them.

Methods that PEFT has are written in its form (see peft_names); the others in the same two files under a peft_type of our own, which PEFT
refuses by name. So are adapters on the experts of a mixture, which in transformers 5 are no maps but one tensor. The manifest
holds our whole config, the base's path and the sha256 of its weights, and the shapes of the maps that carry the adapter, so that an adapter
on another base is refused with the difference named. What is saved and loaded has the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_args

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from luyen.adapters import new_tokens, peft_forms, peft_names
from luyen.adapters.adapt import adapt, merge_in_place
from luyen.adapters.config import AdapterConfig
from luyen.adapters.factors import STARTS, with_all_triples, with_starts, without_starts
from luyen.adapters.linear import AdaptedLinear, adapted
from luyen.adapters.peft_names import ROWS, VECTORS, Form, Keys, State, plain_name
from luyen.adapters.preamble import final_vectors, preamble_of, put_vectors
from luyen.adapters.quantized import Kind, quantize, quantized_maps
from luyen.adapters.quantized_load import load_quantized
from luyen.core import config as configs
from luyen.core import manifest, storage
from luyen.core.errors import DamagedFile, ModelError
from luyen.core.hub import download, has_hub_form
from luyen.models import hf
from luyen.models.transformer import Transformer

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = "adapter_model.bin"
SUBFOLDER = "adapter"
"""Where a stage keeps its adapter."""


def save(model: nn.Module, config: AdapterConfig, folder: Path, *, base: str, digest: str, **facts: Any) -> Path:
    """Write the adapter of a model as a sealed folder, which is there whole or not at all.

    base: path or hub name of the plain model, and digest its `weights_digest`. Facts go into the manifest (lineage, versions).
    """
    with manifest.new_folder(Path(folder)) as made:
        manifest.seal(made, "adapter", **write(model, config, made, base=base, digest=digest), **facts)
    return Path(folder)


def write(model: nn.Module, config: AdapterConfig, folder: Path, *, base: str, digest: str) -> dict[str, Any]:
    """The two files of an adapter, in a folder that is still open. Gives what its manifest must say when the caller seals it."""
    maps = dict(adapted(model))
    shapes = {name: [module.out_features, module.in_features] for name, module in maps.items()}
    state = without_starts(adapter_state(model))
    form = peft_forms.form_for(config, state)
    plain = plain_names(model)
    whole = [name for name in state if name in plain]
    keys: Keys = {**peft_names.COMMON, "base_model_name_or_path": str(base), **new_tokens.keys_of(model)}
    if form is None:
        keys |= {"peft_type": peft_names.OWN_TYPE + config.method.upper()}
    else:
        state |= _siblings(model, whole, maps)
        about = peft_names.whole_keys(model, whole, maps)
        if about["ensure_weight_tying"]:
            state[peft_names.HEAD] = state[peft_names.EMBEDDING].detach().clone()
        keys |= {"peft_type": form.peft_type, **form.write(model, config), **{key: about[key] for key in form.whole}}
        state = peft_names.to_peft(state, maps, form)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}
    path = os.path.relpath(os.path.abspath(base), os.path.abspath(folder)) if manifest.existing(base) else None
    with storage.storage_errors(folder):
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    storage.write_json(folder / CONFIG, keys)
    bits = next(({"kind": held.kind, "double": held.double_quantization} for _, held in quantized_maps(model)), None)
    about_base = {"name": str(base), "path": path, "weights": digest, "quantized": bits}
    return {"adapter": config.model_dump(mode="json"), "base": about_base, "maps": shapes}


def plain_names(model: nn.Module) -> frozenset[str]:
    """Names of the tensors of the model without any adapter."""
    config = cast(Any, model).config
    return _names_of(type(model), type(config), config.model_dump_json())


@lru_cache(maxsize=8)
def _names_of(kind: type[nn.Module], config: type[configs.Config], values: str) -> frozenset[str]:
    """A model of billions of weights takes a while to make, even without memory."""
    with torch.device("meta"):
        return frozenset(cast(Any, kind)(config.model_validate_json(values)).state_dict())


def adapter_state(model: nn.Module) -> State:
    """All that makes the adapter, by name: what the plain model has not, and those of its parameters that are trained.

    The live tensors, the latter by their names in the plain model; learned positions as what is made of them. Buffers that serve
    training alone are left out.
    """
    plain = plain_names(model)
    named = {plain_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    state = {
        name: tensor
        for name, tensor in named.items()
        if (tensor.requires_grad if name in plain else isinstance(tensor, nn.Parameter) or name.endswith(STARTS))
    }
    if preamble_of(model):
        beside = {name: tensor for name, tensor in state.items() if name in plain or name.endswith(ROWS)}
        return {**beside, VECTORS: final_vectors(model)}
    return state


def _siblings(model: nn.Module, whole: list[str], maps: Mapping[str, object]) -> State:
    """The other parameters of modules of which one is trained: PEFT keeps such modules in whole."""
    owners = {name.rpartition(".")[0] for name in whole} - set(maps)
    named = {plain_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    return {name: tensor for name, tensor in named.items() if name.rpartition(".")[0] in owners}


def weights_digest(name: str | Path, base: str | Path | None = None) -> str:
    """One sha256 (hex) for the weights files of a model's folder; those of a sealed one stand in its manifest, others are read.

    Of an adapter, which may be another's base: for its weights and its own base's, or those of the model that it is put on.
    """
    adapter = locate(name)
    folder = adapter or hf.locate(name)
    names = sorted(path.name for path in folder.glob("*.safetensors") if (path.name == WEIGHTS) == (adapter is not None))
    if not names:
        raise ModelError(f"{folder} has no weights", expected=hf.WEIGHTS)
    sealed = manifest.read(folder)["files"] if (folder / manifest.MANIFEST).is_file() else {}
    found = {name: sealed[name]["sha256"] if name in sealed else manifest.sha256_file(folder / name) for name in names}
    return manifest.fingerprint(found if adapter is None else {**found, "base": weights_digest(base or base_of(adapter))})


def is_adapter(name: str | Path) -> bool:
    """Whether a name is that of an adapter's folder here."""
    return _here(name) is not None


def _here(name: str | Path) -> Path | None:
    """The adapter's folder: this one, or its subfolder where there is no whole model."""
    path = manifest.existing(name)
    if path is None or not path.is_dir():
        return None
    if (path / CONFIG).is_file():
        return path
    if (path / "config.json").is_file() or (path / "model" / "config.json").is_file():
        return None
    return path / SUBFOLDER if (path / SUBFOLDER / CONFIG).is_file() else None


def locate(name: str | Path) -> Path | None:
    """The folder of the adapter of that name, here or from the hub; None when it is no adapter's name."""
    found = _here(name)
    if found is None and manifest.existing(name) is None and has_hub_form(str(name)):
        copy = download(str(name), "model", hf.HUB_FILES)
        return copy if (copy / CONFIG).is_file() else None
    return found


def read_config(folder: str | Path) -> AdapterConfig:
    """The config of an adapter's folder: ours from the manifest, else what PEFT's says. ModelError names a key that is not done here."""
    path = _folder(folder)
    ours = _manifest(path).get("adapter")
    if ours is not None:
        return configs.load(AdapterConfig, ours, source=str(path / manifest.MANIFEST))
    return peft_forms.read_keys(_keys(path), read_tensors(path), str(path / CONFIG))


def _folder(name: str | Path) -> Path:
    found = _here(name)
    if found is None:
        raise ModelError(f"{name} is not an adapter", expected=f"a folder with {CONFIG} and {WEIGHTS}", fix="Check the path.")
    return found


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a sealed adapter, an empty one where there is none."""
    found = manifest.read(folder) if (folder / manifest.MANIFEST).is_file() else {}
    for key, kind in (("adapter", dict), ("base", dict), ("maps", dict)):
        if not isinstance(found.get(key, {}), kind):
            raise DamagedFile(folder / manifest.MANIFEST, f"says nothing usable of {key}")
    told = found.get("base", {})
    if any(not isinstance(told.get(key), str | None) for key in ("name", "path", "weights")):
        raise DamagedFile(folder / manifest.MANIFEST, "says nothing usable of base")
    return found if found.get("kind") == "adapter" else {}


def _keys(folder: Path) -> Keys:
    return storage.read_object(folder / CONFIG)


def read_tensors(folder: Path) -> State:
    """All tensors of an adapter, on the CPU in the types that they are saved in."""
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / PICKLES).is_file()
        fix = "Such files can run code and are never read: load and save it with a new PEFT." if pickled else "Copy the whole folder."
        raise ModelError(f"{folder} has no {WEIGHTS}", found=PICKLES if pickled else "no weights", expected=WEIGHTS, fix=fix)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a whole safetensors file", found=error, fix="Copy it again.") from error


def saved_state(folder: str | Path) -> tuple[State, Form | None]:
    """The tensors of an adapter's folder by our names, and PEFT's form of it; None where PEFT has no such method."""
    path = _folder(folder)
    tensors, keys = read_tensors(path), _keys(path)
    if str(keys.get("peft_type")).startswith(peft_names.OWN_TYPE):
        return tensors, None
    form = peft_forms.form_of(keys, str(path / CONFIG))
    return peft_names.from_peft(tensors, form), form


def brings_tokens(folder: str | Path, rows: int) -> bool:
    """Whether an adapter brings new tokens to a model of so many rows."""
    found, ids = _tokens_in(_folder(folder))
    return bool(ids) or new_tokens.size_of(found, ids) > rows


def make_room(model: nn.Module, folder: str | Path) -> None:
    """Rows for an adapter's new tokens on a plain model, in place. ModelError where it is for another model."""
    new_tokens.make_room(model, *_tokens_in(_folder(folder)), folder)


def _tokens_in(path: Path) -> tuple[State, new_tokens.Ids]:
    found, _ = saved_state(path)
    return found, new_tokens.ids_in(_keys(path), found, str(path / CONFIG))


def load_into(model: nn.Module, folder: str | Path, digest: str | None = None) -> AdapterConfig:
    """Put the adapter of a folder on a plain model, in place, and give its config. The generator is left as it was.

    Checked first: the files against their manifest, names and shapes against the model, and with `digest` (`weights_digest` of the
    base) that it is the base that the adapter was trained on. Raises DamagedFile, ModelError.
    """
    path = _folder(folder)
    manifest.verify_listed(path)
    config, sealed = read_config(path), _manifest(path)
    if any(True for _ in adapted(model)):
        raise ModelError(f"{path} cannot be put on a model that carries an adapter", fix="Merge that one first.")
    found, form = saved_state(path)
    told, ids = sealed.get("base", {}).get("weights"), new_tokens.ids_in(_keys(path), found, str(path / CONFIG))
    _check_maps(model, path, sealed.get("maps") or _shapes(found), digest is not None and told not in (None, digest))
    new_tokens.make_room(model, found, ids, path)
    _put(model, config, form, found, again=not sealed)
    new_tokens.train_rows(model, ids)
    _fill(model, found, path, form)
    return config


def _shapes(found: State) -> dict[str, list[int]]:
    """(O, I) of every map that carries LoRA, from its factors."""
    return {
        name.removesuffix(".lora_A"): [found[other].shape[0], tensor.shape[1]]
        for name, tensor in found.items()
        if name.endswith(".lora_A") and (other := f"{name.removesuffix('.lora_A')}.lora_B") in found
    }


def _check_maps(model: nn.Module, folder: Path, maps: Mapping[str, Any], other_base: bool) -> None:
    """ModelError when the model is not the one that the adapter was trained on, with the first difference."""
    modules = dict(model.named_modules())
    for name, shape in maps.items():
        module = modules.get(name)
        here = None if module is None else [getattr(module, "out_features", None), getattr(module, "in_features", None)]
        if here != shape:
            raise ModelError(
                f"the adapter {folder} is for another model: its map {name}",
                found="no such map" if here is None else f"{here[0]} x {here[1]}",
                expected=" x ".join(map(str, shape)) if isinstance(shape, list) else "such a map",
                fix="Give the base that it was trained on.",
            )
    if other_base:
        raise ModelError(f"the adapter {folder} was trained on other weights of a model of this form", found="another sha256 of the base",
                         expected="that in its luyen.json", fix="Give the base that it was trained on, or train it again.")  # fmt: skip


def _put(model: nn.Module, config: AdapterConfig, form: Form | None, found: State, again: bool) -> None:
    """The modules of the method on the model, still without the saved values.

    again: the start of PiSSA is not in the files, since PEFT makes it again from the base.
    """
    if config.method == "esft":  # which experts were chosen, the file alone knows
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in found)
        return
    starts = config.lora.init == "pissa"
    fresh = config if again else config.model_copy(update={"lora": config.lora.model_copy(update={"init": "default"}), "start": None})
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        adapt(model, fresh)
    if starts and not again:
        for _, module in adapted(model):
            a, b = cast(Tensor, module.lora_A), cast(Tensor, module.lora_B)
            module.start_A, module.start_B = torch.zeros_like(a, requires_grad=False), torch.zeros_like(b, requires_grad=False)


@torch.no_grad()
def _fill(model: nn.Module, found: State, folder: Path, form: Form | None) -> None:
    """Copy the saved tensors into the adapted model; every one must have its place, and every place its tensor."""
    live = adapter_state(model)
    found = with_all_triples(with_starts(found, live), live)
    plain = plain_names(model)
    places = {**live, **({} if form is None else _siblings(model, [name for name in live if name in plain], _maps(model)))}
    optional = {name for name in places if name.endswith(STARTS)}
    missing, extra = sorted(set(places) - set(found) - optional), sorted(set(found) - set(places))
    for problem, names in (("lacks", missing), ("has the unknown", extra)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"the adapter {folder} {problem} tensor {names[0]}{more}", fix="Its config and its weights do not belong together."
            )
    if VECTORS in places:
        put_vectors(model, found[VECTORS])
    for name, tensor in found.items():
        if tensor.shape != places[name].shape:
            raise ModelError(
                f"the adapter {folder}: tensor {name} does not fit", found=tuple(tensor.shape), expected=tuple(places[name].shape)
            )
        places[name].copy_(tensor)


def _maps(model: nn.Module) -> dict[str, AdaptedLinear]:
    return dict(adapted(model))


def base_of(folder: str | Path) -> Path:
    """The folder of the model (or adapter) that an adapter was trained on: from its own place, as named, or from the hub. ModelError."""
    path = _folder(folder)
    told, keys = _manifest(path).get("base", {}), _keys(path)
    name = str(told.get("name") or keys.get("base_model_name_or_path") or "")
    for candidate in ([path / told["path"]] if told.get("path") else []) + ([Path(name)] if name else []):
        if manifest.existing(candidate) is not None:
            return _here(candidate) or hf.locate(candidate)
    revision = keys.get("revision")
    full = name if not revision or "@" in name else f"{name}@{revision}"
    if has_hub_form(full) and not told.get("path"):
        return hf.locate(full)
    raise ModelError(f"the base model of {path} is not there", found=name or "no name of it", expected="a model's folder or a hub name",
                     fix="Copy the base to that place.")  # fmt: skip


def open_model(name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """A model from a folder or hub name: a plain one, or the base of an adapter with the adapter on it. ModelError, DamagedFile.

    The base is held in few bits where the adapter was trained so; one that is itself an adapter is merged into its own base first.
    """
    folder = locate(name)
    if folder is None:
        return hf.load(name, device, dtype).eval()
    base = base_of(folder)
    model = open_base(base, quantization(folder), device, dtype)
    load_into(model, folder, weights_digest(base) if _manifest(folder) else None)
    return model.eval()  # an adapter may drop inputs while training


def open_base(base: str | Path, bits: Mapping[str, Any] | None, device: torch.device | str, dtype: torch.dtype) -> Transformer:
    """What an adapter is put on: the model, in few bits where told (see `quantization`), without any adapter of its own."""
    if locate(base) is not None:
        model = open_model(base, device, dtype if bits is None else torch.float32)  # codes of what is merged, not of what is rounded
        merge_in_place(model)
        if bits is not None:
            quantize(model, bits["kind"], bits["double"])
        return model.to(dtype)
    return hf.load(base, device, dtype) if bits is None else load_quantized(base, bits["kind"], device, dtype, bits["double"])


def quantization(folder: str | Path) -> dict[str, Any] | None:
    """How the base was held while an adapter was trained: kind and double; None in numbers, and where the adapter does not tell."""
    bits = _manifest(_folder(folder)).get("base", {}).get("quantized")
    if bits is not None and (not isinstance(bits, dict) or bits.get("kind") not in get_args(Kind) or "double" not in bits):
        raise DamagedFile(_folder(folder) / manifest.MANIFEST, "says nothing usable of the base's bits")
    return bits


def locate_tokenizer(name: str | Path) -> Path:
    """The folder whose tokenizer belongs to a model or adapter: the adapter's own where it has one, else its base's."""
    folder = locate(name)
    if folder is None:
        return hf.locate(name)
    return folder if (folder / "tokenizer.json").is_file() else locate_tokenizer(base_of(folder))
