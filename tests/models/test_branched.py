"""Sequences that share a beginning: read once, and as if each were written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luyen.models.attention import Layout, causal_attention
from luyen.models.transformer import Transformer
from tests.models.toys import toy

TREES = {
    "pairs": ([9, 5, 3, 70, 66, 2], [-1, 0, 0, -1, 3, 3]),
    "many answers": ([4, 3, 3, 3, 1, 12, 7], [-1, 0, 0, 0, 0, 0, 0]),
    "with some alone": ([6, 5, 4, 4, 8], [-1, -1, 1, 1, -1]),
    "one branch": ([5, 6, 3], [-1, 0, -1]),
}


def written_out(tokens_T: Tensor, lengths: list[int], trunks: list[int]) -> list[tuple[Tensor, int]]:
    """Every sequence that ends in a piece none goes on from, with the piece's number."""
    pieces = tokens_T.split(lengths)
    whole = [piece if trunk < 0 else torch.cat([pieces[trunk], piece]) for piece, trunk in zip(pieces, trunks, strict=True)]
    return [(sequence, own) for own, sequence in enumerate(whole) if own not in trunks]


def gradients(model: Transformer, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 2, "variant": {"window": 6}}], ids=["plain", "grouped with a window"])
def test_branches_are_as_if_written_out(name, changes) -> None:
    lengths, trunks = TREES[name]
    model = toy(**changes).double()
    tokens_T = torch.randint(0, 10000, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    weight_TD = torch.randn(sum(lengths), 32, dtype=torch.float64)
    pieces = list(weight_TD.split(lengths))
    shared_TD = model(tokens_T[None], Layout.branched(lengths, trunks))[0]
    expected, loss = {}, torch.zeros((), dtype=torch.float64)
    for sequence, own in written_out(tokens_T, lengths, trunks):
        hidden_TD = model(sequence[None])[0]
        trunk = trunks[own]
        if trunk >= 0 and trunk not in expected:
            expected[trunk] = hidden_TD[: lengths[trunk]]
            loss = loss + (expected[trunk] * pieces[trunk]).sum()
        expected[own] = hidden_TD[len(sequence) - lengths[own] :]
        loss = loss + (expected[own] * pieces[own]).sum()
    torch.testing.assert_close(shared_TD, torch.cat([expected[own] for own in range(len(lengths))]), rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients(model, (shared_TD * weight_TD).sum()), gradients(model, loss), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_positions_go_on_from_the_trunk() -> None:
    layout = Layout.branched([3, 2, 1, 2], [-1, 0, 0, -1])
    assert layout.positions_T.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert layout.last_S.tolist() == [2, 4, 5, 7]
    assert layout.written_out.layout.lengths == (5, 4, 2)


def test_without_branches_it_is_the_plain_layout() -> None:
    assert Layout.branched([3, 2], [-1, -1]).trunks == ()


@pytest.mark.parametrize("trunks", [[0, -1], [-1, 0, 1], [-1, 2, -1]], ids=["itself", "a branch", "a later piece"])
def test_a_piece_goes_on_from_an_earlier_beginning_alone(trunks) -> None:
    with pytest.raises(ValueError, match="each trunk must begin"):
        Layout.branched([2] * len(trunks), trunks)


def test_the_kernel_for_packed_sequences_gets_them_written_out(monkeypatch) -> None:
    lengths, trunks = TREES["pairs"]
    model, tokens_T = toy(num_kv_heads=2), torch.arange(sum(lengths))
    expected = model(tokens_T[None], Layout.branched(lengths, trunks))
    asked = []

    def kernel(query_THE, key_TKE, value_TKE, bounds_Z, longest, window=0):
        asked.append((bounds_Z.tolist(), longest))
        sizes = (bounds_Z[1:] - bounds_Z[:-1]).tolist()
        parts = zip(*(states.split(sizes) for states in (query_THE, key_TKE, value_TKE)), strict=True)
        return torch.cat([causal_attention(*(part[None] for part in states), window)[0] for states in parts])

    monkeypatch.setattr("luyen.models.varlen.takes", lambda query: True)
    monkeypatch.setattr("luyen.models.varlen.varlen_attention", kernel)
    torch.testing.assert_close(model(tokens_T[None], Layout.branched(lengths, trunks)), expected)
    assert asked[0] == ([0, 14, 26, 162, 234], 136)
