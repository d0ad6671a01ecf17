"""A step's figures come to the host in one read, and nothing else makes the host wait."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
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
    loss = ["__bool__"]  # on a CPU alone the loss asks whether any probability is tiny
    assert reads.names == loss * config.accumulation + ["tolist"] and scalars.count == len(loss) * config.accumulation
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert row["loss"] > 0 and row["gradient_norm"] > 0 and "noise_scale" in row


@pytest.mark.skipif(not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this torch has no such device")
def test_on_an_accelerator_the_host_waits_for_a_step_once():
    """Every other look at a number of a device's tensor is an error there, and every copy to it is one that nobody waits for."""
    usual = {"kernel": False, "known": True, "pins": True, "activations": "none", "config": {"accumulation": 2}}
    cases = [
        {**usual, "kernel": True, "activations": "selective"},
        {**usual, "config": {"accumulation": 2, "optimizer": {"name": "muon"}}},
        {**usual, "pins": False},
        {**usual, "known": False},
    ]
    command = [sys.executable, str(Path(__file__).with_name("accelerator_driver.py")), json.dumps(cases)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    # For every micro-batch: tokens, targets, trained positions, positions in the sequence, sources; bounds, or both ways into the groups.
    kernel, groups, unpinned, unknown = json.loads(ended.stdout)
    assert kernel == {"reads": 1, "in": 2 * 6, "blocking": 0, "out": 0}
    assert groups == {"reads": 1, "in": 2 * 7, "blocking": 0, "out": 0}
    assert unpinned == {**groups, "blocking": groups["in"]}
    assert unknown == {"error": "aten.nonzero.default"}


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
