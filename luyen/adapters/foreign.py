"""Adapters that others made: what they are for they say by a name alone, which can be compared with that of the model they are put on.

Ours hold the sha256 of their base's weights (see files), so no name matters there.
"""

from __future__ import annotations

import re
from pathlib import Path

from luyen.adapters import files
from luyen.core import manifest, storage

CACHED = re.compile(r"(?:^|/)models--(.+?)(?:/|$)")
"""A folder of the hub's cache, which holds a model's whole name."""


def other_name(adapter: str | Path, base: str | Path) -> str:
    """What to tell where an adapter names another base than the one that it is put on; "" where the names fit, and for ours.

    Names fit where their last parts do: the same model has another path on another machine.
    """
    folder = files.locate(adapter)
    if folder is None or (folder / manifest.MANIFEST).is_file():
        return ""
    told = storage.read_object(folder / files.CONFIG).get("base_model_name_or_path")
    if not isinstance(told, str) or not told or _own(told) == _own(str(base)):
        return ""
    return f"{adapter} names {told} as its base and is put on {base}: shapes alone tell that it fits, so check that they are the same model"


def _own(name: str) -> str:
    """The last part of a path or hub name, without a revision, in small letters."""
    cached = CACHED.search(name)
    return Path(cached[1].replace("--", "/") if cached else name).name.partition("@")[0].casefold()
