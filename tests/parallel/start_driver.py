"""Places a decoder of 100 MB or more in a layout and prints how much memory each rank took for it. Run by the tests under torchrun.

python -m torch.distributed.run --standalone --nproc-per-node 2 start_driver.py LAYOUT.json
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

from luyen.core import distributed
from luyen.core.config import load
from luyen.engine.config import TrainConfig
from luyen.engine.parallel.plan import Parallel
from luyen.engine.parallel.tensors import whole_on_main
from luyen.models.transformer import Transformer, TransformerConfig

SIZE = {
    "vocab_size": 1024, "hidden_size": 1024, "intermediate_size": 2816, "num_layers": 8, "num_heads": 16, "num_kv_heads": 16,
    "context_length": 64,
}  # fmt: skip


def main() -> None:
    """One line of JSON per rank: its number, what it took, the model's size, and for the main process whether all bits are right."""
    axes = json.loads(sys.argv[1])
    with distributed.group(120):
        parallel = Parallel(load(TrainConfig, {"device": "cpu", "accumulation": 2, "parallel": axes}))
        distributed.gather(0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        torch.manual_seed(0)
        with distributed.weights_of_main():
            model = Transformer(load(TransformerConfig, SIZE))
        size = sum(4 * parameter.numel() for parameter in model.parameters())
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()} if distributed.is_main() else {}
        model = parallel.place(model)
        took = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        found = whole_on_main(dict(model.named_parameters()))
        equal = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    told = json.dumps({"took": took, "size": size, "equal": equal})
    (Path(sys.argv[2]) / f"rank-{distributed.rank()}.json").write_text(told, encoding="utf-8")


if __name__ == "__main__":
    main()
