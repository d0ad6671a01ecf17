"""Attention by FlashAttention's kernel for sequences of any lengths, with stand-ins for kernel and GPU: what it is asked, and when."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from toys import toy

from luyen.engine.activations import recomputed
from luyen.models import varlen
from luyen.models.attention import Layout, packed_attention

LENGTHS = [[5, 1, 30, 2, 2, 17], [7, 7, 7], [1], [40]]


def states(tokens, heads=4, kv_heads=2, size=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, count, size, generator=generator).to(dtype).requires_grad_() for count in (heads, kv_heads, kv_heads)]


def by_sequence(query, key, value, bounds, scale, grouped, before=-1):
    """Causal attention of one sequence after another by torch's own, with so many tokens before the query or all."""
    parts = []
    for start, end in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        rows = [part[start:end].transpose(0, 1)[None] for part in (query, key, value)]
        mask = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        mask = mask if before < 0 else mask.triu(-before)
        parts.append(functional.scaled_dot_product_attention(*rows, attn_mask=mask, scale=scale, enable_gqa=grouped)[0].transpose(0, 1))
    return torch.cat(parts)


def gradient_by_sequence(slope, query, key, value, bounds, scale):
    """The gradient of `by_sequence`, written out: an operator's own kernel stands below what could derive it."""
    found, group = [], query.shape[1] // key.shape[1]
    for start, end in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        queries, slopes = (part[start:end].transpose(0, 1) for part in (query, slope))
        keys, values = (part[start:end].transpose(0, 1).repeat_interleave(group, 0) for part in (key, value))
        scores = (queries @ keys.mT * scale).masked_fill(torch.ones(end - start, end - start).triu(1).bool(), float("-inf"))
        shares = scores.softmax(-1)
        share_slopes = slopes @ values.mT
        score_slopes = shares * (share_slopes - (share_slopes * shares).sum(-1, keepdim=True)) * scale
        of_heads = [part.unflatten(0, (-1, group)).sum(1) for part in (score_slopes.mT @ queries, shares.mT @ slopes)]
        found.append([part.transpose(0, 1) for part in (score_slopes @ keys, *of_heads)])
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


@pytest.fixture
def asked(monkeypatch):
    """The kernel and the GPU are there: the arguments of every call, of which another way computes the result."""
    calls = []

    def standin(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
        calls.append(SimpleNamespace(**locals()))
        return by_sequence(query, key, value, cu_seq_q, scale, enable_gqa, window_size[0])

    monkeypatch.setattr(varlen, "takes", lambda query: True)
    monkeypatch.setattr(varlen, "kernel", lambda: standin)
    return calls


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_it_is_asked_for_the_whole_batch_and_gives_what_the_groups_give(monkeypatch, asked, lengths, kv_heads):
    layout, inputs = Layout.packed(lengths), states(sum(lengths), kv_heads=kv_heads)
    attended = packed_attention(*inputs, layout)
    found = torch.autograd.grad(attended.pow(3).sum(), inputs)
    (call,) = asked
    assert call.query.shape == (sum(lengths), 4, 8) and call.key.shape == call.value.shape == (sum(lengths), kv_heads, 8)
    assert call.cu_seq_q is call.cu_seq_k and call.cu_seq_q.dtype == torch.int32
    assert call.cu_seq_q.tolist() == [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    assert call.max_q == call.max_k == max(lengths) and isinstance(call.max_q, int)
    assert call.scale == pytest.approx(8**-0.5) and call.window_size == (-1, 0) and call.enable_gqa == (kv_heads == 2)
    assert "grids" not in layout.__dict__  # nothing is worked out that only the groups need
    monkeypatch.setattr(varlen, "takes", lambda query: False)
    grouped = packed_attention(*inputs, layout)
    torch.testing.assert_close(attended, grouped, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(found, torch.autograd.grad(grouped.pow(3).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("window", "told"), [(1, (0, 0)), (4, (3, 0)), (29, (28, 0)), (30, (-1, 0)), (0, (-1, 0))])
def test_a_window_is_told_without_the_query_itself(monkeypatch, asked, window, told):
    """And not at all where no sequence is longer."""
    layout, inputs = Layout.packed(LENGTHS[0]), states(sum(LENGTHS[0]))
    attended = packed_attention(*inputs, layout, window)
    assert asked[0].window_size == told
    monkeypatch.setattr(varlen, "takes", lambda query: False)
    torch.testing.assert_close(attended, packed_attention(*inputs, layout, window), rtol=1e-5, atol=1e-6)


def test_mixed_types_of_autocast_reach_it_in_half(asked):
    """A rotation may leave queries in full precision beside values in half."""
    model, lengths = toy(num_kv_heads=2, vocab_size=50), [5, 3]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(torch.arange(8)[None], Layout.packed(lengths))
    assert len(asked) == len(model.model.layers)
    assert {part.dtype for call in asked for part in (call.query, call.key, call.value)} == {torch.bfloat16}
    hidden.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.model.layers.parameters())
    packed_attention(*states(8), Layout.packed(lengths))
    assert asked[-1].query.dtype == torch.float32  # the stand-in takes it; `takes` would not


def gpu_states(dtype=torch.bfloat16, size=64, device="cuda"):
    return SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(10, 4, size))


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose compute capability the test may set, and a torch built for it."""
    found = SimpleNamespace(capability=(9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found.capability)
    varlen._has_units.cache_clear()
    yield found
    varlen._has_units.cache_clear()


def test_when_it_is_used(gpu, monkeypatch):
    assert varlen.takes(gpu_states()) and varlen.takes(gpu_states(torch.float16, 128)) and varlen.takes(gpu_states(size=192))
    assert not varlen.takes(gpu_states(torch.float32))
    assert not varlen.takes(gpu_states(size=60)) and not varlen.takes(gpu_states(size=256))
    assert not varlen.takes(gpu_states(device="cpu")) and not varlen.takes(gpu_states(device="mps"))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert varlen.takes(gpu_states(torch.float32))
    monkeypatch.setattr(varlen, "kernel", lambda: None)
    assert not varlen.takes(gpu_states())


def test_an_older_gpu_or_another_build_goes_by_groups(gpu, monkeypatch):
    gpu.capability = (7, 5)
    assert not varlen.takes(gpu_states(torch.float16))
    varlen._has_units.cache_clear()
    gpu.capability = (8, 0)
    assert varlen.takes(gpu_states(torch.float16))
    varlen._has_units.cache_clear()
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert not varlen.takes(gpu_states())


def test_the_function_of_torch_is_taken_with_the_arguments_that_are_given(monkeypatch):
    varlen.kernel.cache_clear()
    function = varlen.kernel()
    if function is not None:
        module = inspect.getmodule(function)
        assert module.__name__ == "torch.nn.attention.varlen"
        monkeypatch.setattr(module, "varlen_attn", lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False: query)
        varlen.kernel.cache_clear()
        assert varlen.kernel() is None  # torch 2.10's knows no window and no grouped heads
    varlen.kernel.cache_clear()


@pytest.fixture
def operator(monkeypatch):
    """torch's own function with its gradient, whose operators a CPU computes by sequence: how often forward was computed."""
    if varlen.kernel() is None:
        pytest.skip("this torch has no such operator")
    calls = []

    def forward(query, key, value, bounds, _key_bounds, _max_q, _max_k, is_causal, scale, window, grouped, *_rest):
        assert is_causal and list(window) == [-1, 0]
        calls.append(query.shape)
        return by_sequence(query, key, value, bounds, scale, grouped), query.new_empty(0), torch.zeros(2, dtype=torch.uint64)

    def backward(slope, query, key, value, _out, _lse, bounds, _key_bounds, _max_q, _max_k, _causal, _state, scale, _window):
        return gradient_by_sequence(slope, query, key, value, bounds, scale)

    library = torch.library.Library("torch_attn", "IMPL")
    library.impl("_varlen_attn", forward, "CPU")
    library.impl("_varlen_attn_backward", backward, "CPU")
    monkeypatch.setattr(varlen, "takes", lambda query: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield calls
    library._destroy()


@pytest.mark.parametrize(("mode", "computed"), [("none", 1), ("selective", 1), ("full", 2)])
def test_selective_recomputation_keeps_its_output(operator, monkeypatch, mode, computed):
    model, layout, tokens = toy(num_kv_heads=2, vocab_size=50), Layout.packed([5, 12, 3]), torch.arange(20)[None]
    with recomputed(model, mode):
        hidden = model(tokens, layout)
        hidden.pow(2).sum().backward()
    assert len(operator) == computed * len(model.model.layers)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    monkeypatch.setattr(varlen, "takes", lambda query: False)
    model.zero_grad()
    grouped = model(tokens, Layout.packed([5, 12, 3]))
    grouped.pow(2).sum().backward()
    torch.testing.assert_close(hidden, grouped, rtol=1e-4, atol=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-4)
