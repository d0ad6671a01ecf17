"""Models and adapters opened together: each computes what it does alone, and what they share is there once and unchanged."""

from pathlib import Path
from typing import Any

import adapter_toys as toys
import pytest
import torch

from luyen.adapters import files
from luyen.adapters.adapt import adapt
from luyen.adapters.new_tokens import train_rows
from luyen.adapters.quantized import quantize, quantized_maps
from luyen.adapters.shared import open_shared
from luyen.core import manifest
from luyen.core.errors import ModelError
from luyen.models import hf

TOGETHER: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "pissa": {"rank": 4, "lora": {"init": "pissa"}},
    "dora": {"method": "dora", "rank": 4},
    "adalora": {"method": "adalora", "rank": 4},
    "ia3": {"method": "ia3"},
    "bitfit": {"method": "bitfit"},
    "bottleneck": {"method": "bottleneck"},
    "compacter": {"method": "compacter"},
    "prompt": {"method": "prompt"},
    "p-tuning": {"method": "p-tuning"},
    "prefix": {"method": "prefix"},
}
ALONE: dict[str, dict[str, Any]] = {
    "norms": {"method": "selective", "also": ["norms"]},
    "beside": {"rank": 4, "also": ["head"]},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    with manifest.new_folder(tmp_path / "base") as folder:
        hf.save(toys.model(), folder)
        manifest.seal(folder, "model")
    return tmp_path / "base"


def saved(base: Path, name: str, values: dict[str, Any], rows: range = range(0), bits: Any = None) -> Path:
    made, config = hf.load(base), toys.config(**values)
    if bits:
        quantize(made, bits)
    torch.manual_seed(1)
    adapt(made, config)
    train_rows(made, rows)
    toys.shake(made)
    return files.save(made, config, base.parent / name, base=str(base), digest=files.weights_digest(base))


@torch.no_grad()
def test_each_computes_what_it_does_alone_on_one_base(base: Path) -> None:
    folders = {name: saved(base, name, values) for name, values in {**TOGETHER, **ALONE}.items()}
    folders["rows"] = saved(base, "rows", {"rank": 4}, range(90, 97))  # which the base has, so its own tables would hold them
    opened = open_shared({"before": base, **folders, "after": base})
    plain = hf.load(base)
    for name, folder in folders.items():
        alone = toys.logits(files.open_model(folder))
        assert torch.equal(toys.logits(opened[name]), alone), name
        assert not torch.equal(alone, toys.logits(plain)), f"{name} changes something"
    for name in ("before", "after"):
        assert all(torch.equal(tensor, opened[name].state_dict()[key]) for key, tensor in plain.state_dict().items())
        assert torch.equal(toys.logits(opened[name]), toys.logits(plain)) and not opened[name].training
    norms = {
        name: [each for key, each in model.state_dict().items() if key.endswith("model.norm.weight")] for name, model in opened.items()
    }
    places = {name: found[0].data_ptr() for name, found in norms.items()}
    assert {places[name] for name in TOGETHER} == {places["before"]} == {places["after"]}
    assert len({places[name] for name in (*ALONE, "rows", "before")}) == 4


@torch.no_grad()
def test_codes_are_held_once_beside_the_numbers(base: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folders = {name: saved(base, name, {"rank": rank}, bits="nf4") for name, rank in (("one", 4), ("two", 2))}
    opened = open_shared({"base": base, **folders})
    for name, folder in folders.items():
        assert torch.equal(toys.logits(opened[name]), toys.logits(files.open_model(folder)))
    codes = [next(quantized_maps(opened[name]))[1].codes.data_ptr() for name in folders]
    assert codes[0] == codes[1] and not any(quantized_maps(opened["base"]))


def test_an_adapter_of_other_weights_is_refused_as_alone(base: Path) -> None:
    folder = saved(base, "lora", TOGETHER["lora"])
    hf.save(toys.model(7), base)
    manifest.seal(base, "model")
    with pytest.raises(ModelError, match="other weights"):
        open_shared({"base": base, "lora": folder})
