"""A model with its adapter off is its base to the bit, and afterwards what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from luyen.adapters.adapt import adapt
from luyen.adapters.config import AdapterConfig
from luyen.adapters.off import without_adapter
from luyen.core.config import load
from luyen.core.errors import ModelError
from luyen.models.attention import Layout
from tests.training_toys import toy_model

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2}, "dora": {"rank": 2}, "bottleneck": {"bottleneck": {"size": 4}}, "ia3": {}, "bitfit": {},
    "prefix": {"prompt": {"tokens": 3}}, "prompt": {"prompt": {"tokens": 3}},
}  # fmt: skip
TOKENS = torch.arange(14)[None]
LAYOUT = Layout.packed([6, 8])


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_off_is_the_base_and_on_again_is_the_adapter(method: str) -> None:
    model = toy_model()
    plain: Tensor = model(TOKENS, LAYOUT)
    adapt(model, load(AdapterConfig, {"method": method, **METHODS[method]}))
    for parameter in (each for each in model.parameters() if each.requires_grad):
        parameter.add_(torch.randn_like(parameter))
    changed, names = model(TOKENS, LAYOUT), list(model.state_dict())
    assert not torch.equal(changed, plain)
    with without_adapter(model):
        assert torch.equal(model(TOKENS, LAYOUT), plain)
    assert torch.equal(model(TOKENS, LAYOUT), changed) and list(model.state_dict()) == names


def test_an_error_inside_puts_the_adapter_back() -> None:
    model = toy_model()
    adapt(model, load(AdapterConfig, {"method": "lora", "rank": 2}))
    names = list(model.state_dict())
    with pytest.raises(ZeroDivisionError), without_adapter(model):
        raise ZeroDivisionError
    assert list(model.state_dict()) == names


def test_where_the_base_itself_is_trained_there_is_no_base() -> None:
    model = toy_model()
    with pytest.raises(ModelError, match=r"is trained itself.*frozen copy"), without_adapter(model):
        pass
    adapt(model, load(AdapterConfig, {"method": "lora", "rank": 2, "also": ["norms"]}))
    with pytest.raises(ModelError, match="norm"), without_adapter(model):
        pass
