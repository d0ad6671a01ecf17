"""Checkpoints: folders `step-00000100` that are whole or not there, verified before they are used.

Each holds model.safetensors (trained parameters and persistent buffers), optimizer.safetensors (state tensors by parameter name),
random.safetensors (every random generator), state.json (step, stream position, log lengths, ...: nothing of when or how long),
timing.json (seconds, joules) and luyen.json with the sha256 of each. A folder is written under a temporary name, every
file fsynced, and renamed last, so a kill at any point leaves the previous checkpoints as they were. Frozen parameters are not stored:
state.json then holds their fingerprint, and a run over other ones is refused.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from luyen.core import distributed, manifest, progress, random_state, storage
from luyen.core.errors import DamagedFile, ModelError, StorageError
from luyen.engine.parallel.tensors import local, part_like, whole, whole_on_main

KIND = "checkpoint"
FILES = frozenset({"model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "timing.json"})
RETIRED = f"{storage.TEMPORARY}retired-"
NUMBER = ":number"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    state: dict[str, Any]
    timing: dict[str, Any]


def save(
    root: Path, model: nn.Module, optimizers: Iterable[Optimizer], state: Mapping[str, Any], timing: Mapping[str, Any]
) -> Path:  # fmt: skip
    """Write `root/step-N` for N = state["step"], with the random generators as they are now. Returns the folder.

    With several processes all call this and the main one writes whole tensors, so a checkpoint does not know of how many it was made.
    An existing folder of that step is replaced. Where parameters are frozen, `frozen_fingerprint(model)` is added to the state unless it
    is there. Raises StorageError when the disk is full; earlier checkpoints are intact.
    """
    if "frozen" not in state and (frozen := frozen_fingerprint(model)) is not None:
        state = {**state, "frozen": frozen}
    final = root / f"step-{state['step']:08d}"
    groups = {"model": model_tensors(model), "optimizer": optimizer_tensors(model, optimizers), "random": random_state.random_state()}
    groups = {name: whole_on_main(tensors) for name, tensors in groups.items()}
    if not distributed.is_main():
        return final
    needed = sum(tensor.nbytes for tensors in groups.values() for tensor in tensors.values())
    try:
        with manifest.new_folder(final) as folder:
            for name, tensors in groups.items():
                _save_tensors(folder / f"{name}.safetensors", tensors)
            storage.write_json(folder / "state.json", dict(state))
            storage.write_json(folder / "timing.json", dict(timing))
            manifest.seal(folder, KIND)
    except StorageError as error:
        raise StorageError(f"{error}. A checkpoint needs {needed / 1e6:.1f} MB") from error
    return final


def newest_of_main(root: Path) -> Checkpoint | None:
    """`newest_valid` of the main process' folder; with several processes all call this and learn of the same one."""
    found = newest_valid(root) if distributed.is_main() else None
    told = distributed.told_by_main(found and {"folder": str(found.folder), "state": found.state, "timing": found.timing})
    return told and Checkpoint(Path(told["folder"]), told["state"], told["timing"])


def newest_valid(root: Path) -> Checkpoint | None:
    """The newest checkpoint whose every file agrees with its manifest. Damaged newer ones are named and passed over."""
    for folder in _folders(root):
        try:
            return open_checkpoint(folder)
        except DamagedFile as error:
            progress.say(f"{error}. The checkpoint before it is used instead")
    return None


def open_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint after checking every file against the manifest. Raises DamagedFile naming the first bad one."""
    manifest.recover(folder)
    try:
        found = storage.read_json(folder / manifest.MANIFEST)
        if found["kind"] != KIND or set(found["files"]) != FILES:  # before a name in it is opened
            raise DamagedFile(folder / manifest.MANIFEST, "is not that of a checkpoint")
        manifest.verify(folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(folder / manifest.MANIFEST, f"is not a manifest ({error!r})") from error
    return Checkpoint(folder, storage.read_json(folder / "state.json"), storage.read_json(folder / "timing.json"))


def restore(checkpoint: Checkpoint, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Put a checkpoint's tensors into the model, the optimizers and the random generators, in place.

    Raises ModelError when its names, shapes or frozen parameters are not the model's; nothing is changed then.
    """
    folder = checkpoint.folder
    stored = model_tensors(model)
    found = _load(folder / "model.safetensors")
    if distributed.is_main():
        _check_fit(found, stored, folder)
    before, now = checkpoint.state.get("frozen"), frozen_fingerprint(model)
    if before != now:
        raise ModelError(
            f"checkpoint {folder} was made with other frozen weights", found=f"{now}", expected=f"{before}",
            fix="Give the base model that it was made with, or start anew in another folder.",
        )  # fmt: skip
    with torch.no_grad():
        for name, tensor in distributed.from_main(found):
            local(stored[name]).copy_(local(part_like(tensor, stored[name])))
    parameters = dict(model.named_parameters())
    states = {
        key: tensor if key.endswith(NUMBER) else part_like(tensor, parameters[key.partition(":")[0]])
        for key, tensor in distributed.from_main(_load(folder / "optimizer.safetensors"))
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            prefix = f"{names[id(parameter)]}:"
            own = {key.removeprefix(prefix): tensor for key, tensor in states.items() if key.startswith(prefix)}
            optimizer.state[parameter] = {
                key.removesuffix(NUMBER): tensor.item() if key.endswith(NUMBER) else tensor for key, tensor in own.items()
            }
    random_state.restore_random_state(dict(distributed.from_main(_load(folder / "random.safetensors"))))


def retain(root: Path, keep_last: int, spared: Collection[int] = ()) -> None:
    """Delete checkpoints older than the newest `keep_last` valid ones, but none of the `spared` steps.

    Damaged ones do not count and never push out a valid one.
    """
    valid = 0
    for folder in _folders(root):
        if valid >= keep_last:
            if int(folder.name[5:]) not in spared:
                _delete(folder)
            continue
        with contextlib.suppress(DamagedFile):
            open_checkpoint(folder)
            valid += 1


def clean(root: Path) -> None:
    """Finish a replacement that was cut, and remove what killed processes left half written or half deleted."""
    manifest.clean_up(root)
    for leftover in root.glob(f"{RETIRED}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters (a shared one once) and persistent buffers by name; they share memory with the model."""
    once = {name for name, parameter in model.named_parameters() if parameter.requires_grad} | {name for name, _ in model.named_buffers()}
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name in once}


def frozen_fingerprint(model: nn.Module) -> str | None:
    """sha256 (hex) over names, types, shapes and bits of the parameters that are not trained; None when all are.

    Costs about a second per GB, so a run computes it once.
    """
    found = {name: parameter.detach() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    frozen = sorted(found.items(), key=lambda item: item[0])
    digest = hashlib.sha256()
    for name, tensor in frozen:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(whole(tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest() if frozen else None


def optimizer_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """All state of the optimizers as tensors named `parameter:key`; Python's numbers as `parameter:key:number`, in 64 bits."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            for key, value in values.items():
                name = f"{names[id(parameter)]}:{key}"
                if isinstance(value, Tensor):
                    found[name] = value
                else:
                    found[f"{name}{NUMBER}"] = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    return found


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    alone: dict[str, Tensor] = {}
    held: set[int] = set()
    for name, tensor in tensors.items():  # what several names share is written for each
        alone[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in held else tensor.contiguous()
        held.add(tensor.untyped_storage().data_ptr())
    try:
        save_file(alone, path)
    except SafetensorError as error:  # it tells of a full disk in its text only
        code = re.search(r"os error (\d+)", str(error))
        number = int(code.group(1)) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file for the main process; others get them from it."""
    return load_file(path) if distributed.is_main() else {}


def _folders(root: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [(int(match.group(1)), path) for path in root.glob("step-*") if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def _delete(folder: Path) -> None:
    """Rename first, so that a kill in the middle leaves nothing that looks like a damaged checkpoint."""
    retired = folder.with_name(f"{RETIRED}{folder.name}")
    with storage.storage_errors(folder):
        os.rename(folder, retired)
        shutil.rmtree(retired)


def _check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> None:
    for name in sorted(found.keys() | expected.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (found, expected)]
        if shapes[0] != shapes[1]:
            raise ModelError(
                f"checkpoint {folder} is of another model: {name}", found=shapes[0] or "nothing", expected=shapes[1] or "nothing",
                fix="Start anew in another folder, or build the same model.",
            )  # fmt: skip
