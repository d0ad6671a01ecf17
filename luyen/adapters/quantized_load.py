"""A decoder read from its folder straight into few bits: the whole model in numbers is never in memory, only one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from torch import Tensor, nn

from luyen.adapters.linear import replace_each
from luyen.adapters.quantized import Kind, compressible, quantized_map
from luyen.core.errors import ModelError
from luyen.models import hf
from luyen.models.transformer import Transformer

ROTARY, HEAD = "rotary_emb.inv_freq", "lm_head.weight"
"""What old files carry beside the weights: rotary tables, and a tied head written a second time."""


def load_quantized(
    name: str | Path,
    kind: Kind = "nf4",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    double_quantization: bool = True,
) -> Transformer:
    """A decoder from a folder or a hub name with its layers' maps in 4 or 8 bits; `dtype` is that of what stays in numbers.

    Read one tensor after another, so that the whole model in numbers is never held. On the meta device only names and shapes.
    Raises ModelError when it is no model or does not fit, DamagedFile when a sealed folder has changed.
    """
    model = hf.load(name, "meta")
    meta = torch.device(device).type == "meta"
    stored = None if meta else Stored(hf.locate(name), model)

    def read(wanted: str, own: Tensor) -> Tensor:
        return own if stored is None else stored.read(wanted).to(device)

    for target in compressible(model):
        plain = cast(nn.Linear, model.get_submodule(target))
        bias = None if plain.bias is None else nn.Parameter(read(f"{target}.bias", plain.bias).to(dtype, copy=True))
        coded = quantized_map(target, read(f"{target}.weight", plain.weight), bias, kind, double_quantization)
        replace_each(model, [target], lambda _, __, coded=coded: coded)  # type: ignore[misc]
    rest = {name: read(name, tensor).to(dtype, copy=True) for name, tensor in model.state_dict().items() if tensor.is_meta}
    model.load_state_dict(rest, strict=False, assign=True)
    return model


class Stored:
    """The tensors of a folder by our names, each read when it is asked for. The file is opened for that alone: what was read of a file
    stays in the process' memory for as long as it is open."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        """Raises ModelError where names or shapes are not those of the model."""
        self.folder = folder
        files = [hf.WEIGHTS]
        if not (folder / hf.WEIGHTS).is_file() and (folder / hf.INDEX).is_file():
            files = sorted(set(json.loads((folder / hf.INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        in_model = hf.family_of(folder).in_model
        self.places: dict[str, tuple[str, str]] = {}
        """Our name -> file, and name in it."""
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with self._open(file) as held:
                for name in held.keys():  # noqa: SIM118 (not a dict)
                    self.places[in_model(name)], shapes[in_model(name)] = (file, name), tuple(held.get_slice(name).get_shape())
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name, shape in expected.items():
            if shapes.get(name) != shape:
                raise ModelError(
                    f"{folder}: tensor {name} does not fit config.json", found=shapes.get(name, "no such tensor"), expected=shape
                )
        extra = [name for name in shapes if name not in expected and not name.endswith((ROTARY, HEAD))]
        if extra:
            fix = "config.json and the weights do not belong together."
            raise ModelError(f"{folder} has the unknown tensor {min(extra)} among {len(extra)}", fix=fix)
        if HEAD in shapes and HEAD not in expected and not torch.equal(self.read(HEAD), self.read("model.embed_tokens.weight")):
            raise ModelError(f"{folder}: tie_word_embeddings is true, but {HEAD} differs from the embedding")

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored, on the CPU; it may be the file itself, so nothing may be written into it."""
        file, stored = self.places[name]
        with self._open(file) as held:
            tensor: Tensor = held.get_tensor(stored)
            return tensor

    def _open(self, file: str) -> Any:
        try:
            return safetensors.safe_open(self.folder / file, framework="pt")
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelError(f"{self.folder / file} is not a whole safetensors file", found=error, fix="Copy it again.") from error
