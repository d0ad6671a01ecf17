"""Pretraining and SFT: the first loss, packing against padding, what is trained on, and that one batch can be learnt by heart."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from training_toys import VOCABULARY, toy_algorithm, toy_config, toy_model, toy_samples
from transformers import AutoModelForCausalLM

from luyen.algorithms.pretrain import Pretrain
from luyen.algorithms.sft import SFT
from luyen.data.loader import PackedStream, collate
from luyen.data.samples import Sample
from luyen.engine.activations import recomputed
from luyen.engine.trainer import fit
from luyen.models import hf
from luyen.models.presets import preset
from luyen.models.transformer import Transformer

ALGORITHMS = [Pretrain, SFT]


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def padded_loss(model, samples):
    """The same samples as rows padded on the right, by plain attention and torch's cross entropy, summed."""
    width = max(len(sample.tokens) for sample in samples)
    tokens_BT, targets_BT = torch.zeros(len(samples), width, dtype=torch.int64), torch.full((len(samples), width), -100)
    for row, sample in enumerate(samples):
        tokens_BT[row, : len(sample.tokens)] = torch.from_numpy(sample.tokens.astype(np.int64))
        targets_BT[row, : len(sample.tokens)] = torch.from_numpy(sample.targets.astype(np.int64))
    logits_BTV = model.logits(model(tokens_BT))
    return functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="sum")


@pytest.mark.parametrize("algorithm_class", ALGORITHMS)
@pytest.mark.parametrize("tied", [True, False])
def test_packed_is_padded(algorithm_class, tied):
    samples = toy_samples(7)
    model = toy_model(tied=tied)
    loss = algorithm_class(model, None).loss(collate(samples))
    loss.total.backward()
    packed = gradients(model)
    model.zero_grad()
    reference = padded_loss(model, samples)
    reference.backward()
    assert loss.count == sum(sample.num_targets for sample in samples)
    assert loss.total.item() == pytest.approx(reference.item(), rel=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm_class", ALGORITHMS)
def test_a_batch_is_the_sum_of_its_samples(algorithm_class):
    samples, model = toy_samples(6), toy_model()
    algorithm = algorithm_class(model, None)
    together = algorithm.loss(collate(samples)).total.item()
    assert together == pytest.approx(sum(algorithm.loss(collate([sample])).total.item() for sample in samples), rel=1e-6)
    assert together == pytest.approx(algorithm.loss(collate(samples[::-1])).total.item(), rel=1e-6)


def test_an_answer_alone_is_trained_and_the_prompt_still_read():
    """Changing a prompt's targets changes nothing; changing its tokens changes the loss of the answer."""
    tokens, targets = np.arange(1, 9, dtype=np.int32), np.arange(2, 10, dtype=np.int32)
    masked = np.where(np.arange(8) < 5, -100, targets).astype(np.int32)
    algorithm = SFT(toy_model(), None)

    def loss(ids):
        return algorithm.loss(collate([Sample("s", ids, masked)]))

    other = tokens.copy()
    other[0] = 40
    assert loss(tokens).count == 3
    assert loss(tokens).total.item() != loss(other).total.item()
    full = algorithm.loss(collate([Sample("s", tokens, targets)])).total.item()
    prompt = np.where(np.arange(8) < 5, targets, -100).astype(np.int32)
    assert loss(tokens).total.item() == pytest.approx(full - algorithm.loss(collate([Sample("s", tokens, prompt)])).total.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["llama-1m", "llama-3m"])
def test_the_first_loss_is_ln_of_the_vocabulary(name):
    """A model that knows nothing gives every token the same chance."""
    torch.manual_seed(0)
    vocabulary = 4096
    model = Transformer(preset(name, vocabulary))
    generator = np.random.default_rng(0)
    ids = generator.integers(vocabulary, size=(4, 65)).astype(np.int32)
    batch = collate([Sample(str(row), ids[row, :-1], ids[row, 1:]) for row in range(4)])
    with torch.no_grad():
        loss = Pretrain(model, None).loss(batch)
    assert loss.total.item() / loss.count == pytest.approx(math.log(vocabulary), abs=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_one_batch_is_learnt_by_heart(tmp_path, optimizer):
    """Loss below 0.01 on four samples within 300 steps."""
    generator = np.random.default_rng(1)
    ids = generator.permuted(np.tile(np.arange(VOCABULARY), (4, 1)), axis=1)[:, :17].astype(np.int32)
    ids[:, 0] = np.arange(4)  # otherwise the first target would be a guess
    samples = [Sample(str(row), ids[row, :-1], ids[row, 1:]) for row in range(4)]
    algorithm = Pretrain(toy_model(hidden_size=32), PackedStream(samples, capacity=16, rows=4, seed=0))
    values = {"name": optimizer, "learning_rate": 1e-2, "weight_decay": 0.0}
    result = fit(algorithm, toy_config(steps=300, optimizer=values, checkpoint={"every_steps": 300}), tmp_path)
    assert result.loss < 0.01


def test_sft_continues_pretraining_with_the_same_sum():
    """Equal targets give equal losses: what differs between the two is the data."""
    batch = next(toy_algorithm().batches(None))[0]
    model = toy_model()
    assert torch.equal(Pretrain(model, None).loss(batch).total, SFT(model, None).loss(batch).total)


def test_the_loss_of_each_source_is_its_own_mean_and_changes_nothing(tmp_path):
    """Two sources in one stream: the logged means against each source's samples alone, and the same weights as without them."""
    made = {
        name: [Sample(f"{name}:{index}", s.tokens, s.targets) for index, s in enumerate(toy_samples(20, seed))]
        for seed, name in enumerate("ab")
    }
    samples = [sample for pair in zip(*made.values(), strict=True) for sample in pair]

    def algorithm(sources):
        return SFT(toy_model(), PackedStream(samples, capacity=32, rows=2, seed=0), sources)

    batches = [batch for batch, _ in zip(algorithm(()).batches(None), range(3), strict=False)]
    by_id = {sample.id: sample for sample in samples}
    model = toy_model()
    expected = {}
    for name in made:
        own = [by_id[identifier] for batch, _ in batches for identifier in batch.sample_ids if identifier.startswith(name)]
        expected[f"loss_{name}"] = pytest.approx(padded_loss(model, own).item() / sum(sample.num_targets for sample in own), rel=1e-5)
    rows = []
    for sources in ("ab", ""):
        fit(algorithm(sources), toy_config(steps=2, accumulation=3), tmp_path / f"with-{sources}")
        rows.append([json.loads(line) for line in (tmp_path / f"with-{sources}" / "metrics.jsonl").read_text().splitlines()])
    assert {name: rows[0][0][name] for name in expected} == expected
    assert [{key: value for key, value in row.items() if key not in expected} for row in rows[0]] == rows[1]
    weights = [(tmp_path / f"with-{sources}/checkpoints/step-00000002/model.safetensors").read_bytes() for sources in ("ab", "")]
    assert weights[0] == weights[1]
    piece = batches[0][0].share(1, 2)
    assert sum(piece.trained) == piece.num_targets and len(piece.trained) == len(piece.sample_ids)


def experts(**changes):
    """A toy whose router has learnt to prefer some experts."""
    model = toy_model(variant={"experts": {"count": 4, "per_token": 2, **changes}})
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(3))
    return model


@pytest.mark.parametrize("algorithm_class", ALGORITHMS)
def test_the_balance_of_experts_stands_beside_the_loss(algorithm_class, tmp_path):
    """Loss and gradient are those of transformers with `output_router_logits`, whose loss is a mean over the targets."""
    model, sample = experts(balance=0.3), toy_samples(3)[2]
    hf.save(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    targets = torch.from_numpy(sample.targets.astype(np.int64))[None]
    output = theirs(torch.from_numpy(sample.tokens.astype(np.int64))[None], labels=targets, shift_labels=targets, output_router_logits=True)
    output.loss.backward()
    loss = algorithm_class(model, None).loss(collate([sample]))
    (loss.total / loss.count).backward()
    assert (loss.total / loss.count).item() == pytest.approx(output.loss.item(), rel=1e-5)
    total, count = loss.metrics["load_balance"]
    assert count == loss.count and total.item() / count == pytest.approx(output.aux_loss.item(), rel=1e-5)
    for name in ("embed_tokens.weight", "layers.0.mlp.gate.weight", "layers.1.mlp.gate.weight", "layers.0.self_attn.q_proj.weight"):
        ours, other = model.model.get_parameter(name).grad, theirs.model.get_parameter(name).grad
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=2e-6)


def test_sources_and_balance_are_both_logged():
    samples = [Sample(f"one:{number}", sample.tokens, sample.targets) for number, sample in enumerate(toy_samples(3))]
    assert SFT(experts(), None, ["one"]).loss(collate(samples)).metrics.keys() == {"load_balance", "loss_one"}
    assert SFT(toy_model(), None).loss(collate(samples)).metrics == {}


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_a_recomputed_mixture_has_the_same_gradients(mode):
    """What was heard of a router inside a layer that is computed again still leads back to its weights."""
    model, batch = experts(balance=0.3), collate(toy_samples(5))
    found = []
    for activations in ("none", mode):
        model.zero_grad()
        with recomputed(model, activations):
            Pretrain(model, None).loss(batch).total.backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name


def test_training_balances_experts(tmp_path):
    """With a large coefficient the load ends more even than with none, and each step's row says how even it was: 1 is even."""
    ends = []
    for balance in (0.0, 3.0):
        model = experts(balance=balance, per_token=1)
        fit(Pretrain(model, PackedStream(toy_samples(), capacity=32, rows=2, seed=0)), toy_config(steps=40), tmp_path / str(balance))
        rows = [json.loads(line) for line in (tmp_path / str(balance) / "metrics.jsonl").read_text().splitlines()]
        ends.append(np.mean([row["load_balance"] for row in rows if "loss" in row][-10:]))
    assert ends[1] - 1 < 0.6 * (ends[0] - 1), ends
