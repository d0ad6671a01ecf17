"""Slices of weights in half precision and in the host's memory: what autograd keeps, what is refused, and runs equal to the plain ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from curves import BASE, differences, layout, result
from parallel_driver import main_jobs
from safetensors.torch import load_file
from torch.distributed.fsdp import OffloadPolicy
from torch.distributed.tensor import DTensor
from training_toys import toy_algorithm, toy_config, toy_model

from luyen.core.errors import ConfigError
from luyen.engine import export
from luyen.engine.config import ParallelConfig
from luyen.engine.parallel import plan, shard
from luyen.engine.parallel.mesh import Shape, alone
from luyen.engine.parallel.plan import Parallel, check_offload
from luyen.engine.parallel.tensors import local
from luyen.engine.precision import autocast
from luyen.engine.trainer import fit

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HALF: dict[str, Any] = {**BASE, "precision": "bf16"}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host be where it is of no use, as there is no GPU here."""
    monkeypatch.setattr(plan, "check_offload", lambda *_: None)


def test_the_host_is_refused_where_it_is_of_no_use() -> None:
    with pytest.raises(ConfigError, match=r"train.parallel.offload; found device cpu; expected a GPU"):
        Parallel(toy_config(parallel={"offload": True}))
    for axes in ({"tensor": 2}, {"context": 2}, {"pipeline": 2}, {"data": 2}):
        shape = Shape.of(ParallelConfig(offload=True, **axes), 2)
        with pytest.raises(ConfigError, match="expected shard, or shard and data, or one process"):
            check_offload(shape, 2, GPU)
    check_offload(Shape.of(ParallelConfig(offload=True), 1), 1, GPU)


def test_slices_need_the_group_that_a_training_run_makes(on_cpu: None) -> None:
    with pytest.raises(ConfigError, match="learning-rate test"):
        Parallel(toy_config(parallel={"offload": True}))


def test_the_optimizer_must_work_on_slices(on_cpu: None) -> None:
    with pytest.raises(ConfigError, match="optimizer.name with train.parallel.offload; found muon"):
        Parallel(toy_config(parallel={"offload": True}, optimizer={"name": "muon"}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_are_gathered_in_the_runs_type_and_no_copy_of_them_is_kept(on_cpu: None, precision: str) -> None:
    config, model = toy_config(parallel={"offload": True}, precision=precision), toy_model()
    kinds_before = [type(module) for module in model.modules()]
    sizes = {weight.shape for weight in model.model.layers.parameters() if weight.ndim == 2}
    with alone(True):
        parallel = Parallel(config)
        model = parallel.place(model)
        kinds: list[torch.dtype] = []
        layer = model.model.layers[1]
        layer.register_forward_pre_hook(lambda *_: kinds.extend(weight.dtype for weight in layer.parameters()))
        saved: list[torch.Tensor] = []
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        keep = torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor)
        with keep, autocast(CPU, dtype):
            hidden = model(torch.arange(12)[None])
        held = [tensor for tensor in saved if tensor.shape in sizes or tensor.shape[::-1] in sizes]
        assert set(kinds) == {dtype} and model.head_weight.dtype == torch.float32 and hidden.dtype == dtype
        assert held and all(not tensor.untyped_storage().size() for tensor in held), "what is kept of a weight is what was dropped"
        hidden.sum().backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        assert gradients and all(isinstance(found, DTensor) and local(found).dtype == torch.float32 for found in gradients)
        parallel.release(model)
    assert all(type(weight) is torch.nn.Parameter and weight.dtype == torch.float32 for weight in model.parameters())
    assert [type(module) for module in model.modules()] == kinds_before


def test_a_run_with_its_slices_on_the_host_has_the_bits_of_one_without(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Weights and log, with clipped gradients and several micro-batches; a checkpoint of it goes on without slices."""
    settings: dict[str, Any] = {"accumulation": 2, "optimizer": {"learning_rate": 1e-2, "clip_norm": 0.1}}
    host = {**settings, "parallel": {"offload": True}}

    def trained(name: str, **values: Any) -> dict[str, torch.Tensor]:
        algorithm = toy_algorithm()
        fit(algorithm, toy_config(**values), tmp_path / name)
        return algorithm.model.state_dict()

    found = {"plain": trained("plain", **settings), "host": trained("host", **host)}
    trained("moved", **host, watch={"stop_tokens": 200})
    found["moved"] = trained("moved", **settings)
    monkeypatch.setattr(shard, "CPUOffloadPolicy", lambda pin_memory: OffloadPolicy())
    found["device"] = trained("device", **host)
    logs = {name: (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8") for name in found}
    assert logs["host"] == logs["device"]
    for key, tensor in found["plain"].items():
        assert torch.equal(found["host"][key], found["device"][key])
        torch.testing.assert_close(found["host"][key], tensor, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["moved"][key], tensor, rtol=1e-4, atol=1e-5)
    for one, other in zip(*(map(json.loads, logs[name].splitlines()) for name in ("plain", "moved")), strict=True):
        assert all(one[key] == pytest.approx(other[key], rel=1e-5) for key in one if key != "noise_scale")


JOBS: dict[str, dict[str, Any]] = {
    "shard": {"config": {**HALF, "parallel": {"shard": 2}}},
    "again": {"config": {**HALF, "activations": "selective", "parallel": {"shard": 2}}},
    "stopped": {"config": {**HALF, "parallel": {"shard": 2}}, "signal": {"rank": 1, "nth": 5, "name": "SIGTERM"}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, train: Any) -> Path:
    """Runs in bf16 in two processes, one of them stopped, and their equals in this one, in bf16 and in fp32."""
    folder = tmp_path_factory.mktemp("half")
    done = train(2, folder, copy.deepcopy(JOBS), timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    done = train(2, folder, {"stopped": copy.deepcopy(JOBS["shard"])}, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    main_jobs([{"folder": str(folder / "one"), "config": HALF}, {"folder": str(folder / "single"), **layout()}])
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_in_half_precision_are_as_near_to_fp32_as_one(root: Path) -> None:
    whole, split, between = (differences(root / a, root / b) for a, b in (("single", "one"), ("single", "shard"), ("one", "shard")))
    for figure in ("loss", "mean", "gradient_norm", "gradients"):
        assert split[figure] < 1.6 * whole[figure], (figure, split, whole)
    assert between["loss"] < 1e-3 and between["gradients"] < 5e-3, between
    assert set(differences(root / "shard", root / "again").values()) == {0.0}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_run_goes_on_to_the_same_bits_and_its_checkpoint_is_fp32(root: Path) -> None:
    assert set(differences(root / "shard", root / "stopped").values()) == {0.0}
    assert result(root / "stopped")["loss"] == result(root / "shard")["loss"]
    weights = load_file(root / "shard" / "weights.safetensors")
    exported = export.model_of(export.find(root / "shard" / "checkpoints" / "step-00000020")).state_dict()
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, weights[name]) for name, tensor in exported.items())
