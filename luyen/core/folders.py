"""Where a model lies: a folder of Hugging Face's form, of PEFT's, or the result of a stage, which holds one of them."""

from __future__ import annotations

from pathlib import Path

from luyen.core.manifest import existing

MODEL_FILE, ADAPTER_FILE = "config.json", "adapter_config.json"
PLACES = (("", MODEL_FILE), ("model", MODEL_FILE), ("", ADAPTER_FILE), ("adapter", ADAPTER_FILE), ("reward", MODEL_FILE))
"""Subfolder, and the file that makes it a model (a reward model too) or an adapter; the first that is there counts."""


def model_in(path: str | Path) -> Path | None:
    """The folder of the model or adapter that a path means: itself, or its `model` or `adapter`; None when there is none."""
    for place, file in PLACES:
        folder = existing(Path(path) / place)
        if folder is not None and (folder / file).is_file():
            return folder
    return None
