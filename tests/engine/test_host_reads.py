"""A step's figures come to the host in one read."""

import contextlib
import json

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from training_toys import toy_algorithm, toy_config

from luyen.engine.algorithm import Hooks
from luyen.engine.reading import to_host
from luyen.engine.run import Run

READS = [getattr(torch.Tensor, name) for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")]


class Reads(TorchFunctionMode):
    """Names of the methods called that bring a tensor's numbers to the host."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function in READS:
            self.names.append(function.__name__)
        return function(*arguments, **(keywords or {}))


class Scalars(TorchDispatchMode):
    """Numbers read one by one, from C++ too."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_reads_its_figures_once(tmp_path, optimizer):
    algorithm = toy_algorithm()
    config = toy_config(accumulation=3, optimizer={"name": optimizer, "clip_norm": 1e-3})
    with contextlib.closing(Run(algorithm, config, tmp_path, 0, Hooks())) as run:
        stream = algorithm.batches(None)
        run.update(stream)
        with Reads() as reads, Scalars() as scalars:
            run.update(stream)
    loss = ["__bool__", "__bool__"]  # the loss asks whether all targets are trained, and on a CPU whether any probability is tiny
    assert reads.names == loss * config.accumulation + ["tolist"] and scalars.count == len(loss) * config.accumulation
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert row["loss"] > 0 and row["gradient_norm"] > 0 and "noise_scale" in row


def test_the_counters_see_reads():
    with Reads() as reads, Scalars() as scalars:
        float(torch.ones(1))
        torch.ones(2).tolist()
    assert reads.names == ["__float__", "tolist"] and scalars.count >= 1


def test_values_of_all_types_keep_their_bits_and_order():
    figures = [torch.tensor(0.1), 2.5, torch.tensor(2**53 - 1), torch.tensor(0.1, dtype=torch.float64), torch.tensor([float("inf")])]
    assert to_host(figures) == [float(torch.tensor(0.1)), 2.5, float(2**53 - 1), 0.1, float("inf")]
    assert to_host([]) == []
    with Reads() as reads:
        to_host([torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3)])
    assert reads.names == ["tolist", "tolist"]
