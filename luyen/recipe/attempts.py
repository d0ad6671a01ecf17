"""A stage's folder and what stands in it: a finished result, an unfinished attempt, and beside it, as NAME.before, what was there earlier.

A finished folder has a manifest with the fingerprint of what it was made of; an unfinished one has `stage.json` with that fingerprint.
What no longer fits is never written over: it is moved to NAME.before, and comes back when it is asked for again, or when what was to
replace it turns out to be wrong input. One earlier state is kept; a finished one is not given up for an unfinished one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luyen.core import manifest, progress
from luyen.core.errors import DamagedFile, UserError

IN_PROGRESS = "stage.json"
UNSEALED = (IN_PROGRESS, "timings.jsonl", "checkpoints")
"""Not part of a stage's result: they hold times or only serve to continue."""
BEFORE = ".before"


def finished(folder: Path, wanted: str) -> dict[str, Any] | None:
    """The manifest of the finished, undamaged result with this fingerprint, also if it was put aside; else None. Damage is said aloud."""
    _settle(folder)
    found = _whole(folder, wanted)
    if found is None and _done(_aside(folder)) and _fingerprint_of(_aside(folder)) == wanted:
        found = _whole(_aside(folder), wanted)
        if found is not None:
            _swap(folder)
            progress.say(f"{folder.name}: the earlier result, which was kept in {_aside(folder)}, is this one; it is back in its place")
    return found


def holding(folder: Path, wanted: str) -> Path | None:
    """The folder that `finished` will take, told by manifests alone: whether its files are whole is seen when it comes to them."""
    return next((place for place in (folder, _aside(folder)) if _done(place) and _fingerprint_of(place) == wanted), None)


def step_reached(folder: Path, wanted: str) -> int:
    """The step of the newest checkpoint of the unfinished attempt that `prepare` will go on with; 0 where it begins anew."""
    for place in (folder, _aside(folder)):
        if _begun(place) and _fingerprint_of(place) == wanted:
            names = [path.name.removeprefix("step-") for path in (place / "checkpoints").glob("step-*")]
            return max((int(name) for name in names if name.isdecimal()), default=0)
    return 0


def _whole(folder: Path, wanted: str) -> dict[str, Any] | None:
    if not (folder / manifest.MANIFEST).is_file():
        return None
    try:
        found = manifest.verify(folder)
    except DamagedFile as error:
        progress.say(f"{folder.name}: {error}; doing this stage again")
        return None
    return found if found.get("fingerprint") == wanted else None


def prepare(folder: Path, wanted: str) -> bool:
    """Make `folder` ready for work; True when an unfinished attempt at the same thing is there, or was put aside, and goes on.

    Only folders that are empty or that a stage made are put aside; UserError for any other, nothing of it is touched.
    """
    with manifest.storage_errors(folder):
        _settle(folder)
        if _begun(folder) and _fingerprint_of(folder) == wanted:
            manifest.clean_up(folder)
            return True
        if _begun(_aside(folder)) and _fingerprint_of(_aside(folder)) == wanted:
            _swap(folder)
            progress.say(f"{folder.name}: the earlier attempt, which was kept in {_aside(folder)}, goes on")
            return True
        if folder.exists():
            _put_aside(folder)
        folder.mkdir(parents=True)
        manifest.write_json(folder / IN_PROGRESS, {"fingerprint": wanted, "seconds": 0.0})
    return False


def seal(folder: Path, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write a stage's manifest over its results. A finished result of before stays beside it, an unfinished attempt goes."""
    with manifest.storage_errors(folder):
        sealed = manifest.seal(folder, kind, skip=UNSEALED, **facts)
        (folder / IN_PROGRESS).unlink(missing_ok=True)
        if not _done(_aside(folder)):
            _remove(_aside(folder))
    return sealed


def give_way(folder: Path) -> None:
    """After wrong input: an attempt that has made nothing to go on from gives its place back to the finished result of before."""
    if _begun(folder) and not _worth_keeping(folder) and _done(_aside(folder)):
        with manifest.storage_errors(folder):
            _remove(folder)
            _aside(folder).rename(folder)
        progress.say(f"{folder.name}: the result of before is untouched")


def _aside(folder: Path) -> Path:
    return folder.with_name(folder.name + BEFORE)


def _done(folder: Path) -> bool:
    return (folder / manifest.MANIFEST).is_file()


def _begun(folder: Path) -> bool:
    return (folder / IN_PROGRESS).is_file() and not _done(folder)


def _worth_keeping(folder: Path) -> bool:
    """Whether an unfinished attempt holds more than its mark: checkpoints, parts, pages."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != IN_PROGRESS and not path.name.startswith("rejected"))
    return any(path.stat().st_size for path in files)


def _fingerprint_of(folder: Path) -> str | None:
    """What a result or attempt was made of; None where nothing or nothing readable is there."""
    with contextlib.suppress(DamagedFile):
        if _done(folder):
            return str(manifest.read(folder).get("fingerprint"))
        if _begun(folder):
            return str(manifest.read_object(folder / IN_PROGRESS).get("fingerprint"))
    return None


def _put_aside(folder: Path) -> None:
    done, begun, aside = _done(folder), _begun(folder), _aside(folder)
    if not folder.is_dir() or (any(folder.iterdir()) and not done and not begun):
        raise UserError(f"{folder} is not empty and was not made by Luyện", fix="Choose another run folder with --out.")
    if not done and not _worth_keeping(folder):
        _remove(folder)
    elif done or not _done(aside):
        _remove(aside)
        folder.rename(aside)
        what = "result" if done else "attempt"
        progress.say(f"{folder.name}: its config, inputs or code changed, so it starts anew; the earlier {what} is kept in {aside}")
    else:
        _remove(folder)
        progress.say(
            f"{folder.name}: its config, inputs or code changed, so it starts anew; "
            f"the unfinished attempt is given up, the finished result of before stays in {aside}"
        )


def _swap(folder: Path) -> None:
    """Exchange a stage's folder and what was put aside; `_settle` ends it after a kill."""
    with manifest.storage_errors(folder):
        if folder.exists():
            folder.rename(_spare(folder))
        _aside(folder).rename(folder)
        _settle(folder)


def _settle(folder: Path) -> None:
    spare, aside = _spare(folder), _aside(folder)
    if spare.exists():
        spare.rename(aside if folder.exists() else folder)


def _spare(folder: Path) -> Path:
    return folder.with_name(f"{manifest.TEMPORARY}swap-{folder.name}")


def _remove(folder: Path) -> None:
    """Delete a folder; a kill in the middle leaves nothing under its name."""
    if folder.exists():
        doomed = folder.with_name(f"{manifest.TEMPORARY}{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)
