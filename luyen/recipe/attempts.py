"""A stage's folder and what stands in it: a finished result or an unfinished attempt; and what stood there earlier.

A finished folder has a manifest with the fingerprint of what it was made of; an unfinished one has `stage.json` with that fingerprint.
What no longer fits is neither written over nor deleted: it is moved to RUN/.before/NAME-FINGERPRINT, and comes back from there when it is
asked for again, or when what was to replace it turns out to be wrong input. Only the user deletes there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luyen.core import manifest, progress, storage
from luyen.core.errors import DamagedFile, UserError

IN_PROGRESS = "stage.json"
UNSEALED = (IN_PROGRESS, "timings.jsonl", "checkpoints", "rollouts", "tensorboard", "profile", "trackers")
"""Not part of a stage's result: they hold times or only serve to continue."""
BEFORE = ".before"
SHORT = 12
"""Hexadecimal digits of a fingerprint in a folder's name."""


def finished(folder: Path, wanted: str) -> dict[str, Any] | None:
    """The manifest of the finished, undamaged result with this fingerprint, brought back if it was put aside; else None.

    Damage is said aloud.
    """
    found = _whole(folder, wanted)
    for place in _aside(folder, wanted) if found is None else ():
        found = _whole(place, wanted)
        if found is not None:
            _bring_back(folder, place)
            progress.say(f"{folder.name}: this is an earlier result, which was kept in {place}; it is back in its place")
            break
    return found


def holding(folder: Path, wanted: str) -> Path | None:
    """The folder that `finished` will take, told by manifests alone: whether its files are whole is seen when it comes to them."""
    places = (folder, *_aside(folder, wanted))
    return next((place for place in places if _done(place) and _fingerprint_of(place) == wanted), None)


def step_reached(folder: Path, wanted: str) -> int:
    """The step of the newest checkpoint of the unfinished attempt that `prepare` will go on with; 0 where it begins anew."""
    for place in (folder, *_aside(folder, wanted)):
        if _begun(place) and _fingerprint_of(place) == wanted:
            names = [path.name.removeprefix("step-") for path in (place / "checkpoints").glob("step-*")]
            return max((int(name) for name in names if name.isdecimal()), default=0)
    return 0


def prepare(folder: Path, wanted: str) -> bool:
    """Make `folder` ready for work; True when an unfinished attempt at the same thing is there, or was put aside, and goes on.

    Only folders that are empty or that a stage made are put aside; UserError for any other, nothing of it is touched.
    """
    with storage.storage_errors(folder):
        if _begun(folder) and _fingerprint_of(folder) == wanted:
            manifest.clean_up(folder)
            return True
        for place in _aside(folder, wanted):
            if _begun(place) and _fingerprint_of(place) == wanted:
                _bring_back(folder, place)
                progress.say(f"{folder.name}: the earlier attempt, which was kept in {place}, goes on")
                return True
        kept = _put_aside(folder, wanted)
        with manifest.new_folder(folder) as new:
            storage.write_json(new / IN_PROGRESS, {"fingerprint": wanted, "seconds": 0.0, "instead_of": kept and kept.name})
    return False


def seal(folder: Path, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write a stage's manifest over its results."""
    with storage.storage_errors(folder):
        sealed = manifest.seal(folder, kind, skip=UNSEALED, **facts)
        (folder / IN_PROGRESS).unlink(missing_ok=True)
    return sealed


def give_way(folder: Path) -> None:
    """After wrong input: an attempt that has made nothing gives its place back to what stood there before it."""
    if not _begun(folder) or _made_something(folder):
        return
    name = storage.read_object(folder / IN_PROGRESS).get("instead_of")
    place = folder.parent / BEFORE / str(name)
    if name and place.is_dir():
        with storage.storage_errors(folder):
            manifest.discard(folder)
            place.rename(folder)
        progress.say(f"{folder.name}: what was there before is back in its place")


def _whole(folder: Path, wanted: str) -> dict[str, Any] | None:
    if not _done(folder):
        return None
    try:
        found = manifest.verify(folder)
    except DamagedFile as error:
        progress.say(f"{folder.name}: {error}; doing this stage again")
        return None
    return found if found.get("fingerprint") == wanted else None


def _done(folder: Path) -> bool:
    return (folder / manifest.MANIFEST).is_file()


def _begun(folder: Path) -> bool:
    return (folder / IN_PROGRESS).is_file() and not _done(folder)


def _made_something(folder: Path) -> bool:
    """Whether an unfinished attempt holds more than its mark: checkpoints, parts, pages, rejected rows."""
    return any(path.is_file() and path.name != IN_PROGRESS and path.stat().st_size for path in folder.rglob("*"))


def _fingerprint_of(folder: Path) -> str | None:
    """What a result or attempt was made of; None where nothing or nothing readable is there."""
    with contextlib.suppress(DamagedFile):
        if _done(folder):
            return str(manifest.read(folder).get("fingerprint"))
        if _begun(folder):
            return str(storage.read_object(folder / IN_PROGRESS).get("fingerprint"))
    return None


def _aside(folder: Path, wanted: str) -> list[Path]:
    """Folders in which states of this stage with this fingerprint may have been put aside; several only after damage."""
    return sorted((folder.parent / BEFORE).glob(f"{folder.name}-{wanted[:SHORT]}*"))


def _put_aside(folder: Path, wanted: str) -> Path | None:
    """Move what stands in `folder` away; where it went, or None when there was nothing worth keeping."""
    if not folder.exists() and not folder.is_symlink():
        return None
    manifest.clean_up(folder)
    empty = folder.is_dir() and not any(folder.iterdir())
    if not folder.is_dir() or not (empty or _done(folder) or _begun(folder)):
        raise UserError(f"{folder} is not empty and was not made by Luyện", fix="Choose another run folder with --out.")
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and what it leads to no longer fits", fix="Remove the link, or choose another --out.")
    if empty or (_begun(folder) and not _made_something(folder)):
        return None
    place = next(place for place in _free_places(folder) if not place.exists())
    place.parent.mkdir(exist_ok=True)
    folder.rename(place)
    what = "earlier result" if _done(place) else "unfinished attempt"
    why = "it is damaged" if _fingerprint_of(place) == wanted else "its config, inputs or code changed"
    progress.say(f"{folder.name}: {why}, so it starts anew; the {what} is kept in {place} ({_size(place)})")
    return place


def _free_places(folder: Path) -> Iterator[Path]:
    name = f"{folder.name}-{(_fingerprint_of(folder) or 'damaged')[:SHORT]}"
    yield folder.parent / BEFORE / name
    yield from (folder.parent / BEFORE / f"{name}-{number}" for number in itertools.count(2))


def _size(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return f"{size / 1e3:.1f} GB" if size >= 1000 else f"{size:.1f} MB"


def _bring_back(folder: Path, place: Path) -> None:
    """Move an earlier state to its place, and what stands there aside. A kill in between leaves both among the earlier ones."""
    with storage.storage_errors(folder):
        _put_aside(folder, "")
        manifest.discard(folder)
        place.rename(folder)
