"""What two processes make of one pass, against the same pass in whole. Run by the tests as a program of its own under torchrun.

Writes the largest differences, relative to the largest number, as JSON: name of a case -> name of a figure -> difference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from training_toys import toy_model  # noqa: E402 (the file is also a program)

from luyen.core import distributed  # noqa: E402
from luyen.engine.parallel.context import join  # noqa: E402
from luyen.engine.parallel.data import sum_gradients  # noqa: E402
from luyen.engine.parallel.mesh import Shape  # noqa: E402
from luyen.engine.parallel.tensor import split, summed  # noqa: E402
from luyen.engine.parallel.tensors import whole  # noqa: E402
from luyen.engine.parallel.vocabulary import SharedLoss  # noqa: E402
from luyen.models.attention import Layout  # noqa: E402
from luyen.objectives.language_model import computed_by, linear_cross_entropy, target_positions  # noqa: E402

ODD = {"vocab_size": 49, "num_heads": 4, "num_kv_heads": 2, "hidden_size": 24}
VARIANT = {"qkv_bias": True, "qk_norm": "head", "window": 3}
PASSES = {
    "packed": ((1, 23), [5, 1, 14, 3]), "equal": ((1, 12), [4, 4, 4]), "short": ((1, 3), [3]), "one token": ((1, 1), [1]),
    "rows": ((3, 5), None), "one row": ((1, 7), None), "short rows": ((3, 1), None),
}  # fmt: skip


def forward(model: Any, shape: tuple[int, int], lengths: list[int] | None) -> dict[str, Tensor]:
    """Everything that an algorithm may make of hidden states, with the gradients that it leaves in the model.

    Which positions have a target is known for packed sequences, as in a batch of training, and found for others.
    """
    tokens_BT = torch.arange(shape[0] * shape[1]).view(shape) * 7 % 49
    hidden_BTD = model(tokens_BT, None if lengths is None else Layout.packed(lengths))
    targets_N = ((tokens_BT + 5) % 49).flatten()
    targets_N[::4] = -100
    each_N = torch.full(targets_N.shape, 7.0, dtype=torch.float64)
    positions_K = None if lengths is None else target_positions(targets_N)
    loss = linear_cross_entropy(hidden_BTD.flatten(0, 1), model.head_weight, targets_N, 5, each_N, positions_K)
    logits_BTV = model.logits(hidden_BTD)
    (loss + (logits_BTV.square() * 0.1).sum() + hidden_BTD.pow(3).sum()).backward()
    with torch.no_grad():
        quiet = model.logits(model(tokens_BT, None if lengths is None else Layout.packed(lengths)))
    return {"hidden": hidden_BTD, "loss": loss, "each": each_N, "logits": logits_BTV, "without gradient": quiet}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Whole gradients by name."""
    return {f"gradient {name}": whole(weight.grad) for name, weight in model.named_parameters() if weight.grad is not None}


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to its largest number."""
    assert found.keys() == expected.keys()
    sizes = {name: tensor.detach().abs().max().clamp_min(1e-30) for name, tensor in expected.items()}
    return max(float((found[name].detach() - expected[name].detach()).abs().max() / sizes[name]) for name in expected)


def odd_model(tied: bool, variant: dict[str, Any]) -> Any:
    """Two calls give the same. Biases are not 0, as zeros would hide one that is added where no token is."""
    model = toy_model(**ODD, tied=tied, variant=variant).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return model


def case(axis: str, tied: bool, variant: dict[str, Any]) -> dict[str, float]:
    """All passes with two ranks of this axis, in fp64."""
    found = {}
    mesh = Shape(1, 1, **{"tensor": 1, axis: 2}).mesh(torch.device("cpu"))
    group = mesh.get_group(axis)
    for name, (shape, lengths) in PASSES.items():
        plain, shared = (odd_model(tied, variant) for _ in range(2))
        expected = forward(plain, shape, lengths) | gradients(plain)
        if axis == "tensor":
            split(shared, mesh["tensor"])
        else:
            join(shared, group)
        with computed_by(SharedLoss(**{"tensor": None, "context": None, axis: group})):
            result = forward(shared, shape, lengths)
        sum_gradients(summed(shared) if axis == "tensor" else shared.parameters(), group)
        found[name] = compare(result | gradients(shared), expected)
    return found


def head(dtype: torch.dtype) -> dict[str, float]:
    """The loss alone over a split vocabulary, with logits of several hundred, in chunks and at once; in half precision if asked for."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND, weight_VD = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((31, 24), (49, 24)))
    targets_N = torch.arange(31) * 5 % 49
    targets_N[::3] = -100
    mesh = Shape(1, 1, tensor=2).mesh(torch.device("cpu"))["tensor"]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    found = {}
    for chunk in (None, 4):
        results = []
        for parts in (False, True):
            inputs = [(20 * hidden_ND).to(exact).requires_grad_(), (4 * weight_VD).to(exact)]
            inputs[1] = (distribute_tensor(inputs[1], mesh, [Shard(0)]) if parts else inputs[1]).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                way = SharedLoss(mesh.get_group(), None) if parts else linear_cross_entropy
                loss = way(inputs[0], inputs[1], targets_N, chunk, None, target_positions(targets_N) if chunk else None)
            (loss * 0.5).backward()
            results.append({"loss": loss} | {f"gradient {number}": whole(tensor.grad) for number, tensor in enumerate(inputs)})
        found[f"chunks of {chunk}"] = compare(results[1], results[0])
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.group(60):
        cases = {f"{axis}{', tied' * tied}": case(axis, tied, {}) for axis in ("tensor", "context") for tied in (False, True)}
        cases |= {f"{axis}, variant": case(axis, True, VARIANT) for axis in ("tensor", "context")}
        cases |= {"head": head(torch.float64), "half": head(torch.bfloat16)}
    Path(f"{sys.argv[1]}-{distributed.rank()}").write_text(json.dumps(cases), encoding="utf-8")
