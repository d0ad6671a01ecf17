"""Folders on disk that are whole or not there, and the manifest (`luyen.json`) beside every artefact.

A folder is written under a temporary name, every file fsynced, a manifest with the sha256 of each file added,
and only then renamed. Reading verifies the manifest, so damage is named instead of loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luyen.core import lock, progress
from luyen.core.errors import DamagedFile, UserError
from luyen.core.storage import LEFT_FILE, TEMPORARY, fsync, read_object, storage_errors, write_json

MANIFEST = "luyen.json"
# Fixed fields first, so that one artefact's name is never a part of another's leftovers.
_LEFTOVER = re.compile(re.escape(TEMPORARY) + r"(?P<kind>new|old)-(?P<tag>\d+-\d+)-(?P<name>.+)", re.DOTALL)
LONGEST_NAME = 1024


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)


def fingerprint(value: object) -> str:
    """sha256 (hex) of a JSON-like value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes. Raises UserError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


@contextlib.contextmanager
def new_folder(final: Path, *, named_by_user: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block ends well, and disappears when it does not.

    An existing `final` is moved away, replaced and then deleted; a kill between these steps loses neither (see `recover`). What
    killed attempts at the same folder left is removed first. Raises UserError when `final` is a file, and for one that is
    `named_by_user` also when `check_replaceable` does, before the block and after it.
    """
    final = Path(final)
    if named_by_user:
        recover(final)
        check_replaceable(final)
    if final.exists() and not final.is_dir():
        raise UserError(f"{final} is a file", expected="a folder or nothing there", fix="Choose another name.")
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with lock.exclusive(final.parent):
            _clean(final.parent, final.name)
            temporary, descriptor = _temporary(final)
        try:
            yield temporary
            sync_folder(temporary)
            if named_by_user:
                check_replaceable(final)
            _replace(final, temporary)
        except BaseException:
            discard(temporary)
            raise
        finally:
            lock.release(descriptor)
            os.close(descriptor)


def check_replaceable(folder: Path) -> None:
    """UserError when something stands in `folder` that Luyện did not make there: then the folder is not ours to replace.

    Ours is a folder whose manifest lists every file in it. Files that were put beside them, also the checkpoints of a stage, are not.
    """
    folder = Path(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    fix = "Nothing was touched. Choose a name that is free, or delete the folder yourself."
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not empty and was not made by Luyện", expected="a folder that is new or empty", fix=fix)
    try:
        listed = read(folder)["files"].keys() | {MANIFEST}
    except DamagedFile as error:
        raise UserError(f"{folder} is not empty and its {MANIFEST} cannot be read", found=error, fix=fix) from error
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in listed and not path.is_dir() and not path.name.startswith(TEMPORARY):
            raise UserError(f"{folder} holds more than what Luyện made there", found=name, fix=fix)


def existing(name: str | Path) -> Path | None:
    """The file or folder of that name (~ is the home folder), a cut replacement of it finished first; None when there is none.

    Everything that a user names goes through here, so that a folder is found which a kill left under its temporary name.
    """
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # ~somebody whom this machine does not know
        path = path.expanduser()
    recover(path)
    return path if path.exists() else None


def recover(final: Path) -> None:
    """Finish a replacement of `final` that a kill cut while the old folder was moved away and the new one not yet in its place.

    The new folder takes the place when it is sealed and whole, otherwise the old one comes back. Everything that opens a folder by
    its name calls this first; it costs one look at the disk when the folder is there. Raises StorageError when it cannot rename.
    """
    final = Path(final)
    if not final.name or final.exists() or not any(left.kind == "old" for left in _leftovers(final.parent, final.name)):
        return
    with storage_errors(final), lock.exclusive(final.parent):
        _recover(final)


def clean_up(parent: Path) -> None:
    """Recover what can be recovered in `parent`, and remove what killed processes left there of new folders and of small files.

    What a living process writes stays.
    """
    parent = Path(parent)
    if parent.is_dir():
        with storage_errors(parent), lock.exclusive(parent):
            _clean(parent, None)
            for path in parent.glob(f"{LEFT_FILE}*"):
                if path.is_file() and not lock.owned(path):
                    path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Leftover:
    """A temporary folder: `new` while it is written, `old` when it was moved away for the new one with the same tag."""

    path: Path
    kind: str
    tag: str
    final: Path

    @property
    def partner(self) -> Path:
        """The folder of the other kind."""
        return self.final.with_name(f"{TEMPORARY}{'old' if self.kind == 'new' else 'new'}-{self.tag}-{self.final.name}")

    @property
    def owned(self) -> bool:
        """Whether the process that writes it lives."""
        return lock.owned(self.path)


def _leftovers(parent: Path, name: str | None) -> list[_Leftover]:
    """Temporary folders in `parent` of the artefact `name`, or of all."""
    try:
        found = [(path, match) for path in sorted(parent.iterdir()) if (match := _LEFTOVER.fullmatch(path.name))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    every = [_Leftover(path, match["kind"], match["tag"], path.with_name(match["name"])) for path, match in found]
    return [leftover for leftover in every if name in (None, leftover.final.name)]


def _temporary(final: Path) -> tuple[Path, int]:
    """A new folder beside `final` and the descriptor that keeps it locked as long as this process lives."""
    for number in itertools.count():
        path = final.with_name(f"{TEMPORARY}new-{os.getpid()}-{number}-{final.name}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    descriptor = os.open(path, os.O_RDONLY)
    lock.own(descriptor)
    return path, descriptor


def _replace(final: Path, temporary: Path) -> None:
    """Put `temporary` in the place of `final`."""
    retired = final.with_name(temporary.name.replace(f"{TEMPORARY}new-", f"{TEMPORARY}old-", 1))
    with lock.exclusive(final.parent):
        replaced = os.path.lexists(final)
        if replaced:
            os.rename(final, retired)
        try:
            os.rename(temporary, final)
        except BaseException:
            if replaced:
                os.rename(retired, final)
            raise
        fsync(final.parent)
    if replaced:
        discard(retired)


def _recover(final: Path) -> None:
    """`recover`, with the parent locked."""
    old = [leftover for leftover in _leftovers(final.parent, final.name) if leftover.kind == "old"]
    if final.exists() or not old:
        return
    retired = max(old, key=lambda leftover: (leftover.partner.is_dir(), leftover.path.lstat().st_ctime_ns))
    whole = _is_whole(retired.partner)
    os.rename(retired.partner if whole else retired.path, final)
    fsync(final.parent)
    discard(retired.path if whole else retired.partner)
    what = "the new one was whole and has taken its place" if whole else "the new one was not whole, the old one is back"
    progress.say(f"{final} was being replaced when the process was killed: {what}")


def _clean(parent: Path, name: str | None) -> None:
    """`clean_up` of one artefact or all, with the parent locked."""
    for leftover in _leftovers(parent, name):
        if leftover.kind == "old":
            _recover(leftover.final)
    for leftover in _leftovers(parent, name):
        if leftover.kind == "old" or not leftover.owned:
            discard(leftover.path)


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except DamagedFile:
        return False
    return True


def discard(folder: Path) -> None:
    """Delete a folder, if it is there; a kill in the middle leaves nothing under its name, and the rest to `clean_up`."""
    if not _LEFTOVER.fullmatch(folder.name) and folder.exists():
        doomed = folder.with_name(f"{TEMPORARY}new-{os.getpid()}-{time.monotonic_ns()}-{folder.name}")
        os.rename(folder, doomed)
        folder = doomed
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """fsync every file and folder below `folder`."""
    for path in sorted(folder.rglob("*")):
        fsync(path)
    fsync(folder)


def entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its size and sha256."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def seal(
    folder: Path, kind: str, *, skip: Collection[str] = (), known: Mapping[str, Mapping[str, Any]] | None = None, **facts: object
) -> dict[str, Any]:
    """Write `luyen.json` into `folder`: its kind, the facts given, and size and sha256 of every file in it.

    Facts are JSON values; the usual ones are inputs, config, versions, seed, metrics, tokens, seconds, joules.
    Files and folders directly in `folder` that are named in `skip` are not part of the artefact; what `entry` gave for files that other
    processes wrote is `known` and not computed again.
    """
    files = {
        (name := path.relative_to(folder).as_posix()): (known or {}).get(name) or entry(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST and not path.name.startswith(TEMPORARY)
        if path.relative_to(folder).parts[0] not in skip
    }
    manifest: dict[str, Any] = {"kind": kind, **facts, "files": files}
    write_json(folder / MANIFEST, manifest)
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, after checking every file that it lists. Raises DamagedFile naming the first bad one."""
    folder = Path(folder)
    recover(folder)
    manifest = read(folder)
    for name, entry in manifest["files"].items():
        _check(folder, name, entry)
    return manifest


def verify_listed(path: Path) -> None:
    """Check a file, or every file below a folder, against the nearest manifest: in it, beside it, or one folder further up.

    Nothing happens where there is no manifest, or where it does not list the path: data from elsewhere has none. Costs one sha256 of
    what is listed, about a second per GB. Raises DamagedFile naming the first file that differs or is missing.
    """
    path = Path(os.path.abspath(path))
    for folder in (path, path.parent, path.parent.parent):
        if (folder / MANIFEST).is_file():
            wanted = path.relative_to(folder).parts
            for name, entry in read(folder)["files"].items():
                if Path(name).parts[: len(wanted)] == wanted:
                    _check(folder, name, entry)
            return


def read(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, its own form checked and not yet the files: an object whose `files` all lie inside and have size and hash.

    Raises DamagedFile.
    """
    path = Path(folder) / MANIFEST
    manifest = read_object(path)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise DamagedFile(path, "has no list of files")
    for name, entry in files.items():
        if not name.isprintable() or len(name.encode()) > LONGEST_NAME:
            raise DamagedFile(path, f"names {name[:40]!r}, which can be no file")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DamagedFile(path, f"names {name}, which is outside its folder")
        if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int) or not isinstance(entry.get("sha256"), str):
            raise DamagedFile(path, f"says nothing usable of {name}")
    return manifest


def _check(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Raise DamagedFile when a file differs from its entry in the folder's manifest."""
    path = folder / name
    if not _is_file(path):
        raise DamagedFile(path, "is missing")
    if path.stat().st_size != entry["bytes"]:
        raise DamagedFile(path, f"has {path.stat().st_size} bytes, its manifest says {entry['bytes']}")
    if sha256_file(path) != entry["sha256"]:
        raise DamagedFile(path, "does not have the sha256 of its manifest")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a part of the name is too long
        return False


def content_fingerprint(manifest: Mapping[str, Any]) -> str:
    """One hash for what a sealed folder holds: file names and their sha256, nothing of when or where."""
    return fingerprint({name: entry["sha256"] for name, entry in manifest["files"].items()})
