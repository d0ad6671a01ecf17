"""Products in 8-bit floats: where they are refused, what is converted, that all is as before afterwards, and a run in emulation.

A stand-in for torchao rounds weights and inputs to e4m3, so that the transform is tested where the package is not installed.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from training_toys import toy_algorithm, toy_config, toy_model

from luyen.core.device import pick_dtype
from luyen.core.errors import ConfigError
from luyen.engine import fp8, rate_finder, trainer
from luyen.engine.fp8 import check, trained_in_fp8
from luyen.engine.parallel import plan
from luyen.engine.trainer import fit

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_heads": 4, "num_kv_heads": 2}
"""Of a layer's seven linear maps all but those of the feed-forward part, of 40, fit."""


class Rounded(nn.Linear):
    """A linear map of numbers rounded to e4m3."""

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(rounded(hidden), rounded(self.weight.to(hidden.dtype)))


def rounded(tensor: Tensor) -> Tensor:
    return tensor + (tensor.detach().to(torch.float8_e4m3fn).to(tensor.dtype) - tensor.detach())


def convert(model: nn.Module, *, module_filter_fn: Callable[[nn.Module, str], bool], config: Any) -> None:
    """Swap modules as torchao does."""
    assert config.emulate and config.pad_inner_dim
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and module_filter_fn(child, name):
                with torch.device("meta"):
                    made = Rounded(child.in_features, child.out_features, bias=False)
                made.weight = child.weight
                setattr(parent, name, made)


STANDIN = SimpleNamespace(convert_to_float8_training=convert, Float8LinearConfig=lambda **values: SimpleNamespace(**values))


@pytest.fixture(params=["stand-in", "torchao"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both libraries, and a run that emulates on the CPU."""
    if request.param == "stand-in":
        monkeypatch.setattr(fp8, "_library", lambda: STANDIN)
    elif importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    for module in (trainer, rate_finder):
        monkeypatch.setattr(module, "check_fp8", lambda *_: None)
        monkeypatch.setattr(module, "trained_in_fp8", functools.partial(trained_in_fp8, emulate=True))


def test_a_device_without_such_products_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for start in (lambda config: fit(toy_algorithm(), config, tmp_path), lambda config: rate_finder.find(toy_algorithm(), config)):
        with pytest.raises(ConfigError, match=r"train.precision; found fp8 on cpu; expected a GPU of compute capability 8.9 or more. Set"):
            start(toy_config(precision="fp8"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(ConfigError, match="found fp8 on cuda of compute capability 8.6; expected"):
        check(GPU, 1)
    for capability in ((8, 9), (9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        check(GPU, 1)
    with pytest.raises(ConfigError, match="train.precision with train.parallel.tensor; found fp8"):
        check(GPU, 2)
    assert pick_dtype("fp8", GPU) == torch.bfloat16


def test_what_lacks_the_package_or_fitting_sizes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (toy_model(hidden_size=24, num_heads=3, num_kv_heads=1), nn.Linear(16, 16)):
        with pytest.raises(ConfigError, match="multiples of 16"), trained_in_fp8(model, True):
            pass
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ConfigError, match=r'torchao is not installed. Type: pip install "\.\[fp8\]"'), trained_in_fp8(toy_model(), True):
        pass


def test_only_fitting_maps_of_the_layers_are_converted_and_only_where_trained(library: None) -> None:
    model = toy_model(**SIZES, tied=False)
    before, weights = list(model.modules()), dict(model.named_parameters())
    tokens = torch.arange(11)[None]  # a number of tokens that nothing divides
    trained = model(tokens)
    with torch.no_grad():
        plain = model(tokens)
    with trained_in_fp8(model, True, emulate=True):
        changed = [name for name, module in model.named_modules() if module not in before]
        assert sorted(changed) == [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "koqv"]
        assert dict(model.named_parameters()).keys() == weights.keys()
        with torch.no_grad():
            assert torch.equal(model(tokens), plain), "what is evaluated is the plain model"
        found = model(tokens)
        difference = float((found - trained).detach().abs().max() / trained.detach().abs().max())
        assert 1e-4 < difference < 0.2, difference
        found.square().sum().backward()
    assert list(model.modules()) == before
    assert all(after is weights[name] and after.grad is not None for name, after in model.named_parameters() if "lm_head" not in name)
    assert torch.equal(model(tokens), trained)


def test_experts_and_their_router_stay_as_they_are() -> None:
    variant = {"qkv_bias": True, "experts": {"count": 16, "per_token": 2, "intermediate_size": 32, "shared_size": 16}}
    model = toy_model(**SIZES, num_layers=1, variant=variant)
    assert [name for _, name, _ in fp8._linears(model)] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_a_run_learns_as_in_bf16_and_goes_on_to_the_same_bits(library: None, tmp_path: Path) -> None:
    losses, config = {}, toy_config(precision="fp8", steps=30, checkpoint={"every_steps": 10, "keep_last": 3}, activations="full")
    for name, settings in {"bf16": toy_config(precision="bf16", steps=30), "fp8": config}.items():
        algorithm = toy_algorithm(**SIZES)
        losses[name] = fit(algorithm, settings, tmp_path / name).loss
    assert losses["fp8"] == pytest.approx(losses["bf16"], rel=0.05) and losses["fp8"] != losses["bf16"]
    assert {type(module) for module in algorithm.model.modules() if isinstance(module, nn.Linear)} == {nn.Linear}
    stored = load_file(tmp_path / "fp8" / "checkpoints" / "step-00000030" / "model.safetensors")
    assert stored.keys() == algorithm.model.state_dict().keys() and {tensor.dtype for tensor in stored.values()} == {torch.float32}
    shutil.rmtree(tmp_path / "fp8" / "checkpoints" / "step-00000030")
    again = toy_algorithm(**SIZES)
    fit(again, config, tmp_path / "fp8")
    assert all(torch.equal(tensor, again.model.state_dict()[name]) for name, tensor in algorithm.model.state_dict().items())
    rate_finder.find(again, config, steps=5)
    assert {type(module) for module in again.model.modules() if isinstance(module, nn.Linear)} == {nn.Linear}


def test_slices_go_with_it(library: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "check_offload", lambda *_: None)
    losses = []
    for parallel in ({}, {"offload": True}):
        algorithm = toy_algorithm(**SIZES)
        losses.append(fit(algorithm, toy_config(precision="fp8", parallel=parallel), tmp_path / str(len(losses))).loss)
        assert all(type(weight) is nn.Parameter and weight.dtype == torch.float32 for weight in algorithm.model.parameters())
        assert {type(module) for module in algorithm.model.modules() if isinstance(module, nn.Linear)} == {nn.Linear}
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
