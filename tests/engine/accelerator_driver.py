"""A training step on an accelerator that does not exist: shapes and types are worked out, numbers are not. Run as a program of its own.

torch's fake tensors stand for those of the device `standin`: whatever asks for a number of one raises an error, and every copy between it
and the host is counted. Prints as JSON for every case how often figures were read, how many tensors came in, how many of those the host
had to wait for (they were not pinned, or not told to go by themselves), and how many went out; or the error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

sys.path.insert(0, str(Path(__file__).parent.parent))

from training_toys import toy_config, toy_model, toy_samples  # noqa: E402 (the file is also a program)

from luyen.algorithms.sft import SFT  # noqa: E402
from luyen.core import device  # noqa: E402
from luyen.data.loader import PackedStream  # noqa: E402
from luyen.engine import memory, run  # noqa: E402
from luyen.engine.activations import recomputed  # noqa: E402
from luyen.engine.algorithm import Hooks  # noqa: E402
from luyen.models import varlen  # noqa: E402

STANDIN = "standin"
TO_COPY, COPY = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default


class Copies(TorchDispatchMode):
    """Counts what goes between the host and the accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: dict[int, torch.Tensor] = {}
        self.incoming = self.blocking = self.outgoing = 0

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Takes the place of Tensor.pin_memory."""
        copy = tensor.clone()
        self.pinned[id(copy)] = copy
        return copy

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        result = function(*arguments, **keywords)
        if function in (TO_COPY, COPY):
            source, target = (arguments[0], result) if function is TO_COPY else (arguments[1], arguments[0])
            free = keywords.get("non_blocking", False) if function is TO_COPY else len(arguments) > 2 and arguments[2]
            if source.device.type == "cpu" and target.device.type == STANDIN and source.ndim:
                self.incoming += 1
                self.blocking += not (free and id(source) in self.pinned)
            self.outgoing += source.device.type == STANDIN and target.device.type == "cpu"
        return result


def prepare() -> list[int]:
    """Put stand-ins where only a real device could answer. Returns a list that grows: how many reads each call of `to_host` would make."""
    module = _DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    _setup_privateuseone_for_python_backend(STANDIN, backend_module=module)
    reads: list[int] = []

    def to_host(figures: list[Any]) -> list[float]:
        reads.append(len({(figure.dtype, figure.device) for figure in figures if isinstance(figure, torch.Tensor)}))
        return [1.0] * len(figures)

    run.to_host = to_host
    run.EnergyMeter = lambda _device: SimpleNamespace(sample=lambda: None)
    memory.peak_bytes = lambda _device: 0
    varlen.operators = lambda: (torch.ops.torch_attn._varlen_attn.default,) if varlen.kernel() else ()
    return reads


def case(reads: list[int], kernel: bool, known: bool, pins: bool, activations: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Three steps; the last one is looked at, which is a step like most: one behind it and one before it. Or the error that ended them."""
    copies = Copies()
    device.PINS = (STANDIN,) if pins else ()
    torch.Tensor.pin_memory = lambda tensor: copies.pin(tensor)  # fake tensors have none
    varlen.takes = lambda _query: kernel and varlen.kernel() is not None
    settings = toy_config(**{**config, "device": f"{STANDIN}:0"})
    with FakeTensorMode(allow_non_fake_inputs=True), tempfile.TemporaryDirectory() as folder:
        with torch.device(STANDIN):
            model = toy_model()
        model.to = lambda _device: model  # it is there; fake weights cannot be moved in place
        samples = toy_samples()
        algorithm = SFT(model, PackedStream(samples, capacity=32, rows=2, seed=0), [sample.id for sample in samples])
        if not known:
            plain = algorithm.loss
            algorithm.loss = lambda batch: plain(dataclasses.replace(batch, trained_positions_K=None))
        with recomputed(model, activations), contextlib.closing(run.Run(algorithm, settings, Path(folder), 0, Hooks())) as training:
            stream = algorithm.batches(None)
            try:
                training.update(stream)
            except (DynamicOutputShapeException, DataDependentOutputException) as error:
                return {"error": str(error)}
            training.update(stream)
            before = len(reads)
            with copies:
                training.update(stream)
        assert {parameter.device.type for parameter in model.parameters()} == {STANDIN}
    return {"reads": sum(reads[before:]), "in": copies.incoming, "blocking": copies.blocking, "out": copies.outgoing}


if __name__ == "__main__":
    done = prepare()
    print(json.dumps([case(done, **wanted) for wanted in json.loads(sys.argv[1])]))
