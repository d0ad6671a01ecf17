"""Attention in blocks against torch's own: values and gradients for every grouping and length, and gradients by finite differences."""

import pytest
import torch
from torch.nn import functional

from luyen.models import attention, block_attention
from luyen.models.attention import causal_attention


def states(rows: int, tokens: int, heads: int, kv_heads: int, size: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, tokens, count, size) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def usual(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int = 0) -> torch.Tensor:
    """One matrix of scores for each head, as in the equation."""
    group = query.shape[2] // key.shape[2]
    key, value = (part.repeat_interleave(group, 2) for part in (key, value))
    scores = torch.einsum("bthe,bshe->bhts", query, key) / query.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    if window:
        hidden |= torch.ones(scores.shape[-2:], dtype=torch.bool).tril(-window)
    return torch.einsum("bhts,bshe->bthe", scores.masked_fill(hidden, float("-inf")).softmax(-1), value)


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 130, 200])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_values_and_gradients_are_the_equations(tokens: int, heads: int, kv_heads: int) -> None:
    inputs = states(2, tokens, heads, kv_heads, 8, torch.float64)
    slope = torch.randn(2, tokens, heads, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert block_attention.fits(inputs[0])
    ours, theirs = causal_attention(*inputs), usual(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, wanted in zip(torch.autograd.grad(ours, inputs, slope), torch.autograd.grad(theirs, inputs, slope), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 100, 199, 200, 1000])
def test_a_window_hides_what_lies_before_it(window: int) -> None:
    """Inside a block, over several blocks, as long as the row, and longer; with and without gradients."""
    inputs = states(2, 200, 4, 2, 8, torch.float64)
    slope = torch.randn(2, 200, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert block_attention.fits(inputs[0], window)
    ours, theirs = causal_attention(*inputs, window), usual(*inputs, window)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, wanted in zip(torch.autograd.grad(ours, inputs, slope), torch.autograd.grad(theirs, inputs, slope), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(causal_attention(*inputs, window), theirs, rtol=1e-12, atol=1e-12)


def test_a_window_keeps_less() -> None:
    """So rows may be longer than without one before torch's kernel must do it."""
    inputs = states(1, 3000, 1, 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_attention, "MOST_KEPT", 3000 * (100 + block_attention.BLOCK))
        assert block_attention.fits(inputs[0], 100) and not block_attention.fits(inputs[0], 101) and not block_attention.fits(inputs[0])


@pytest.mark.parametrize("window", [0, 2, 3])
def test_gradients_by_finite_differences(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(block_attention, "BLOCK", 2)
    assert torch.autograd.gradcheck(lambda *inputs: causal_attention(*inputs, window), states(1, 5, 2, 1, 3, torch.float64))


def test_inputs_that_do_not_lie_in_one_piece() -> None:
    """A projection's output split into heads is a view."""
    query, key, value = (part.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for part in states(2, 70, 4, 2, 8))
    slope = torch.randn(2, 4, 70, 8).transpose(1, 2)
    mine = torch.autograd.grad(causal_attention(query, key, value), (query, key, value), slope)
    wanted = torch.autograd.grad(usual(query, key, value), (query, key, value), slope)
    for one, other in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_where_another_way_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, in a type that this CPU multiplies slowly, and for too many probabilities, torch's kernel does it."""
    inputs = states(1, 70, 4, 2, 8)
    asked: list[int] = []
    plain = functional.scaled_dot_product_attention

    def counted(*arguments: object, **keywords: object) -> torch.Tensor:
        asked.append(1)
        return plain(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(attention.functional, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(block_attention, "multiplies_fast", lambda dtype: dtype == torch.float32)
    expected = causal_attention(*inputs)
    assert not asked
    with torch.no_grad():
        torch.testing.assert_close(causal_attention(*inputs), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        causal_attention(*inputs)
    causal_attention(*(part.bfloat16() for part in inputs))
    monkeypatch.setattr(block_attention, "MOST_KEPT", 4 * 70 * 67 - 1)
    causal_attention(*inputs)
    assert len(asked) == 4


@pytest.mark.parametrize("by_autocast", [False, True])
def test_where_bf16_is_fast_blocks_are_as_near_as_torchs_kernel(monkeypatch: pytest.MonkeyPatch, by_autocast: bool) -> None:
    """Scores are rounded between products here and P in both: errors against fp64 are within twice those of torch's own kernel."""
    exact = states(2, 130, 6, 2, 16, torch.float64)
    slope = torch.randn(2, 130, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = [causal_attention(*exact), *torch.autograd.grad(causal_attention(*exact), exact, slope)]

    def errors(fast: bool) -> list[float]:
        monkeypatch.setattr(block_attention, "multiplies_fast", lambda dtype: fast)
        inputs = [part.detach().to(torch.float32 if by_autocast else torch.bfloat16).requires_grad_() for part in exact]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=by_autocast):
            attended = causal_attention(*inputs)
        found = [attended, *torch.autograd.grad(attended, inputs, slope.to(torch.bfloat16))]
        assert attended.dtype == torch.bfloat16 and all(one.dtype == part.dtype for one, part in zip(found[1:], inputs, strict=True))
        return [float((one.detach() - other.detach()).norm() / other.detach().norm()) for one, other in zip(found, wanted, strict=True)]

    ours, theirs = errors(True), errors(False)
    assert all(mine < 2 * other and mine < 0.01 for mine, other in zip(ours, theirs, strict=True)), (ours, theirs)
