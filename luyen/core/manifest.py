"""Folders on disk that are whole or not there, and the manifest (`luyen.json`) beside every artefact.

A folder is written under a temporary name, every file fsynced, a manifest with the sha256 of each file added,
and only then renamed. Reading verifies the manifest, so damage is named instead of loaded.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from luyen.core.errors import DamagedFile, StorageError

MANIFEST = "luyen.json"
TEMPORARY = ".tmp-"


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)


def fingerprint(value: object) -> str:
    """sha256 (hex) of a JSON-like value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a refused write below `path` into one line that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            free = _free_bytes(path)
            raise StorageError(
                f"cannot write {path}: {error.strerror}; {free / 1e6:.0f} MB are free there. "
                "What was written before is intact; make room or choose another folder, then run the same command again"
            ) from error
        raise


def _free_bytes(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def fsync(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a small file so that a reader sees either the old or the new content, also after a crash."""
    payload = data.encode() if isinstance(data, str) else data
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write readable JSON atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that Luyện wrote; DamagedFile when it does not parse."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DamagedFile(path, "is missing") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, f"is not JSON ({error})") from error


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block ends well, and disappears when it does not.

    An existing `final` is replaced. Leftovers of earlier crashed attempts at the same folder are removed first.
    """
    final = Path(final)
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        for stale in final.parent.glob(f"{TEMPORARY}*-{final.name}"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary = final.with_name(f"{TEMPORARY}{os.getpid()}-{final.name}")
        temporary.mkdir()
        try:
            yield temporary
            sync_folder(temporary)
            if final.exists():
                retired = final.with_name(f"{TEMPORARY}{os.getpid()}-old-{final.name}")
                os.rename(final, retired)
                os.rename(temporary, final)
                shutil.rmtree(retired)
            else:
                os.rename(temporary, final)
            fsync(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """fsync every file and folder below `folder`."""
    for path in sorted(folder.rglob("*")):
        fsync(path)
    fsync(folder)


def seal(folder: Path, kind: str, *, skip: Collection[str] = (), **facts: object) -> dict[str, Any]:
    """Write `luyen.json` into `folder`: its kind, the facts given, and size and sha256 of every file in it.

    Facts are JSON values; the usual ones are inputs, config, versions, seed, metrics, tokens, seconds, joules.
    Files and folders directly in `folder` that are named in `skip` are not part of the artefact.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST and not path.name.startswith(TEMPORARY)
        if path.relative_to(folder).parts[0] not in skip
    }
    manifest: dict[str, Any] = {"kind": kind, **facts, "files": files}
    write_json(folder / MANIFEST, manifest)
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, after checking every file that it lists. Raises DamagedFile naming the first bad one."""
    manifest: dict[str, Any] = read_json(Path(folder) / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise DamagedFile(Path(folder) / MANIFEST, "has no list of files")
    for name, entry in files.items():
        path = Path(folder) / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DamagedFile(Path(folder) / MANIFEST, f"names {name}, which is outside its folder")
        if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int) or not isinstance(entry.get("sha256"), str):
            raise DamagedFile(Path(folder) / MANIFEST, f"says nothing usable of {name}")
        if not path.is_file():
            raise DamagedFile(path, "is missing")
        if path.stat().st_size != entry["bytes"]:
            raise DamagedFile(path, f"has {path.stat().st_size} bytes, its manifest says {entry['bytes']}")
        if sha256_file(path) != entry["sha256"]:
            raise DamagedFile(path, "does not have the sha256 of its manifest")
    return manifest


def content_fingerprint(manifest: Mapping[str, Any]) -> str:
    """One hash for what a sealed folder holds: file names and their sha256, nothing of when or where."""
    return fingerprint({name: entry["sha256"] for name, entry in manifest["files"].items()})
