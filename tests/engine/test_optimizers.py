"""Adafactor, Lion, SGD and 8-bit AdamW against formulas and torch, and that every optimizer goes on from a checkpoint to the bit."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_toys import toy_algorithm, toy_config, toy_model

from luyen.core import interrupt
from luyen.core.errors import ConfigError, Interrupted
from luyen.engine import checkpoint, eight_bit
from luyen.engine.adafactor import Adafactor
from luyen.engine.config import OptimizerConfig
from luyen.engine.lion import Lion
from luyen.engine.optim import build, set_learning_rate, split_parameters
from luyen.engine.sgd import SGD
from luyen.engine.trainer import fit

NAMES = ["adamw", "adamw8bit", "muon", "adafactor", "lion", "sgd"]
SHAPES = [(6, 4), (5,), (2, 3, 4)]


def gradients(steps, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def follow(optimizer, parameter, given, rates=None):
    """Take one step for each gradient, each at its own rate."""
    for number, gradient in enumerate(given):
        if rates:
            set_learning_rate([optimizer], rates[number])
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach().clone()


@pytest.mark.parametrize("shape", SHAPES)
def test_adafactor_is_algorithms_4_and_5_of_the_paper(shape):
    """Row and column sums in float64, as the paper writes them; decay 0.5 of the rate beside it."""
    weights, rates = torch.ones(shape), [0.1, 0.05, 0.02, 0.01]
    theory = weights.double()
    row = column = whole = 0.0
    given = gradients(4, shape)
    given[2] *= 100  # this update is clipped
    for t, (gradient, rate) in enumerate(zip(given, rates, strict=True), start=1):
        beta = 1 - t**-0.8
        square = gradient.double() ** 2 + 1e-30
        if len(shape) == 1:
            second = whole = beta * whole + (1 - beta) * square
        else:
            row = beta * row + (1 - beta) * square.sum(-1, keepdim=True)
            column = beta * column + (1 - beta) * square.sum(-2, keepdim=True)
            second = row @ column / row.sum(-2, keepdim=True)
        update = gradient.double() / second.sqrt()
        update = update / max(1.0, update.square().mean().sqrt().item())
        theory = theory * (1 - rate * 0.5) - rate * update
    found = follow(Adafactor([weights], lr=1.0, weight_decay=0.5), weights, given, rates)
    torch.testing.assert_close(found, theory.float(), rtol=1e-5, atol=1e-6)


def test_adafactor_is_torchs_at_the_rate_that_torch_makes_of_its_own():
    """torch multiplies the rate by the root mean square of the weights; given that product, the updates are the same."""
    ours = torch.randn((8, 12), generator=torch.Generator().manual_seed(1))
    theirs = ours.clone()
    mine, torchs = Adafactor([ours], lr=1.0), torch.optim.Adafactor([theirs], lr=0.02, eps=(1e-15, 1e-3), weight_decay=0.0, d=1.0)
    for gradient in gradients(5, (8, 12)):
        set_learning_rate([mine], 0.02 * theirs.square().mean().sqrt().item())
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        torchs.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adafactor_keeps_a_row_and_a_column():
    matrix, vector = torch.zeros(64, 32), torch.zeros(7)
    optimizer = Adafactor([matrix, vector], lr=0.1)
    matrix.grad, vector.grad = torch.ones(64, 32), torch.ones(7)
    optimizer.step()
    assert {key: tuple(value.shape) for key, value in optimizer.state[matrix].items() if key != "step"} == {
        "row": (64, 1),
        "column": (1, 32),
    }
    assert optimizer.state[vector]["square"].shape == (7,) and optimizer.state[vector]["step"] == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_lion_is_algorithm_2_of_the_paper(shape):
    weights, rates = torch.ones(shape), [0.1, 0.05, 0.02]
    theory, memory = weights.double(), torch.zeros(shape, dtype=torch.float64)
    for gradient, rate in zip(gradients(3, shape), rates, strict=True):
        direction = (0.8 * memory + 0.2 * gradient.double()).sign()
        theory = theory - rate * (direction + 0.5 * theory)
        memory = 0.95 * memory + 0.05 * gradient.double()
    found = follow(Lion([weights], lr=1.0, betas=(0.8, 0.95), weight_decay=0.5), weights, gradients(3, shape), rates)
    torch.testing.assert_close(found, theory.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum, nesterov", [(0.9, True), (0.9, False), (0.0, True)])
def test_sgd_is_torchs_without_decay(momentum, nesterov):
    ours, theirs = torch.ones(6, 4), torch.ones(6, 4)
    mine = SGD([ours], lr=0.1, momentum=momentum, nesterov=nesterov)
    torchs = torch.optim.SGD([theirs], lr=0.1, momentum=momentum, nesterov=nesterov and momentum > 0)
    rates = [0.1, 0.05, 0.2]
    found, expected = (follow(one, which, gradients(3, (6, 4)), rates) for one, which in ((mine, ours), (torchs, theirs)))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert bool(mine.state[ours]) == (momentum > 0)


def test_the_decay_of_sgd_does_not_go_through_its_momentum():
    weights = torch.full((2, 2), 8.0)
    found = follow(SGD([weights], lr=0.5, momentum=0.9, weight_decay=1.0), weights, [torch.zeros(2, 2)] * 3)
    assert found.tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_missing_moves_nothing(name):
    """Also while others move; and norms and embeddings do not decay whatever the optimizer."""
    model = toy_model(tied=False)
    optimizers = build(model, OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    still = model.model.layers[0].self_attn.q_proj.weight
    still.grad = None
    for optimizer in optimizers:
        optimizer.step()
    plain = {id(parameter) for parameter in split_parameters(model)[2]}
    for key, parameter in model.named_parameters():
        share = 1.0 if id(parameter) in plain or parameter is still else 0.95
        torch.testing.assert_close(parameter.detach(), before[key] * share, rtol=1e-5, atol=1e-7)


def test_8_bit_moments_are_near_adamw_and_embeddings_keep_32_bits():
    eight, full = toy_model(hidden_size=64, intermediate_size=96), toy_model(hidden_size=64, intermediate_size=96)
    optimizers = [build(eight, OptimizerConfig(name="adamw8bit")), build(full, OptimizerConfig(name="adamw"))]
    start = eight.model.layers[0].mlp.up_proj.weight.detach().clone()
    for step in range(4):
        for left, right in zip(eight.parameters(), full.parameters(), strict=True):
            left.grad = torch.randn(left.shape, generator=torch.Generator().manual_seed(step))
            right.grad = left.grad.clone()
        for optimizer in optimizers[0] + optimizers[1]:
            optimizer.step()
    state = checkpoint.optimizer_tensors(eight, optimizers[0])
    assert state["model.layers.0.mlp.up_proj.weight:state1"].dtype == torch.uint8
    assert state["model.embed_tokens.weight:exp_avg"].dtype == torch.float32
    weights = [model.model.layers[0].mlp.up_proj.weight.detach() for model in (eight, full)]
    assert (weights[0] - weights[1]).norm() < 0.1 * (weights[1] - start).norm()


def test_without_bitsandbytes_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"adamw8bit, but bitsandbytes is not installed\. Type: pip install \"\.\[qlora\]\""):
        build(toy_model(), OptimizerConfig(name="adamw8bit"))
    assert "kernels" not in sys.modules


def test_paged_moments_are_refused_without_a_cuda_device():
    with pytest.raises(ConfigError, match=r"paged-adamw8bit on cpu; expected a CUDA device.*Take adamw8bit") as told:
        build(toy_model(), OptimizerConfig(name="paged-adamw8bit"))
    assert "\n" not in str(told.value)


def test_on_a_cuda_device_the_librarys_paged_optimizer_is_made(monkeypatch):
    class Made(torch.optim.SGD):
        """Takes what the library's class takes, and no step."""

        def __init__(self, parameters, lr, betas, eps, weight_decay):
            super().__init__([nn.Parameter(torch.zeros(1))], lr=lr)
            self.told, self.paged = (parameters, lr, betas, eps, weight_decay), []

        def get_state_buffer(self, parameter, dtype):
            self.paged.append(parameter)
            return torch.zeros(400, 300, dtype=dtype)

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(PagedAdamW8bit=Made)))
    parameters = [SimpleNamespace(device=torch.device("cuda", 0))]
    config = OptimizerConfig(name="paged-adamw8bit", learning_rate=0.5, beta1=0.8, beta2=0.7, epsilon=1e-3, weight_decay=0.2)
    made = eight_bit.adamw8bit(parameters, config)
    assert made.told == (parameters, 0.5, (0.8, 0.7), 1e-3, 0.2)
    (own,) = made.param_groups[0]["params"]
    made.state[own] = {"state1": torch.ones(400, 300, dtype=torch.uint8)}
    made.step()
    assert made.paged == [own], "the moments of a checkpoint are paged before a step"


def test_moments_from_a_checkpoint_are_paged_again():
    """Large plain moments are copied into pages; pages, small moments and all else stay what they are."""

    def pages(parameter, dtype):
        made = torch.zeros(parameter.shape, dtype=dtype)
        made.is_paged = True
        return made

    large, paged, small = nn.Parameter(torch.zeros(400, 300)), nn.Parameter(torch.zeros(400, 300)), nn.Parameter(torch.zeros(8, 8))
    state = {
        parameter: {"step": 3, "state1": torch.full(parameter.shape, 7, dtype=torch.uint8), "absmax1": torch.ones(500)}
        for parameter in (large, paged, small)
    }
    state[paged]["state1"] = kept = pages(paged, torch.uint8)
    untouched = [(state[large]["absmax1"]), state[small]["state1"]]
    eight_bit.page(SimpleNamespace(state=state, get_state_buffer=pages))
    assert state[large]["state1"].is_paged and (state[large]["state1"] == 7).all() and state[large]["state1"].dtype == torch.uint8
    assert state[paged]["state1"] is kept and state[large]["absmax1"] is untouched[0] and state[small]["state1"] is untouched[1]


@pytest.mark.parametrize("name", ["adafactor", "lion", "sgd"])
def test_a_model_without_matrices_is_trained_as_well(name):
    norm = nn.LayerNorm(4)
    (optimizer,) = build(norm, OptimizerConfig(name=name))
    norm.weight.grad = torch.ones(4)
    optimizer.step()
    assert (norm.weight < 1).all() and torch.equal(norm.bias, torch.zeros(4))


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns_and_goes_on_to_the_bit(tmp_path, name):
    """A run that is stopped twice ends in the weights, the state and the log of one that is not."""
    rate = {"lion": 1e-3, "sgd": 0.5}.get(name, 1e-2)
    config = toy_config(steps=6, checkpoint={"every_steps": 2}, optimizer={"name": name, "learning_rate": rate})
    ends = []
    for folder, stops in ((tmp_path / "whole", ()), (tmp_path / "parts", (1, 3))):
        for stop in (*stops, None):
            algorithm = toy_algorithm(hidden_size=64, intermediate_size=96)  # matrices that are large enough for 8 bits
            if stop is not None:
                _interrupted(algorithm, config, folder, stop)
            else:
                fit(algorithm, config, folder)
        ends.append([path.read_bytes() for path in _files(folder)])
    assert len(ends[0]) == 3 and ends[0] == ends[1]
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def _files(folder):
    newest = folder / "checkpoints" / "step-00000006"
    return newest / "model.safetensors", newest / "optimizer.safetensors", folder / "metrics.jsonl"


def _interrupted(algorithm, config, folder, stop):
    """Fit until the signal that comes in step `stop` of this part."""
    plain, calls = algorithm.loss, []

    def loss(batch):
        calls.append(1)
        if len(calls) == stop:
            interrupt._handle(15, None)
        return plain(batch)

    algorithm.loss = loss
    with interrupt.listening(), pytest.raises(Interrupted):
        fit(algorithm, config, folder)
