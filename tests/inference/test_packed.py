"""Packed weights give the products of the plain ones, only where they pay, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from luyen.adapters.adapt import adapt
from luyen.adapters.config import AdapterConfig
from luyen.inference import packed as module
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate
from luyen.inference.packed import packed
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer

ASKED = [[5, 6, 7], [9], [5, 6, 7], [11, 12], [5, 6, 7]]
GREEDY = SamplingConfig(max_new_tokens=10)

pytestmark = pytest.mark.skipif(not module.available(), reason="this torch packs no weights")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Transformer:
    """A toy whose every map is large enough."""
    monkeypatch.setattr(module, "SMALLEST", 1)
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, context_length=40, tied=False,
        init_std=0.3,
    )  # fmt: skip
    return Transformer(config)


def linears(model: Transformer) -> list[nn.Linear]:
    return [each for name, each in model.named_modules() if type(each) is nn.Linear and name != "lm_head"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 33, 300])
def test_products_are_those_of_the_plain_weights(model: Transformer, rows: int, dtype: torch.dtype) -> None:
    model = model.to(dtype)
    states = torch.randn(rows, 1, 32, dtype=dtype)
    with torch.no_grad():
        plain = [functional.linear(states, each.weight) for each in linears(model) if each.in_features == 32], model.logits(states)
        with packed(model, 8, 20):
            assert all("forward" in each.__dict__ for each in linears(model))
            found = [each(states) for each in linears(model) if each.in_features == 32], model.logits(states)
    torch.testing.assert_close(found, plain, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=1e-4 if dtype == torch.float32 else 0.02)


def test_a_bias_is_added(model: Transformer) -> None:
    layer = model.model.layers[0]
    layer.self_attn.q_proj.bias = nn.Parameter(torch.randn(32))
    states = torch.randn(4, 1, 32)
    plain = layer.self_attn.q_proj(states)
    with packed(model, 4, 20):
        torch.testing.assert_close(layer.self_attn.q_proj(states), plain)


def test_greedy_answers_are_the_same_and_follow_the_weights(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    applied = module._applied
    monkeypatch.setattr(module, "_applied", lambda *each: made.append(1) or applied(*each))
    answers = []
    for steps in (8, 1000):
        monkeypatch.setattr(module, "FEWEST_STEPS", steps)
        answers.append(generate(model, ASKED, GREEDY))
    assert answers[0] == answers[1] and len(made) == 15, "seven maps in each of two layers and the head, once"
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    monkeypatch.setattr(module, "FEWEST_STEPS", 8)
    assert generate(model, ASKED, GREEDY) != answers[0]


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_low_rank_change_is_packed_with_its_weight(model: Transformer, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without = generate(model, ASKED, GREEDY)
    adapt(model, AdapterConfig(method=method, rank=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3)
    model.eval()
    made: list[int] = []
    applied = module._applied
    monkeypatch.setattr(module, "_applied", lambda *each: made.append(1) or applied(*each))
    answers = generate(model, ASKED, GREEDY)
    assert len(made) == 15 and answers != without
    monkeypatch.setattr(module, "FEWEST_STEPS", 1000)
    assert generate(model, ASKED, GREEDY) == answers and len(made) == 15


def test_the_model_is_left_as_it_was_after_an_error(model: Transformer) -> None:
    with pytest.raises(RuntimeError, match="within"), packed(model, 4, 20):
        raise RuntimeError("within")
    assert not any("forward" in each.__dict__ for each in linears(model)) and "logits" not in model.__dict__


def test_nothing_is_packed_where_it_would_not_pay(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def untouched(rows: int, steps: int) -> bool:
        with packed(model, rows, steps):
            return not any("forward" in each.__dict__ for each in linears(model)) and "logits" not in model.__dict__

    assert not untouched(2, 8)
    assert untouched(1, 100) and untouched(2, 7) and untouched(1000, 100)
    with torch.autocast("cpu", torch.bfloat16):
        assert untouched(2, 8)
    monkeypatch.setattr(module, "MEMORY_SHARE", 0.0)
    assert untouched(2, 8)


def test_a_head_that_others_compute_stays_theirs(model: Transformer) -> None:
    asked: list[int] = []

    def theirs(hidden: torch.Tensor) -> torch.Tensor:
        asked.append(len(hidden))
        return Transformer.logits(model, hidden)

    model.logits = theirs  # type: ignore[method-assign]
    generate(model, ASKED, GREEDY)
    assert asked and model.__dict__["logits"] is theirs
