"""`start=`: what of an adapter must be as it was when it is gone on with, and what may change."""

from pathlib import Path
from typing import Any

import pytest
import torch

from luyen.adapters import files
from luyen.adapters.adapt import adapt
from luyen.adapters.linear import adapted
from luyen.core.config import load
from luyen.core.errors import ConfigError
from luyen.models import hf
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer
from luyen.recipe.configs import TuningConfig
from luyen.recipe.tuning import _go_on


@pytest.fixture
def base(tmp_path: Path) -> Path:
    size = TransformerConfig(vocab_size=97, hidden_size=32, intermediate_size=56, num_layers=2, num_heads=4, context_length=32)
    (tmp_path / "base").mkdir()
    hf.save(Transformer(size), tmp_path / "base")
    return tmp_path / "base"


def settings(start: str | None = None, quantize: str = "none", **values: Any) -> TuningConfig:
    return load(TuningConfig, {"adapter": {"method": "lora", "rank": 4, **values}, "quantize": quantize, "start": start})


def opened(base: Path, kind: str) -> Any:
    return files.open_base(base, None if kind == "none" else {"kind": kind, "double": True}, "cpu", torch.float32)


def write(base: Path, kind: str, **values: Any) -> str:
    model, config = opened(base, kind), settings(**values).adapter
    adapt(model, config)
    files.save(model, config, base.parent / "first", base=str(base), digest=files.weights_digest(base))
    return str(base.parent / "first")


@pytest.mark.parametrize(("before", "now"), [("nf4", "none"), ("none", "nf4"), ("nf4", "int8")])
def test_an_adapter_goes_on_over_the_bits_that_it_was_trained_on(before: str, now: str, base: Path) -> None:
    pytest.importorskip("bitsandbytes")
    start, digest = write(base, before), files.weights_digest(base)
    with pytest.raises(ConfigError, match=f"quantize is not that of the base that start=.*found {now}; expected {before}"):
        _go_on(opened(base, now), settings(start, now), start, digest)
    _go_on(opened(base, before), settings(start, before), start, digest)


def test_what_training_alone_reads_may_change_and_does(base: Path) -> None:
    start = write(base, "none", dropout=0.1)
    model = opened(base, "none")
    _go_on(model, settings(start, dropout=0.3, lora={"rate_ratio": 16.0}), start, files.weights_digest(base))
    assert {module.dropout for _, module in adapted(model)} == {0.3}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rank": 8}, "adapter.rank is not that of start=.*found 8; expected 4"),
        ({"lora": {"scaling": "root"}}, "adapter.lora.scaling is not that of start=.*found root; expected rank"),
        ({"also": ["norms"]}, "adapter.also is not that"),
        ({"targets": ["q_proj"]}, "adapter.targets is not that"),
    ],
)
def test_another_form_is_refused(values: dict[str, Any], told: str, base: Path) -> None:
    start = write(base, "none")
    with pytest.raises(ConfigError, match=told):
        _go_on(opened(base, "none"), settings(start, **values), start, files.weights_digest(base))
