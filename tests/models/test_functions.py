"""Written gradients against autograd's, in float64."""

import torch
from torch.nn import functional

from luyen.models.functions import RMSNormFunction, pad, rms_norm, rotate, swiglu, unpad
from luyen.models.rotary import rotation


def random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_rms_norm() -> None:
    hidden, weight = random(2, 3, 8), random(8)
    assert torch.autograd.gradcheck(lambda *inputs: RMSNormFunction.apply(*inputs, 1e-3), (hidden, weight))
    single = hidden.detach().float()
    torch.testing.assert_close(rms_norm(single, weight.float(), 1e-3), functional.rms_norm(single, (8,), weight.float(), 1e-3))
    half = single.bfloat16()
    assert rms_norm(half, weight.bfloat16(), 1e-3).dtype == torch.bfloat16


def test_swiglu() -> None:
    gate, up = random(3, 5), random(3, 5)
    assert torch.autograd.gradcheck(swiglu, (gate, up))
    torch.testing.assert_close(swiglu(gate, up), functional.silu(gate) * up)


def test_rotation_turns_pairs_by_their_angle() -> None:
    states = random(1, 3, 2, 6)
    cosine, sine = rotation(torch.tensor([[0, 1, 7]]), 6, 100.0, torch.float64)
    assert torch.autograd.gradcheck(lambda states: rotate(states, cosine, sine), (states,))
    pairs = torch.complex(states[..., :3], states[..., 3:])
    angles = torch.tensor([0.0, 1.0, 7.0])[:, None] * 100.0 ** -torch.tensor([0.0, 1 / 3, 2 / 3])
    turned = pairs * torch.polar(torch.ones(3, 3, dtype=torch.float64), angles.double())[:, None]
    torch.testing.assert_close(rotate(states, cosine, sine), torch.cat([turned.real, turned.imag], -1), rtol=1e-6, atol=1e-6)


def test_padding_and_back() -> None:
    # Sequences [0 1 2] and [3] in a grid of two rows of three; place 4 and 5 repeat token 3.
    index, inverse = torch.tensor([0, 1, 2, 3, 3, 3]), torch.tensor([0, 1, 2, 3])
    rows = random(4, 2)
    padded = pad(rows, index, inverse)
    assert torch.equal(padded, rows[index]) and torch.equal(unpad(padded, inverse), rows)
    assert torch.autograd.gradcheck(lambda rows: unpad(pad(rows, index, inverse).sin(), inverse), (rows,))
    places = random(6, 2)
    assert torch.autograd.gradcheck(lambda places: unpad(places, inverse), (places,))
