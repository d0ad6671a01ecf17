"""Compiled layers: the same losses and gradients, only where gradients are taken, decided by the work of a run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from luyen.core.errors import ConfigError
from luyen.engine import compiling
from luyen.engine.activations import Activations, recomputed
from luyen.engine.compiling import compiled, worth
from luyen.engine.precision import autocast
from luyen.engine.trainer import fit
from luyen.models.attention import Layout
from luyen.models.transformer import Transformer
from luyen.objectives.language_model import linear_cross_entropy
from tests.training_toys import VOCABULARY, toy_algorithm, toy_config, toy_model

CPU = torch.device("cpu")


def test_auto_decides_by_the_work_of_the_whole_run() -> None:
    enough = compiling.WORTH["cpu"]
    assert not worth("auto", None, CPU, False)
    assert not worth("auto", enough * 0.99, CPU, False)
    assert worth("auto", enough, CPU, False)
    assert not worth("auto", enough, CPU, True)
    assert not worth("never", enough, CPU, False)
    assert worth("always", None, CPU, False)
    assert not worth("auto", 1e30, torch.device("mps"), False)


def test_always_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="split over processes"):
        worth("always", None, CPU, True)
    with pytest.raises(ConfigError, match="activations=selective"):
        worth("always", None, CPU, False, "selective")
    assert worth("always", None, CPU, False, "full") and worth("auto", 1e30, CPU, False, "offload")
    assert not worth("auto", 1e30, CPU, False, "selective")
    with pytest.raises(ConfigError, match="mps"):
        worth("always", None, torch.device("mps"), False)
    with pytest.raises(ConfigError, match="no list of layers"), compiled(nn.Linear(2, 2), True):
        pass
    monkeypatch.setattr(compiling, "missing_compiler", lambda device: "no C++ compiler was found")
    assert not worth("auto", 1e30, CPU, False)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler"):
        worth("always", None, CPU, False)


def gradients(model: Transformer, tokens_T: torch.Tensor, layout: Layout) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    hidden_TD = model(tokens_T[None], layout)[0]
    loss = linear_cross_entropy(hidden_TD, model.head_weight, tokens_T.roll(-1))
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


VARIANT = {"qkv_bias": True, "qk_norm": "head", "window": 5, "experts": {"count": 3, "per_token": 2, "shared_size": 8, "balance": 0.5}}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_mixture_has_the_same_gradients_and_its_routers_are_heard() -> None:
    algorithm = toy_algorithm(variant=VARIANT)
    torch._dynamo.reset()
    stream = algorithm.batches(None)
    for _ in range(3):
        found = []
        batch = next(stream)[0]
        for fast in (False, True):
            algorithm.model.zero_grad()
            with compiled(algorithm.model, fast):
                loss = algorithm.loss(batch)
                loss.total.backward()
            found.append({name: parameter.grad.clone() for name, parameter in algorithm.model.named_parameters()})
            assert loss.metrics.keys() == {"load_balance"}
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler warns of itself, and hides it only where warnings are no errors
def test_compiled_layers_have_the_same_gradients_for_every_layout_with_few_compilations() -> None:
    model = toy_model()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for lengths in ((5, 9), (14,), (3, 3, 3), (7, 1, 20, 2)):
        layout = Layout.packed(lengths)
        tokens_T = torch.randint(VOCABULARY, (sum(lengths),))
        loss, plain = gradients(model, tokens_T, layout)
        with compiled(model, True):
            fast_loss, fast = gradients(model, tokens_T, layout)
            with torch.no_grad():
                untrained_TD = model(tokens_T[None], layout)
        with torch.no_grad():
            torch.testing.assert_close(untrained_TD, model(tokens_T[None], layout), rtol=0, atol=0)
        assert fast_loss == pytest.approx(loss, rel=1e-6)
        for name, gradient in plain.items():
            torch.testing.assert_close(fast[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert "forward" not in vars(model.model.layers[0])
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs <= 8, f"{graphs} graphs: layers or layouts do not share their compilation"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("mode", ["full", "offload"])
def test_compiled_layers_may_be_computed_again_or_kept_on_the_host(mode: Activations, half: bool) -> None:
    """Also where lengths come back, so that several compilations of a layer fit: the second time must take the one of the first."""
    model = toy_model()
    cases = [Layout.packed(lengths) for lengths in ((5, 9), (14,), (3, 3, 3), (7, 1, 20, 2), (14,), (9, 5), (5, 9))]
    inputs = [torch.randint(VOCABULARY, (sum(layout.lengths),)) for layout in cases]
    torch._dynamo.reset()
    with autocast(CPU, torch.bfloat16 if half else torch.float32):
        plain = [gradients(model, tokens_T, layout) for tokens_T, layout in zip(inputs, cases, strict=True)]
        with compiled(model, True), recomputed(model, mode):
            fast = [gradients(model, tokens_T, layout) for tokens_T, layout in zip(inputs, cases, strict=True)]
    for (loss, expected), (fast_loss, found) in zip(plain, fast, strict=True):
        assert fast_loss == pytest.approx(loss, rel=1e-3 if half else 1e-6)
        for name, gradient in expected.items():
            limit = (0.05 if half else 1e-4) * float(gradient.abs().max())
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=limit, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = toy_config(compile="always", checkpoint={"every_steps": 4})
    whole = toy_algorithm()
    fit(whole, config, tmp_path / "whole")
    plain = toy_algorithm()
    assert fit(plain, toy_config(), tmp_path / "plain").loss == pytest.approx(fit_loss(tmp_path / "whole"), rel=1e-4)
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step-00000008")
    rows = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    again = toy_algorithm()
    torch._dynamo.reset()
    fit(again, config, tmp_path / "whole")
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == rows
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def fit_loss(folder: Path) -> float:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float([row["loss"] for row in rows if "loss" in row][-1])
