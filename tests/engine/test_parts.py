"""The small parts of the engine: logs, loss scale, recomputed activations, energy."""

import json
import mmap
import resource
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_toys import toy_algorithm, toy_config

from luyen.core import progress
from luyen.core.errors import ConfigError
from luyen.engine import memory, rate_finder
from luyen.engine.activations import HostCopies, recomputed
from luyen.engine.compiling import compiled
from luyen.engine.energy import EnergyMeter
from luyen.engine.logs import LineLog
from luyen.engine.precision import LossScale, autocast
from luyen.engine.trainer import fit

CPU = torch.device("cpu")


def test_a_log_is_cut_back_to_the_length_asked_for(tmp_path):
    log = LineLog(tmp_path / "m.jsonl", 0)
    log.append({"step": 1, "text": "chào"})
    kept = log.length
    log.append({"step": 2})
    log.close()
    log = LineLog(tmp_path / "m.jsonl", kept)
    log.append({"step": 3})
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [1, 3]
    assert log.length == (tmp_path / "m.jsonl").stat().st_size


def test_a_log_shorter_than_the_checkpoint_says_so(tmp_path, capsys):
    progress.use(progress.Plain())
    (tmp_path / "m.jsonl").write_text("{}\n")
    log = LineLog(tmp_path / "m.jsonl", 100)
    assert log.length == 3 and "has 3 bytes" in capsys.readouterr().out
    log.close()


def test_a_log_refuses_nan(tmp_path):
    log = LineLog(tmp_path / "m.jsonl", 0)
    with pytest.raises(ValueError):
        log.append({"loss": float("nan")})
    log.close()


def test_loss_scale_halves_on_overflow_and_doubles_after_many_clean_steps():
    scale = LossScale.for_dtype(torch.float16)
    assert scale.scale == 65536
    assert scale.overflowed() and scale.scale == 32768
    for _ in range(LossScale.GROWTH_INTERVAL - 1):
        scale.updated()
    assert scale.scale == 32768
    scale.updated()
    assert (scale.scale, scale.clean_steps) == (65536, 0)


def test_loss_scale_gives_up_when_scaling_cannot_be_the_reason():
    scale = LossScale.for_dtype(torch.float16)
    while scale.overflowed():
        assert scale.scale >= LossScale.SMALLEST
    assert not LossScale.for_dtype(torch.bfloat16).overflowed()
    assert LossScale.for_dtype(torch.float32).scale == 1.0


def test_autocast_is_off_for_fp32():
    left = torch.ones(2, 2)
    with autocast(CPU, torch.float32):
        assert (left @ left).dtype == torch.float32
    with autocast(CPU, torch.bfloat16):
        assert (left @ left).dtype == torch.bfloat16


class Products(TorchDispatchMode):
    """Counts the products of two matrices."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function is torch.ops.aten.mm.default
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(("mode", "extra"), [("none", 0), ("selective", 0), ("full", 2), ("offload", 0)])
def test_recomputing_changes_no_bit_and_runs_layers_twice(mode, extra):
    algorithm = toy_algorithm()
    batch = next(algorithm.batches(None))[0]
    algorithm.loss(batch).total.backward()
    expected = {name: parameter.grad.clone() for name, parameter in algorithm.model.named_parameters()}
    algorithm.model.zero_grad()
    layers, calls = algorithm.model.model.layers, []
    handles = [layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1)) for layer in layers]
    with recomputed(algorithm.model, mode):
        algorithm.loss(batch).total.backward()
        with torch.no_grad():
            algorithm.loss(batch)
    assert len(calls) == 2 * len(layers) + extra
    for name, parameter in algorithm.model.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name
    assert all("forward" not in vars(layer) for layer in layers)
    for handle in handles:
        handle.remove()


def test_recomputing_without_layers_is_refused():
    with pytest.raises(ConfigError, match="expected none"), recomputed(nn.Linear(2, 2), "full"):
        pass


def test_selective_multiplies_no_more_matrices_than_nothing_does_and_full_six_more_a_layer():
    """The seventh product of a layer, the last, is needed by nothing in its backward pass."""
    algorithm = toy_algorithm()
    batch, found = next(algorithm.batches(None))[0], {}
    for mode in ("none", "selective", "full"):
        with recomputed(algorithm.model, mode):
            loss = algorithm.loss(batch).total
            with Products() as products:
                loss.backward()
        found[mode] = products.count
    assert found["selective"] == found["none"] and found["full"] == found["none"] + 2 * 6


def test_what_a_layer_keeps_goes_to_the_host_once_and_its_weights_stay(monkeypatch):
    algorithm, seen = toy_algorithm(), []
    plain = HostCopies.pack

    def pack(copies, tensor):
        packed = plain(copies, tensor)
        seen.append((copies, tensor, packed))
        return packed

    monkeypatch.setattr(HostCopies, "pack", pack)
    with recomputed(algorithm.model, "offload"):
        algorithm.loss(next(algorithm.batches(None))[0]).total.backward()
    weights = {weight.untyped_storage().data_ptr() for weight in algorithm.model.model.layers.parameters()}
    stayed = {tensor.untyped_storage().data_ptr() for _, tensor, packed in seen if packed is tensor}
    assert stayed == weights
    copied = [packed[1].untyped_storage().data_ptr() for _, tensor, packed in seen if packed is not tensor]
    assert len(set(copied)) < len(copied) and not weights & set(copied), "several operators keep the input of the projections"
    assert len({id(copies) for copies, _, _ in seen}) == 2 and not any(copies.seen for copies, _, _ in seen)


@pytest.mark.parametrize("find_rate", [False, True])
def test_bringing_activations_to_the_host_they_are_on_is_refused(tmp_path, find_rate):
    start = rate_finder.find if find_rate else lambda algorithm, config: fit(algorithm, config, tmp_path)
    with pytest.raises(ConfigError, match="offload with device cpu; expected none, selective or full"):
        start(toy_algorithm(), toy_config(activations="offload"))


@pytest.mark.filterwarnings("default")  # torch's compiler warns of itself
def test_transforms_of_the_forward_end_in_either_order_and_leave_nothing():
    model = toy_algorithm().model
    for outer, inner in (
        (compiled(model, True), recomputed(model, "full")),
        (recomputed(model, "full"), compiled(model, True)),
    ):
        with outer:
            before = [layer.forward for layer in model.model.layers]
            with inner:
                pass
            assert [layer.forward for layer in model.model.layers] == before
        assert all("forward" not in vars(layer) for layer in model.model.layers)


@pytest.mark.parametrize(("mode", "times"), [("selective", 1), ("full", 2)])
def test_recomputing_leaves_and_calls_the_forward_that_another_transform_put(mode, times):
    algorithm = toy_algorithm()
    layers, calls = algorithm.model.model.layers, []
    batch = next(algorithm.batches(None))[0]

    def other(forward):
        return lambda *arguments: calls.append(1) or forward(*arguments)

    for layer in layers:
        layer.forward = other(layer.forward)
    before = [layer.forward for layer in layers]
    with recomputed(algorithm.model, mode):
        algorithm.loss(batch).total.backward()
    assert [layer.forward for layer in layers] == before and len(calls) == times * len(layers)


@pytest.mark.parametrize(("old", "new"), [("keep", "none"), ("recompute", "full")])
def test_the_earlier_names_are_refused_with_the_new_ones(old, new):
    with pytest.raises(ConfigError, match=f"activations; found '{old}'; expected {new}, the name that {old} has now"):
        toy_config(activations=old)


def package(root, name, energy, span=1000):
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")


def test_energy_adds_packages_and_survives_a_wrap_around(tmp_path):
    package(tmp_path, "intel-rapl:0", 900)
    package(tmp_path, "intel-rapl:1", 100)
    package(tmp_path, "intel-rapl:0:0", 5)  # a part of package 0, already in it
    meter = EnergyMeter(CPU, tmp_path)
    package(tmp_path, "intel-rapl:0", 50)  # 900 -> 1000 -> 50
    package(tmp_path, "intel-rapl:1", 300)
    package(tmp_path, "intel-rapl:0:0", 700)
    meter.sample()
    package(tmp_path, "intel-rapl:0", 60)
    assert meter.joules() == pytest.approx((150 + 200 + 10) / 1e6)


def test_energy_without_counters_is_unknown_not_zero(tmp_path):
    assert EnergyMeter(CPU, tmp_path).joules() is None
    package(tmp_path, "intel-rapl:0", 1)
    meter = EnergyMeter(CPU, tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.joules() is None


def test_the_peak_sees_a_large_allocation():
    memory.reset_peak(CPU)
    before = memory.peak_bytes(CPU)
    size = 64_000_000
    with mmap.mmap(-1, size) as held:  # new pages for certain; a tensor may lie in memory that the process has kept
        for start in range(0, size, mmap.PAGESIZE):
            held[start] = 1
    assert size * 0.9 < memory.peak_bytes(CPU) - before < size * 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults of glibc's allocator")
def test_freed_memory_is_taken_again_without_new_pages():
    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(8_000_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with memory.freed_memory_kept():
        for _ in range(4):  # aligned blocks do not fit the first holes, so a few are opened before none is
            faults()
        assert faults() < 100  # 5 x 7,812 pages otherwise
    torch.ones(8_000_000)
    assert memory.peak_bytes(CPU) > 32e6
