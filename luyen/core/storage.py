"""Files that are there whole or not at all: written beside their place, then renamed; and errors of the disk in words."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luyen.core import lock
from luyen.core.errors import DamagedFile, StorageError

TEMPORARY = ".tmp-"
"""Begins every name that is not yet, or no longer, an artefact's."""
LEFT_FILE = f"{TEMPORARY}file-"


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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the name `path` when the block ends well, and disappears when it does not.

    A reader sees either the old or the new content, also after a crash; `manifest.clean_up` removes what a kill left. Raises StorageError.
    """
    path = Path(path)
    temporary = temporary_file(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock.exclusive(path.parent):  # so that whoever cleans up sees it locked or not at all
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            lock.own(descriptor)
        try:
            yield temporary
            os.fsync(descriptor)
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            lock.release(descriptor)
            os.close(descriptor)


@contextlib.contextmanager
def usual_mode(path: Path) -> Iterator[None]:
    """Around a library's writing of `path`: the file ends with the mode that any file made there has. safetensors makes private ones.

    The umask is not asked for, since asking sets it for a moment, also for other threads; a file that is made tells it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    yield
    os.chmod(path, mode)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a small file by `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def temporary_file(path: Path) -> Path:
    """Where a file is written before it takes the name `path`; `clean_up` removes it when its writer was killed."""
    return path.with_name(f"{LEFT_FILE}{os.getpid()}-{path.name[-64:]}")


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


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object that Luyện wrote; DamagedFile when the file holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedFile(path, f"holds {type(value).__name__} instead of an object")
    return value
