"""Passes that ranks share, tokens and vocabulary in parts: against the same in whole, in fp64; and how tokens are dealt."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from curves import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from luyen.core.config import load
from luyen.core.errors import ConfigError
from luyen.engine.config import ParallelConfig
from luyen.engine.parallel.context import continued_attention, pieces, work
from luyen.engine.parallel.plan import check_model
from luyen.engine.parallel.tensor import check
from luyen.models.attention import Layout, packed_attention
from luyen.models.config import TransformerConfig

CASES = ("tensor", "tensor, tied", "tensor, variant", "context", "context, tied", "context, variant", "head", "half")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, torchrun: Any) -> dict[str, dict[str, float]]:
    """The largest differences that two processes saw."""
    path = tmp_path_factory.mktemp("shared") / "found"
    done = torchrun(2, str(PROJECT / "tests" / "parallel" / "shared_driver.py"), str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    both = [json.loads(path.with_name(f"found-{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert both[0].keys() == both[1].keys() == set(CASES)
    return {name: {item: max(one[name][item] for one in both) for item in both[0][name]} for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_make_of_a_pass_what_one_makes(found, name):
    """Hidden states, losses, logits and every gradient, of packed and of plain rows, of one token, of an odd vocabulary."""
    limit = 0.02 if name == "half" else 1e-12
    assert len(found[name]) > 1
    assert all(difference < limit for difference in found[name].values()), found[name]


lengths_and_ranks = st.tuples(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(2, 4))


@given(lengths_and_ranks)
def test_every_token_has_one_rank_and_ranks_have_equally_many(case):
    lengths, ranks = case
    dealt = [pieces(sum(lengths), ranks, rank) for rank in range(ranks)]
    assert sorted(token for both in dealt for piece in both for token in piece) == list(range(sum(lengths)))
    counts = [sum(map(len, both)) for both in dealt]
    assert max(counts) - min(counts) <= 2
    for both in dealt:
        items = list(work(lengths, both))
        assert sum(item.tokens for item in items) == sum(map(len, both))
        assert all(one.first + one.tokens == other.first for one, other in pairwise(items))


@settings(deadline=None)  # the first call loads the compiler
@given(lengths_and_ranks, st.integers(0, 20))
def test_the_parts_of_attention_are_the_whole(case, window):
    lengths, ranks = case
    generator = torch.Generator().manual_seed(sum(lengths))
    total = sum(lengths)
    query, key, value = (torch.randn(total, heads, 4, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    whole = packed_attention(query, key, value, Layout.packed(lengths), window)
    for rank in range(ranks):
        both = pieces(total, ranks, rank)
        own = [token for piece in both for token in piece]
        for item in work(lengths, both):
            places, keys = own[item.first : item.first + item.tokens], slice(item.start, item.end)
            if item.lengths:
                found = packed_attention(query[places], key[keys], value[keys], Layout.packed(item.lengths), window)
            else:
                found = continued_attention(query[places], key[keys], value[keys], window)
            assert torch.allclose(found, whole[places], atol=1e-12)


def test_a_long_document_costs_all_ranks_the_same():
    """Query-key pairs of each rank: without the second piece the last of four would have seven times the first's."""
    counts = [sum(token + 1 for piece in pieces(4096, 4, rank) for token in piece) for rank in range(4)]
    assert max(counts) - min(counts) <= 4096 < min(counts) / 100


def test_continued_attention_is_causal():
    query, key = torch.randn(3, 2, 4), torch.randn(8, 2, 4)
    found = continued_attention(query, key, key)
    states = key[:6].transpose(0, 1)
    alone = functional.scaled_dot_product_attention(query[:1].transpose(0, 1), states, states)
    assert torch.allclose(found[:1], alone.transpose(0, 1), atol=1e-6)


def test_a_vocabulary_that_leaves_a_rank_without_any_is_refused():
    size = {"hidden_size": 16, "intermediate_size": 40, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "context_length": 32}
    check(load(TransformerConfig, {"vocab_size": 7, **size}), 4)
    with pytest.raises(ConfigError, match="train.parallel.tensor 4; found vocab_size 6; expected some of it for every process"):
        check(load(TransformerConfig, {"vocab_size": 6, **size}), 4)


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ({"experts": {"count": 4, "per_token": 2}}, "train.parallel.tensor; found 4 experts; expected a decoder without experts"),
        ({"qk_norm": "whole"}, "train.parallel.tensor; found norms over all heads; expected none, or one of each head"),
    ],
)
def test_what_is_not_split_by_heads_is_refused(variant, told):
    size = {"hidden_size": 16, "intermediate_size": 40, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "context_length": 32}
    with pytest.raises(ConfigError, match=told):
        check(load(TransformerConfig, {"vocab_size": 8, **size, "variant": variant}), 2)


@pytest.mark.parametrize("axis", ["tensor", "context", "pipeline"])
def test_experts_are_refused_before_any_stage(axis):
    size = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 40, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4}
    model = load(TransformerConfig, {**size, "variant": {"experts": {"count": 4, "per_token": 2}}})
    with pytest.raises(ConfigError, match=f"train.parallel.{axis}; found 4 experts; expected a decoder without experts"):
        check_model(load(ParallelConfig, {axis: 2}), model)
    check_model(load(ParallelConfig, {"data": 2, "shard": 2}), model)
