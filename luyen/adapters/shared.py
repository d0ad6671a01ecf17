"""Models and adapters opened together for reading: those that share a base hold its weights once.

Each is a model of its own, as `open_model` gives it, of its own modules around the same tensors. Unlike `many`, which mixes adapters in
one batch, this takes every method; an adapter that changes tensors of the base has a base of its own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from luyen.adapters import files
from luyen.adapters.peft_names import ROWS
from luyen.core import manifest
from luyen.models import hf
from luyen.models.transformer import Transformer


def open_shared(
    names: Mapping[str, str | Path], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Transformer]:
    """What `open_model` gives for each folder or hub name. Their weights must not be changed afterwards: others may have them too."""
    bases: dict[str, Transformer] = {}
    opened: dict[str, Transformer] = {}
    for name, place in names.items():
        folder = files.locate(place)
        if folder is not None and _changes_base(folder):
            opened[name] = files.open_model(place, device, dtype)
            continue
        base = hf.locate(place) if folder is None else files.base_of(folder)
        bits = None if folder is None else files.quantization(folder)
        key = f"{base.resolve()} {json.dumps(bits, sort_keys=True)}"
        if key not in bases:
            bases[key] = files.open_base(base, bits, device, dtype)
        model = _twin(bases[key])
        if folder is not None:
            files.load_into(model, folder, files.weights_digest(base) if (folder / manifest.MANIFEST).is_file() else None)
        opened[name] = model.eval()  # an adapter may drop inputs while training
    return opened


def _changes_base(folder: Path) -> bool:
    """Whether an adapter trains weights of the base, or brings rows of new tokens, which its tables come to hold."""
    return not files.read_config(folder).freezes_base or any(name.endswith(ROWS) for name in files.saved_state(folder)[0])


def _twin(model: Transformer) -> Transformer:
    """The same modules once more around the same tensors."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
