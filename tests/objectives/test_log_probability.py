"""Log-probabilities of targets: torch's own, with both gradients, kept or made again, in chunks or not."""

from __future__ import annotations

import pytest
import torch

from luyen.objectives import log_probability
from luyen.objectives.log_probability import target_log_probabilities


def inputs(dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden_KD = torch.randn(150, 12, dtype=dtype, generator=generator).requires_grad_()
    weight_VD = torch.randn(40, 12, dtype=dtype, generator=generator).requires_grad_()
    return hidden_KD, weight_VD, torch.randint(0, 40, (150,), generator=generator)


@pytest.mark.parametrize("kept", [0, 1 << 25], ids=["made again", "kept"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_torch(monkeypatch, kept, temperature) -> None:
    monkeypatch.setattr(log_probability, "KEPT_LOGITS", kept)
    monkeypatch.setattr(log_probability, "CHUNK_LOGITS", 40 * 64)
    hidden_KD, weight_VD, targets_K = inputs()
    slope_K = torch.randn(150, dtype=torch.float64)
    entropy_K = torch.empty(150, dtype=torch.float64)
    ours_K = target_log_probabilities(hidden_KD, weight_VD, targets_K, temperature, entropy_K)
    whole_KV = ((hidden_KD @ weight_VD.T) / temperature).log_softmax(-1)
    theirs_K = whole_KV.gather(1, targets_K[:, None])[:, 0]
    torch.testing.assert_close(ours_K, theirs_K)
    torch.testing.assert_close(entropy_K, -(whole_KV.exp() * whole_KV).sum(-1))
    ours = torch.autograd.grad(ours_K, (hidden_KD, weight_VD), slope_K)
    theirs = torch.autograd.grad(theirs_K, (hidden_KD, weight_VD), slope_K)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other)


def test_under_autocast_logits_are_half_and_sums_are_not() -> None:
    hidden_KD, weight_VD, targets_K = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found_K = target_log_probabilities(hidden_KD, weight_VD, targets_K)
    found_K.sum().backward()
    assert found_K.dtype == torch.float32 and weight_VD.grad.dtype == torch.float32
    exact_K = target_log_probabilities(hidden_KD, weight_VD, targets_K)
    torch.testing.assert_close(found_K, exact_K, rtol=0.05, atol=0.1)
    assert not torch.equal(found_K, exact_K)


def test_an_impossible_token_has_no_entropy_of_its_own() -> None:
    hidden_KD, weight_VD = torch.tensor([[1e4]]), torch.tensor([[1.0], [-1.0]])
    entropy_K = torch.empty(1)
    found_K = target_log_probabilities(hidden_KD, weight_VD, torch.tensor([0]), 1.0, entropy_K)
    assert found_K.item() == 0 and entropy_K.item() == 0
