"""Selective activations: what costs little is made again, to the bit and once, and nothing else is mistaken for it."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from training_toys import toy_algorithm

from luyen.engine.activations import CheapOutputs, recomputed
from luyen.models import attention, block_attention, functions
from luyen.models.cheap import cheap, told_to


def gradients(algorithm, batch, half=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = algorithm.loss(batch).total
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in algorithm.model.named_parameters()}
    algorithm.model.zero_grad()
    return found


VARIANT = {"qkv_bias": True, "qk_norm": "head", "window": 5, "experts": {"count": 3, "per_token": 2, "shared_size": 8}}


@pytest.mark.parametrize("variant", [{}, VARIANT], ids=["llama", "variant"])
@pytest.mark.parametrize("half", [False, True])
def test_gradients_are_the_same_to_the_bit(half, variant):
    algorithm = toy_algorithm(variant=variant)
    batch = next(algorithm.batches(None))[0]
    expected = gradients(algorithm, batch, half)
    with recomputed(algorithm.model, "selective"):
        found = gradients(algorithm, batch, half)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("half", [False, True])
def test_norms_and_the_gated_product_of_a_layer_are_not_kept_and_made_once(half, monkeypatch):
    algorithm = toy_algorithm()
    batch, packed, made = next(algorithm.batches(None))[0], [], []
    monkeypatch.setattr(attention, "fits", lambda *_: False)
    plain = CheapOutputs.pack
    monkeypatch.setattr(CheapOutputs, "pack", lambda outputs, tensor: packed.append(plain(outputs, tensor)) or packed[-1])
    norm, product = functions._rms_norm, functions._swiglu
    monkeypatch.setattr(functions, "_rms_norm", lambda *values: made.append(norm) or norm(*values))
    monkeypatch.setattr(functions, "_swiglu", lambda *values: made.append(product) or product(*values))
    with recomputed(algorithm.model, "selective"), torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = algorithm.loss(batch).total
    forward, layers = len(made), len(algorithm.model.model.layers)
    assert forward == 3 * layers + 1, "the last norm stands outside the layers"
    views = [item for item in packed if not isinstance(item, Tensor)]
    assert len(views) == 6 * layers, "inputs of q, k, v, gate and up, and of down"
    assert len({id(view.way) for view in views}) == 3 * layers
    loss.backward()
    assert len(made) - forward == 3 * layers, "each once, though three products read a norm"
    assert all(view.way.made is None for view in views), "nothing stays"


def test_probabilities_of_attention_in_blocks_are_made_again(monkeypatch):
    inputs = [torch.randn(2, 130, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    slope, made, plain = torch.randn(2, 130, 4, 8), [], block_attention._probabilities
    expected = torch.autograd.grad(attention.causal_attention(*inputs), inputs, slope)
    monkeypatch.setattr(block_attention, "_probabilities", lambda *values: made.append(1) or plain(*values))
    outputs, held = CheapOutputs(), []
    with told_to(outputs.add), saved_tensors_hooks(lambda one: held.append(outputs.pack(one)) or held[-1], CheapOutputs.unpack):
        attended = attention.causal_attention(*inputs)
    blocks = -(-130 // block_attention.BLOCK)
    assert sum(not isinstance(one, Tensor) for one in held) == len(made) == blocks
    for mine, wanted in zip(torch.autograd.grad(attended, inputs, slope), expected, strict=True):
        assert torch.equal(mine, wanted)
    assert len(made) == 2 * blocks


def kept(forward):
    """Bytes of the different tensors that lie in memory for the backward pass of `forward()`."""
    found = {}

    def see(tensor):
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(see, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def test_less_is_kept_by_as_much():
    hidden, weight = torch.randn(4, 8, requires_grad=True), nn.Parameter(torch.ones(8))
    readers = [nn.Linear(8, 8, bias=False) for _ in range(3)]

    def forward():
        normed = functions.rms_norm(hidden, weight, 1e-6)
        return sum(reader(normed) for reader in readers).sum()

    class Counted(CheapOutputs):
        def __init__(self):
            super().__init__()
            self.tensors = {}

        def pack(self, tensor):
            packed = super().pack(tensor)
            if isinstance(packed, Tensor):
                self.tensors.setdefault(packed.untyped_storage().data_ptr(), packed)
            return packed

    outputs = Counted()
    with told_to(outputs.add), saved_tensors_hooks(outputs.pack, CheapOutputs.unpack):
        forward()
    spared = sum(tensor.untyped_storage().nbytes() for tensor in outputs.tensors.values())
    assert kept(forward) - spared == 4 * 8 * 4


def test_what_was_written_over_or_took_the_place_of_another_is_kept_as_it_is():
    outputs = CheapOutputs()
    output = torch.arange(3.0)
    with told_to(outputs.add):
        assert cheap(output, torch.arange, 3.0) is output
    assert not isinstance(outputs.pack(output), Tensor) and not isinstance(outputs.pack(output[1:]), Tensor)
    assert torch.equal(outputs.unpack(outputs.pack(output[1:])), output[1:])
    output.mul_(2)
    assert outputs.pack(output) is output
    other = torch.arange(5.0)
    with told_to(outputs.add):
        cheap(other, torch.arange, 5.0)
    storage = other.untyped_storage()  # lives on, as freed memory does that another tensor gets
    del other
    heir = torch.empty(0).set_(storage, 0, (5,))
    assert outputs.pack(heir) is heir
    assert outputs.pack(nn.Parameter(torch.ones(2))).requires_grad
    words, empty = torch.arange(4.0), torch.empty(0)
    with told_to(outputs.add):
        cheap(words, torch.arange, 4.0)
        cheap(empty, torch.empty, 0)
    assert outputs.pack(words.view(torch.int32)).dtype == torch.int32
    assert outputs.pack(torch.empty(0, dtype=torch.int64)).dtype == torch.int64, "all that is empty lies in one place"


def test_an_input_that_was_written_over_is_an_error():
    hidden, weight, reader = torch.randn(4, 8), torch.ones(8), nn.Linear(8, 8, bias=False)
    outputs = CheapOutputs()
    with told_to(outputs.add), saved_tensors_hooks(outputs.pack, CheapOutputs.unpack):
        total = reader(functions.rms_norm(hidden, weight, 1e-6)).sum()
    hidden.zero_()
    with pytest.raises(RuntimeError, match="what _rms_norm read was written over"):
        total.backward()


def test_the_type_is_that_of_the_forward_pass_and_a_second_backward_works():
    hidden, weight = torch.randn(4, 8, requires_grad=True), nn.Parameter(torch.ones(8))
    reader, outputs = nn.Linear(8, 8, bias=False), CheapOutputs()
    with torch.autocast("cpu", torch.bfloat16), told_to(outputs.add), saved_tensors_hooks(outputs.pack, CheapOutputs.unpack):
        normed = functions.rms_norm(hidden, weight, 1e-6)
        assert normed.dtype == torch.bfloat16
        total = reader(normed).float().sum()
    first, second = (torch.autograd.grad(total, reader.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    expected = functional.linear(torch.ones(8, 4, dtype=torch.bfloat16), normed.detach().mT).float()
    torch.testing.assert_close(first, expected, rtol=1e-2, atol=1e-2)


def test_nobody_is_told_outside_and_without_gradients():
    algorithm, told = toy_algorithm(), []
    batch = next(algorithm.batches(None))[0]
    with recomputed(algorithm.model, "selective"), told_to(lambda *_: told.append(1)), torch.no_grad():
        algorithm.loss(batch)
    seen = len(told)
    assert seen == 3 * len(algorithm.model.model.layers) + 1, "who listened before is not shut out where nothing is kept"
    algorithm.loss(batch)
    assert len(told) == seen
