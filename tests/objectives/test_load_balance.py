"""Balance of experts against transformers' function, and by hand."""

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from luyen.objectives.load_balance import load_balance


def scores(layers: int, tokens: int, experts: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(tokens, experts, generator=generator).requires_grad_() for _ in range(layers)]


@pytest.mark.parametrize(("layers", "tokens", "experts", "chosen"), [(1, 1, 2, 1), (3, 17, 8, 2), (2, 40, 6, 6)])
def test_value_and_gradient_equal_transformers(layers, tokens, experts, chosen) -> None:
    logits = scores(layers, tokens, experts)
    ours = load_balance(logits, [part.topk(chosen).indices for part in logits])
    theirs = load_balancing_loss_func(tuple(logits), experts, chosen)
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits), strict=True):
        torch.testing.assert_close(mine, expected)


def test_by_hand() -> None:
    even = torch.zeros(4, 4)
    assert load_balance([even], [torch.tensor([[0, 1], [2, 3], [1, 0], [3, 2]])]).item() == pytest.approx(2.0)
    one = torch.tensor([[100.0, 0.0, 0.0, 0.0]])
    assert load_balance([one], [torch.tensor([[0]])]).item() == pytest.approx(4.0)
    # f = (1, 1, 0), P = (1/2, 1/3, 1/6): 3 (1/2 + 1/3)
    assert load_balance([torch.tensor([[3.0, 2.0, 1.0]]).log()], [torch.tensor([[0, 1]])]).item() == pytest.approx(2.5)
