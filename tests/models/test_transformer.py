"""The decoder against transformers' Llama: logits and the gradient of every parameter; and what must not change them."""

import functools
import math

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from toys import IDS, SMALL, toy, twin

from luyen.core import config as configs
from luyen.core.errors import ConfigError
from luyen.models.attention import Layout
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer

SHAPES = {
    "multi-head": {},
    "grouped": {"num_kv_heads": 2},
    "one key-value head, tied": {"num_kv_heads": 1, "tied": True},
    "head size of its own": {"num_kv_heads": 4, "head_dim": 10},
    "other constants": {"num_kv_heads": 2, "rope_theta": 500.0, "norm_eps": 1e-2},
}


@pytest.mark.parametrize("tokens", [IDS, torch.randint(0, 10000, (3, 40), generator=torch.Generator().manual_seed(1))], ids=["T5", "T40"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_and_gradients_equal_transformers(shape, tokens) -> None:
    model = toy(**{"tied": False, **shape})
    theirs = twin(model)
    logits, their_logits = model.logits(model(tokens)), theirs(tokens).logits
    torch.testing.assert_close(logits, their_logits)
    targets = tokens.roll(-1, 1)
    for scores in (logits, their_logits):
        functional.cross_entropy(scores.flatten(0, 1), targets.flatten()).backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, their_gradients[name], rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("lengths", [[7, 7, 7], [1], [5, 1, 30, 2, 2, 17], [3] * 40 + [90, 100, 110, 96] * 3, list(range(1, 30))])
def test_packed_sequences_are_as_if_alone(lengths) -> None:
    model = toy(num_kv_heads=2, vocab_size=50)
    tokens = torch.randint(0, 50, (1, sum(lengths)), generator=torch.Generator().manual_seed(2))
    weight = torch.randn(1, sum(lengths), 32, generator=torch.Generator().manual_seed(3))
    packed = model(tokens, Layout.packed(lengths))
    (packed * weight).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    alone = torch.cat([model(sequence[None])[0] for sequence in tokens[0].split(lengths)])[None]
    (alone * weight).sum().backward()
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=2e-5)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=2e-4)


def test_padding_on_the_right_changes_nothing() -> None:
    model = toy(num_kv_heads=2, vocab_size=50)
    tokens = torch.randint(0, 50, (1, 12), generator=torch.Generator().manual_seed(2))
    padded = torch.cat([tokens, torch.zeros(1, 9, dtype=torch.int64)], 1)
    torch.testing.assert_close(model(padded)[:, :12], model(tokens))


def test_no_token_sees_a_later_one_or_another_sequence() -> None:
    model = toy(vocab_size=50)
    tokens = torch.randint(0, 50, (1, 12), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 50
    layout = Layout.packed([4, 6, 2])
    different = (model(tokens, layout) != model(changed, layout)).any(-1)[0]
    assert different.tolist() == [False] * 7 + [True] * 3 + [False] * 2


def test_layout_groups_by_length() -> None:
    layout = Layout.packed([500] * 4 + [8] * 300 + [480])
    assert [(group.rows, group.length) for group in layout.grids.groups] == [(300, 8), (5, 500)]
    assert Layout.packed([4, 4]).grids.gather_P is None
    layout = Layout.packed([3, 1, 2])
    assert layout.positions_T.tolist() == [0, 1, 2, 0, 0, 1]
    assert layout.last_S.tolist() == [2, 3, 5]
    assert layout.bounds_Z.tolist() == [0, 3, 4, 6] and layout.bounds_Z.dtype == torch.int32 and layout.longest == 3
    assert layout.grids.gather_P is not None and layout.grids.scatter_T is not None
    assert layout.grids.gather_P[layout.grids.scatter_T].tolist() == list(range(6))
    for wrong in ([], [3, 0]):
        with pytest.raises(ValueError, match="positive"):
            Layout.packed(wrong)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("vocabulary", "width"), [(65, 128), (512, 64), (4096, 192), (8192, 640)])
def test_first_loss_is_that_of_a_uniform_guess(vocabulary, width, tied) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_layers=3, num_heads=4, num_kv_heads=2, tied=tied
    )
    model = Transformer(config)
    tokens = torch.randint(0, vocabulary, (4, 33))
    with torch.no_grad():
        logits = model.logits(model(tokens[:, :-1]))
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(vocabulary)) < 0.1


def test_initial_weights_follow_the_seed_and_the_depth() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=200, hidden_size=128, intermediate_size=256, num_layers=8, num_heads=4, tied=False)
    first = Transformer(config)
    torch.manual_seed(0)
    second = Transformer(config)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
    block = first.model.layers[0]
    assert block.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert block.self_attn.o_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert block.mlp.down_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)


def test_learns_one_batch_by_heart() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2))
    tokens = torch.randint(0, 64, (4, 17))
    tokens[:, 0] = torch.arange(4)  # else the first prediction could not know its row
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model.logits(model(tokens[:, :-1])).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


@pytest.mark.parametrize("changes", [{"num_kv_heads": 3}, {"head_dim": 5}, {"num_heads": 7}, {"num_layers": 0}, {"vocab_size": -1}])
def test_impossible_sizes_are_refused(changes) -> None:
    with pytest.raises(ConfigError):
        configs.load(TransformerConfig, {**SMALL, **changes})


def test_zeros_in_the_config_are_filled_in() -> None:
    config = TransformerConfig(**SMALL)
    assert (config.num_kv_heads, config.head_dim) == (8, 4)
    assert TransformerConfig(**configs.dump(config)) == config


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    model = toy(num_kv_heads=2, vocab_size=50)
    tokens, layout = torch.arange(20)[None], Layout.packed([5, 12, 3])
    model(tokens, layout).square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for layer in model.model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    model(tokens, layout).square().sum().backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=0)
