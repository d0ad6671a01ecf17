"""Prompt tuning and P-tuning against PEFT, against the decoder that reads the same text, and packed, cached and in training."""

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adapter_toys as toys
import preamble_toys
import pytest
import torch
from torch import nn
from training_toys import toy_algorithm, toy_config

from luyen.adapters.adapt import adapt, merge_in_place, trained
from luyen.adapters.preamble import final_vectors, preamble_of, put_vectors, room_of, start_at
from luyen.core.errors import ConfigError, DataError, ModelError
from luyen.engine.trainer import fit
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate, stream
from luyen.models.attention import Layout

LSTM = {"network": "lstm", "hidden": 10}
PREFIX = [{"method": "prefix"}, {"method": "prefix", "prompt": {"hidden": 12}}]
PROMPT = [{"method": "prompt"}, {"method": "p-tuning"}, {"method": "p-tuning", "prompt": LSTM}]
two_kinds = pytest.mark.parametrize("values", [PROMPT[0], PREFIX[1]], ids=["prompt", "projected"])
all_kinds = pytest.mark.parametrize("values", PROMPT + PREFIX, ids=["prompt", "p-tuning", "lstm", "prefix", "projected"])


def tuned(values: dict[str, Any]) -> Any:
    return preamble_toys.tuned(**copy.deepcopy(values))


def recurrent_names() -> dict[str, str]:
    parts = itertools.product(("weight", "bias"), ("ih", "hh"), (0, 1), ("", "_reverse"))
    names = [f"{kind}_{side}_l{layer}{way}" for kind, side, layer, way in parts]
    return {f"network.lstm.{name}": f"lstm_head.{name}" for name in names}


@preamble_toys.peft_warns
def test_prompt_tuning_is_that_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours = tuned({"method": "prompt"})
    theirs = preamble_toys.in_peft(peft, peft.PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=preamble_toys.TOKENS), tmp_path)
    preamble_toys.copy_and_compare(ours, theirs, {"weight": "embedding.weight"})
    saved = peft.get_peft_model_state_dict(theirs)
    assert list(saved) == ["prompt_embeddings"] and torch.equal(final_vectors(ours), saved["prompt_embeddings"])
    preamble_toys.compare_answers(ours, theirs)


@preamble_toys.peft_warns
@pytest.mark.parametrize("network", ["perceptron", "lstm"])
def test_p_tuning_is_that_of_peft(network: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours = tuned({"method": "p-tuning", "prompt": {"network": network, "hidden": 10}})
    kind = {"perceptron": "MLP", "lstm": "LSTM"}[network]
    options = {"num_virtual_tokens": preamble_toys.TOKENS, "encoder_reparameterization_type": kind, "encoder_hidden_size": 10}
    theirs = preamble_toys.in_peft(peft, peft.PromptEncoderConfig("CAUSAL_LM", **options), tmp_path)
    inside, last, more = ("network.perceptron", 2, recurrent_names()) if network == "lstm" else ("network", 4, {})
    maps = {f"{inside}.{index}.{kind}": f"mlp_head.{index}.{kind}" for index in range(0, last + 1, 2) for kind in ("weight", "bias")}
    preamble_toys.copy_and_compare(ours, theirs, {"weight": "embedding.weight", **maps, **more})
    torch.testing.assert_close(final_vectors(ours), peft.get_peft_model_state_dict(theirs)["prompt_embeddings"])
    preamble_toys.compare_answers(ours, theirs)


@all_kinds
def test_packed_sequences_rows_and_each_alone_agree(values: dict[str, Any]) -> None:
    made = tuned(values)
    packed = toys.logits(made)
    assert packed.shape == (1, sum(toys.LENGTHS), toys.SIZE.vocab_size)
    for part, alone in zip(packed[0].split(toys.LENGTHS), toys.tokens()[0].split(toys.LENGTHS), strict=True):
        torch.testing.assert_close(made.logits(made(alone[None]))[0], part, rtol=1e-5, atol=1e-5)
    assert made(toys.tokens())._base is None, "a view, of which FSDP warns"
    rows = preamble_toys.rows()
    layout = Layout.packed([rows.shape[1]] * len(rows))
    torch.testing.assert_close(made(rows).flatten(0, 1), made(rows.reshape(1, -1), layout=layout)[0])
    with torch.no_grad():
        torch.testing.assert_close(toys.logits(made), packed, rtol=1e-5, atol=1e-5)


@all_kinds
def test_answers_with_a_cache_are_those_without(values: dict[str, Any]) -> None:
    made = tuned(values)
    prompts = [toys.tokens()[0, :length].tolist() for length in (3, 1, 9, 20, 2)]
    answers = generate(made, prompts, SamplingConfig(max_new_tokens=12), max_rows=3)
    assert [answer.ids for answer in answers] == [preamble_toys.naive(made, prompt, 12) for prompt in prompts]
    assert list(stream(made, prompts[2], SamplingConfig(max_new_tokens=12))) == answers[2].ids
    plain = [answer.ids for answer in generate(toys.model(), prompts, SamplingConfig(max_new_tokens=12))]
    assert plain != [answer.ids for answer in answers]


@all_kinds
def test_learned_positions_count_in_the_context(values: dict[str, Any]) -> None:
    made, room = tuned(values), toys.SIZE.context_length - preamble_toys.TOKENS
    assert (preamble_of(made), room_of(made)) == (preamble_toys.TOKENS, room) and room_of(toys.model()) == toys.SIZE.context_length
    assert len(generate(made, [[1] * (room - 3)], SamplingConfig(max_new_tokens=12))[0].ids) == 3
    with pytest.raises(DataError, match=f"no room for an answer; found {room} tokens behind 6 learned positions; expected under {room}"):
        generate(made, [[1] * room], SamplingConfig())


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("ids", [[5, 9, 4], [7, 1, 2, 3, 8, 9, 30]], ids=["repeated", "cut"])
def test_a_text_as_the_start_is_that_text_before_every_sequence(method: str, ids: list[int]) -> None:
    made = toys.adapted_model(method=method, prompt={"tokens": 6})
    start_at(made, ids)
    read = torch.tensor([(ids * 2)[:6]])
    plain, rows = toys.model(), preamble_toys.rows()
    whole = plain(torch.cat([read.expand(len(rows), -1), rows], 1))[:, 6:]
    torch.testing.assert_close(made(rows), whole, rtol=1e-5, atol=1e-5)


def test_a_prompt_starts_at_embeddings_of_tokens_drawn_by_the_seed() -> None:
    first, again, other = (toys.adapted_model(seed=seed, method="prompt") for seed in (1, 1, 2))
    vectors, table = final_vectors(first), first.model.embed_tokens.weight
    assert vectors.shape == (16, 32) and all((vector == table).all(1).any() for vector in vectors)
    assert torch.equal(vectors, final_vectors(again)) and not torch.equal(vectors, final_vectors(other))


@all_kinds
def test_vectors_without_their_network_compute_the_same(values: dict[str, Any]) -> None:
    made = tuned(values)
    vectors = final_vectors(made)
    other = toys.adapted_model(seed=9, method=values["method"], prompt={**values.get("prompt", {}), "tokens": 6})
    put_vectors(other, vectors)
    assert len(trained(other)) == 1 and torch.equal(final_vectors(other), vectors)
    torch.testing.assert_close(toys.logits(other), toys.logits(made), rtol=0, atol=0)
    with pytest.raises(ModelError, match=r"learned positions do not fit the model; found \(5, "):
        put_vectors(other, vectors[:5])


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_and_all_names_stay_those_of_the_plain_model(tied: bool) -> None:
    plain, made = toys.model(tied=tied), toys.model(tied=tied)
    adapt(made, toys.config(method="prompt", also=["norms"]))
    names = {name.replace(".base.", ".") for name, _ in made.named_parameters() if ".vectors." not in name}
    assert names == {name for name, _ in plain.named_parameters()}
    assert torch.equal(made.head_weight, plain.head_weight) and made.head_weight.shape == (toys.SIZE.vocab_size, 32)
    toys.logits(made).square().mean().backward()
    kinds = {name for name, parameter in made.named_parameters() if parameter.grad is not None}
    assert {name for name in kinds if "norm" not in name} == {"model.embed_tokens.vectors.weight"} and len(kinds) == 6


@all_kinds
def test_a_copy_of_the_model_has_learned_positions_of_its_own(values: dict[str, Any]) -> None:
    made = tuned(values)
    twin = copy.deepcopy(made)
    torch.testing.assert_close(toys.logits(twin), toys.logits(made), rtol=0, atol=0)
    toys.shake(made)
    assert not torch.allclose(toys.logits(twin), toys.logits(made), atol=1e-3)
    toys.logits(twin).sum().backward()
    assert preamble_toys.vectors_of(twin).weight.grad is not None and preamble_toys.vectors_of(made).weight.grad is None


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"method": "prompt", "prompt": {"tokens": 128}}, "adapter.prompt.tokens; found 128; expected under 128"),
        ({"method": "p-tuning", "prompt": {"text": "a"}}, "adapter.prompt.text starts vectors that are learned themselves"),
        ({"method": "prefix", "prompt": {"text": "a", "hidden": 3}}, "adapter.prompt.text starts vectors"),
        ({"method": "prompt", "prompt": {"hidden": 3}}, "adapter.prompt.hidden=3 is the width of a network"),
        ({"method": "prefix", "prompt": {"network": "lstm"}}, "adapter.prompt.network=lstm is a network of p-tuning"),
    ],
)
def test_what_cannot_be_is_told_with_its_remedy(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        toys.adapted_model(**values)


def test_no_second_prompt_no_other_model_and_no_empty_text() -> None:
    made = toys.adapted_model(method="prompt")
    with pytest.raises(ConfigError, match="found a model that has 16 learned positions already"):
        adapt(made, toys.config(method="prefix"))
    with pytest.raises(ConfigError, match="found learned positions before Linear; expected a decoder"):
        adapt(nn.Linear(2, 2), toys.config(method="prompt"))
    with pytest.raises(ConfigError, match="adapter.prompt.text; found a text without tokens"):
        start_at(made, [])
    with pytest.raises(ConfigError, match="for vectors that a network makes"):
        start_at(toys.adapted_model(method="p-tuning"), [1])


def test_learned_positions_are_merged_into_nothing() -> None:
    made = toys.adapted_model(method="prompt")
    with pytest.raises(ModelError, match="16 learned positions cannot be merged into weights. Keep the adapter beside the model."):
        merge_in_place(made)


def tuned_algorithm(values: dict[str, Any]) -> Any:
    algorithm = toy_algorithm(rows=2)
    torch.manual_seed(4)
    adapt(algorithm.model, toys.config(**values, also=["layers.1.input_layernorm.weight"]))
    return algorithm


@two_kinds
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_changes_what_is_learned_alone_whatever_is_kept_of_activations(
    values: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    found = []
    for activations in ("none", "selective", "full"):
        algorithm = tuned_algorithm(values)
        before = copy.deepcopy(algorithm.model.state_dict())
        fit(algorithm, toy_config(steps=3, precision=precision, activations=activations), tmp_path / activations)
        after = algorithm.model.state_dict()
        assert {name for name in after if not torch.equal(before[name], after[name])} == {
            name for name, parameter in algorithm.model.named_parameters() if parameter.requires_grad
        }
        found.append(final_vectors(algorithm.model))
    assert all(torch.equal(found[0], other) for other in found[1:])


@two_kinds
def test_a_stopped_run_that_goes_on_ends_in_the_same_bits(values: dict[str, Any], tmp_path: Path) -> None:
    config = toy_config(steps=4, checkpoint={"every_steps": 1})
    whole, broken, rest = (tuned_algorithm(values) for _ in range(3))
    result = fit(whole, config, tmp_path / "whole")
    batches = broken.batches

    def two(state: dict[str, Any] | None) -> Iterator[Any]:
        yield from itertools.islice(batches(state), 2)
        raise RuntimeError("stop")

    broken.batches = two
    with pytest.raises(RuntimeError, match="stop"):
        fit(broken, config, tmp_path / "parts")
    assert fit(rest, config, tmp_path / "parts").loss == result.loss
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, rest.model.state_dict()[name]), name
