"""Checkpoints: folders `step-00000100` that are whole or not there, verified before they are used.

Each holds the tensors of `model` (trained parameters and persistent buffers) and `optimizer` (its state by parameter name),
random.safetensors (every random generator), state.json (format, step, stream position, log lengths, ...: nothing of when or how long),
timing.json (seconds, joules) and luyen.json with the sha256 of each. A group of tensors is one file that the main process writes, as
model.safetensors, or in a sharded checkpoint a folder with a file of every process (sharded.py). A folder is written under a temporary
name, every file fsynced, and renamed last, so a kill at any point leaves the previous checkpoints as they were. Frozen parameters are not
stored: state.json then holds their fingerprint, and a run over other ones is refused.

A save has two halves: `capture`, which all processes do at the same step and which may copy, and `write`, which talks to no other
process but through `Meeting` and may be done by a thread while training goes on (saving.py).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from luyen.core import distributed, manifest, progress, storage
from luyen.core.errors import DamagedFile, ModelError, StorageError
from luyen.engine.meeting import Meeting
from luyen.engine.parallel.tensors import local, part_like, whole_on_main
from luyen.engine.randomness import restore_own, states_of_all
from luyen.engine.sharded import Shards, Share, share_out
from luyen.engine.sharded import write as write_share
from luyen.engine.states import NUMBER, frozen_fingerprint, model_tensors, optimizer_tensors

KIND = "checkpoint"
FORMAT = 2
"""Of what is written here, told in state.json; without a number it is 1, which knew no shards. A newer one is refused."""
GROUPS = ("model", "optimizer")
SMALL = frozenset({"random.safetensors", "state.json", "timing.json"})
FILES = SMALL | {f"{group}.safetensors" for group in GROUPS}
"""Of a checkpoint that is not sharded."""
_SHARD = re.compile(rf"({'|'.join(GROUPS)})/shard-\d+-model-00001-of-00001\.safetensors")
RETIRED = f"{storage.TEMPORARY}retired-"
_NAME = re.compile(r"step-(\d{8,})")
_numbers = itertools.count()


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    state: dict[str, Any]
    timing: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """What this process writes of one save. It shares memory with the run unless its tensors are copies."""

    number: int
    """Of the save in this process, equal on all."""
    groups: dict[str, dict[str, Tensor]]
    """Tensors by group and name: whole ones for the main process, or the pieces of `shares`."""
    shares: dict[str, Share] | None
    """Who writes what of a sharded checkpoint."""
    state: dict[str, Any]
    timing: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the folder."""
        return f"step-{self.state['step']:08d}"

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.nbytes for tensors in self.groups.values() for tensor in tensors.values())


def save(
    root: Path, model: nn.Module, optimizers: Iterable[Optimizer], state: Mapping[str, Any], timing: Mapping[str, Any],
    sharded: bool = False,
) -> Path:  # fmt: skip
    """Write `root/step-N` for N = state["step"], with the random generators as they are now. Returns the folder.

    With several processes all call this. An existing folder of that step is replaced. Raises StorageError when the disk is full; earlier
    checkpoints are intact.
    """
    return write(root, capture(model, optimizers, state, timing, sharded))


def capture(
    model: nn.Module, optimizers: Iterable[Optimizer], state: Mapping[str, Any], timing: Mapping[str, Any], sharded: bool = False
) -> Snapshot:
    """What a checkpoint of this moment holds; every process calls this. Its tensors may be the run's own.

    Not sharded: whole tensors for the main process, so that a checkpoint does not know of how many processes it was made. Where
    parameters are frozen, `frozen_fingerprint(model)` is added to the state unless it is there.
    """
    if "frozen" not in state and (frozen := frozen_fingerprint(model)) is not None:
        state = {**state, "frozen": frozen}
    groups: dict[str, dict[str, Tensor]] = {"model": model_tensors(model), "optimizer": optimizer_tensors(model, optimizers)}
    shares = share_out(groups) if sharded else None
    if shares is not None:
        groups = {group: share.pieces for group, share in shares.items()}
    else:
        groups = {name: whole_on_main(tensors) for name, tensors in groups.items()}
    groups["random"] = states_of_all()
    return Snapshot(next(_numbers), groups, shares, {**state, "format": FORMAT}, dict(timing))


def write(root: Path, snapshot: Snapshot, meeting: Meeting | None = None) -> Path:
    """Write a snapshot as `root/step-N`. Returns the folder.

    The main process seals it when the others have written their pieces, which it learns of by `meeting`. Raises StorageError, RankLost.
    """
    final = root / snapshot.name
    meeting = meeting or Meeting(snapshot.number)
    try:
        if distributed.is_main():
            with meeting.telling_failure(), manifest.new_folder(final) as folder:
                _fill(folder, snapshot, meeting)
        elif snapshot.shares is not None:
            with meeting.telling_failure(), storage.storage_errors(final):
                folder = Path(meeting.hear(0, "folder"))
                meeting.tell("files", _write_shares(folder, snapshot))
    except StorageError as error:
        raise StorageError(f"{error}. A checkpoint needs {snapshot.bytes / 1e6:.1f} MB") from error
    return final


def _fill(folder: Path, snapshot: Snapshot, meeting: Meeting) -> None:
    """All files of a checkpoint's folder; the main process does this."""
    state = dict(snapshot.state)
    files: dict[str, Any] = {}
    if snapshot.shares is None:
        for group in GROUPS:
            _save_tensors(folder / f"{group}.safetensors", snapshot.groups[group])
    else:
        meeting.tell("folder", str(folder.resolve()))
        files = _write_shares(folder, snapshot)
        for rank in range(1, distributed.ranks()):
            files |= meeting.hear(rank, "files")
        for name, entry in files.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != entry["bytes"]:
                raise StorageError(f"{folder / name} was written by another process and is not there: all need one file system")
        state["shards"] = sorted(files)
    _save_tensors(folder / "random.safetensors", snapshot.groups["random"])
    storage.write_json(folder / "state.json", state)
    storage.write_json(folder / "timing.json", snapshot.timing)
    manifest.seal(folder, KIND, known=files)


def _write_shares(folder: Path, snapshot: Snapshot) -> dict[str, Any]:
    """Write this process' pieces. Returns size and sha256 of its files by name, as a manifest has them."""
    written = [
        path for group, share in (snapshot.shares or {}).items() for path in write_share(folder / group, share, snapshot.groups[group])
    ]
    return {path.relative_to(folder).as_posix(): manifest.entry(path) for path in written}


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
    """A checkpoint after checking every file against the manifest.

    Raises DamagedFile naming the first bad one, ModelError for a format that is newer than this code.
    """
    manifest.recover(folder)
    try:
        found = storage.read_json(folder / manifest.MANIFEST)
        if found["kind"] != KIND:
            raise DamagedFile(folder / manifest.MANIFEST, "is not that of a checkpoint")
        _refuse_newer(folder)
        names = set(found["files"])
        if names != FILES and not (names >= SMALL and all(_SHARD.fullmatch(name) for name in names - SMALL)):  # before one is opened
            raise DamagedFile(folder / manifest.MANIFEST, "is not that of a checkpoint")
        manifest.verify(folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(folder / manifest.MANIFEST, f"is not a manifest ({error!r})") from error
    state = storage.read_json(folder / "state.json")
    if names != (SMALL | set(state["shards"]) if "shards" in state else FILES):
        raise DamagedFile(folder / manifest.MANIFEST, "lists other shards than state.json")
    for path in (path for group in GROUPS for path in (folder / group).glob("*")):  # torch's reader takes whatever lies there
        if path.relative_to(folder).as_posix() not in names:
            raise DamagedFile(path, "is not in the manifest")
    return Checkpoint(folder, state, storage.read_json(folder / "timing.json"))


def _refuse_newer(folder: Path) -> None:
    """Raise ModelError when state.json, which every format has under its checksum, tells of a newer format."""
    manifest.verify_listed(folder / "state.json")
    state = storage.read_json(folder / "state.json")
    if (found := state.get("format", 1)) > FORMAT:
        fix = "Continue with the version that made it, or start anew in another folder."
        raise ModelError(f"checkpoint {folder} is of a newer format", found=found, expected=f"at most {FORMAT}", fix=fix)


def restore(checkpoint: Checkpoint, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Put a checkpoint's tensors into the model, the optimizers and the random generators, in place; all processes call this.

    Raises ModelError when its names, shapes or frozen parameters are not the model's; nothing is changed then. Whole tensors are sent by
    the main process one at a time; of shards every process reads what it has room for.
    """
    folder, sharded = checkpoint.folder, "shards" in checkpoint.state
    stored = model_tensors(model)
    source = Shards(folder / "model") if sharded else None
    found = {} if sharded else _load(folder / "model.safetensors")
    shapes = source.shapes if source else distributed.gather({name: tuple(tensor.shape) for name, tensor in found.items()})[0]
    check_fit(shapes, stored, folder)
    before, now = checkpoint.state.get("frozen"), frozen_fingerprint(model)
    if before != now:
        raise ModelError(
            f"checkpoint {folder} was made with other frozen weights", found=f"{now}", expected=f"{before}",
            fix="Give the base model that it was made with, or start anew in another folder.",
        )  # fmt: skip
    with torch.no_grad():
        if source:
            source.read_into(stored)
        for name, tensor in distributed.from_main(found) if not source else ():
            if name in stored:  # another process has the other layers
                local(stored[name]).copy_(local(part_like(tensor, stored[name])))
    parameters = dict(model.named_parameters())
    states = _sharded_states(folder, parameters) if sharded else _whole_states(folder, parameters)
    names = {id(parameter): name for name, parameter in parameters.items()}
    for optimizer in optimizers:
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            prefix = f"{names[id(parameter)]}:"
            own = {key.removeprefix(prefix): tensor for key, tensor in states.items() if key.startswith(prefix)}
            optimizer.state[parameter] = {
                key.removesuffix(NUMBER): tensor.item() if key.endswith(NUMBER) else tensor for key, tensor in own.items()
            }
    restore_own(dict(distributed.from_main(_load(folder / "random.safetensors"))))


def _whole_states(folder: Path, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizers' tensors of this process' parameters, sent by the main process."""
    return {
        key: tensor if key.endswith(NUMBER) else part_like(tensor, parameters[name])
        for key, tensor in distributed.from_main(_load(folder / "optimizer.safetensors"))
        if (name := key.partition(":")[0]) in parameters
    }


def _sharded_states(folder: Path, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizers' tensors of this process' parameters, read from the shards."""
    source = Shards(folder / "optimizer")
    states = {
        key: source.empty(key, None if key.endswith(NUMBER) else parameters[name])
        for key in source.shapes
        if (name := key.partition(":")[0]) in parameters
    }
    source.read_into(states)
    return states


class _Whole:
    """A group of tensors in one file."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)

    def whole(self, name: str) -> Tensor:
        """One tensor."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


@contextlib.contextmanager
def open_group(folder: Path, group: str) -> Iterator[Shards | _Whole]:
    """The `shapes` of a verified checkpoint's group by name, and `whole`, which reads one tensor."""
    if not (path := folder / f"{group}.safetensors").is_file():
        yield Shards(folder / group)
        return
    with safe_open(path, "pt") as file:
        yield _Whole(file)


def retain(root: Path, keep_last: int, spared: Collection[int] = (), written: Path | None = None) -> None:
    """Delete checkpoints older than the newest `keep_last` valid ones, but none of the `spared` steps.

    Damaged ones do not count and never push out a valid one. The one that was just `written` is not read once more.
    """
    valid = 0
    for folder in _folders(root):
        if valid >= keep_last:
            if int(folder.name[5:]) not in spared:
                _delete(folder)
            continue
        with contextlib.suppress(DamagedFile):
            if folder != written:
                open_checkpoint(folder)
            valid += 1


def clean(root: Path) -> None:
    """Finish a replacement that was cut, and remove what killed processes left half written or half deleted."""
    manifest.clean_up(root)
    for leftover in root.glob(f"{RETIRED}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    alone: dict[str, Tensor] = {}
    held: set[int] = set()
    for name, tensor in tensors.items():  # what several names share is written for each
        alone[name] = (
            tensor.clone(memory_format=torch.contiguous_format) if tensor.untyped_storage().data_ptr() in held else tensor.contiguous()
        )
        held.add(tensor.untyped_storage().data_ptr())
    try:
        with storage.usual_mode(path):
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


def check_fit(found: Mapping[str, Sequence[int]], stored: Mapping[str, Tensor], folder: Path) -> None:
    """Compare the shapes of a checkpoint with those of the model, of which every process may have other layers. Raises ModelError."""
    expected: dict[str, list[int]] = {}
    for part in distributed.gather({name: list(tensor.shape) for name, tensor in stored.items()}):
        expected |= part
    for name in sorted(found.keys() | expected.keys()):
        shapes = [tuple(shapes[name]) if name in shapes else None for shapes in (found, expected)]
        if shapes[0] != shapes[1]:
            raise ModelError(
                f"checkpoint {folder} is of another model: {name}", found=shapes[0] or "nothing", expected=shapes[1] or "nothing",
                fix="Start anew in another folder, or build the same model.",
            )  # fmt: skip
