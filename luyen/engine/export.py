"""The model that a checkpoint holds, in whole in one process: from whole files or from the shards of any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luyen.core import config as configs
from luyen.core.errors import ModelError, UserError
from luyen.engine import checkpoint
from luyen.engine.average import AVERAGE
from luyen.engine.states import frozen_fingerprint, model_tensors
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer


def find(path: Path) -> checkpoint.Checkpoint:
    """A verified checkpoint: the folder itself, or the newest valid one in it or in its `checkpoints`, as of a stage.

    Raises UserError when there is none, DamagedFile when the one that was named is damaged.
    """
    if (path / "state.json").is_file():
        return checkpoint.open_checkpoint(path)
    for root in (path, path / "checkpoints"):
        if root.is_dir() and (found := checkpoint.newest_valid(root)) is not None:
            return found
    raise UserError(f"no checkpoint in {path}", expected="a folder step-..., checkpoints, or a stage's folder", fix="Check the path.")


def model_of(found: checkpoint.Checkpoint, base: Transformer | None = None, average: bool = False) -> Transformer:
    """The decoder of a checkpoint on the CPU; of its `average`, where optimizer.ema_decay followed one.

    `base` gives what the checkpoint does not hold: its frozen weights, and its size where it was made before checkpoints told that. Holds
    the model once, and reads one tensor at a time. Raises ModelError.
    """
    stored, frozen = found.state.get("model"), found.state.get("frozen")
    if base is None and (stored is None or frozen is not None):
        lacks = "its frozen weights" if frozen is not None else "the size of its model"
        raise ModelError(
            f"checkpoint {found.folder} does not hold {lacks}", fix="Give the model that its training began with: model=FOLDER."
        )
    model = base or Transformer(configs.load(TransformerConfig, stored, str(found.folder)))
    if base is not None and frozen is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in _names(found.folder))
        if frozen_fingerprint(model) != frozen:
            fix = "Give the model that its training began with."
            raise ModelError(f"checkpoint {found.folder} was made with other frozen weights", fix=fix)
    weights = model_tensors(model)
    with checkpoint.open_group(found.folder, "model") as group:
        checkpoint.check_fit(group.shapes, weights, found.folder)
        _fill(weights, {name: name for name in group.shapes}, group)
    if average:
        with checkpoint.open_group(found.folder, "optimizer") as group:
            followed = {key.rpartition(":")[0]: key for key in group.shapes if key.endswith(f":{AVERAGE}")}
            if not followed:
                raise ModelError(f"checkpoint {found.folder} holds no average", fix="Leave out weights=average, or train with ema_decay.")
            _fill(weights, followed, group)
    return model


def _names(folder: Path) -> set[str]:
    with checkpoint.open_group(folder, "model") as group:
        return set(group.shapes)


@torch.no_grad()
def _fill(weights: dict[str, Tensor], keys: dict[str, str], group: Any) -> None:
    for name, key in keys.items():
        weights[name].copy_(group.whole(key))
