"""LoRA on a base in 4 bits (QLoRA), tokens/s and peak memory against PEFT on bitsandbytes with the same codes.

    python bench/qlora.py [--size 60m] [--rounds 5] [--passes 4] [--precision bf16] [--activations selective] [--memory]

Same weights, nf4 with double quantization, computed in fp32 or under autocast to bf16 (what is not quantized is then held in bf16 too);
same batches of 2 rows of 512 random tokens, loss on the last three quarters of each; rank 16 on all seven linear maps, alpha 32, fused
AdamW, clip 1.0, 2 threads. PEFT's model is trained by a plain loop without gradient checkpointing, logging or saving; ours by the loop of
`luyen sft`, which with --activations selective makes norms, gated products and attention's probabilities again instead of keeping them.
A pass is a step; one that is not timed comes before the timed ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beside import RATE, VOCABULARY, Gradients, Variant, autocast, command_line, compare, gradients, measure, our_model, ours, peft_model

BATCH, LENGTH, BATCHES = 2, 512, 8
PROMPT = LENGTH // 4


def rows() -> np.ndarray:
    """Random ids, (BATCHES, BATCH, LENGTH)."""
    return np.random.default_rng(0).integers(8, VOCABULARY, size=(BATCHES, BATCH, LENGTH), dtype=np.int32)


def luyen(folder: Path, scratch: Path, arguments: argparse.Namespace) -> Variant:
    """Our loop."""
    from luyen.data.loader import Batch, collate
    from luyen.data.samples import NOT_TRAINED, Sample

    def batches() -> Iterator[Batch]:
        while True:
            for batch in rows():
                targets = batch[:, 1:].copy()
                targets[:, : PROMPT - 1] = NOT_TRAINED
                yield collate([Sample(f"row:{number}", batch[number, :-1], targets[number]) for number in range(BATCH)])

    model = our_model(folder, "qlora", arguments.precision)
    return ours(model, batches, scratch / "luyen", arguments.precision, activations=arguments.activations)


def peft(folder: Path, arguments: argparse.Namespace) -> Variant:
    """PEFT's LoRA on bitsandbytes' Linear4bit, in a plain loop."""
    model = peft_model(folder, "qlora", arguments.precision).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            for batch in rows():
                ids = torch.from_numpy(batch).long()
                labels = ids.clone()
                labels[:, :PROMPT] = -100
                yield ids, labels

    stream = batches()

    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with autocast(arguments.precision):
            loss: torch.Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss
        return loss

    def step() -> None:
        loss_of(*next(stream)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def steps(count: int) -> float:
        step()
        started = time.perf_counter()
        for _ in range(count):
            step()
        return time.perf_counter() - started

    def first() -> tuple[float, Gradients]:
        loss = loss_of(*next(batches()))
        loss.backward()
        return float(loss.detach()), gradients(model)

    return Variant(model, steps, first)


def same(our: Variant, theirs: Variant) -> Mapping[str, Any]:
    """How many maps have the same codes in both, which all must, and the first losses and gradients."""
    from luyen.adapters.quantized import quantized_maps

    named = dict(theirs.model.named_parameters())
    maps = list(quantized_maps(our.model))
    assert all(torch.equal(module.codes, named[f"base_model.model.{name}.base_layer.weight"].flatten()) for name, module in maps)
    return {"maps": len(maps), **compare(our, theirs)}


def build(name: str, folder: Path, scratch: Path, arguments: argparse.Namespace) -> Variant:
    """A variant by name."""
    return luyen(folder, scratch, arguments) if name == "luyen" else peft(folder, arguments)


def main() -> None:
    """Run the variants."""
    parser = command_line(__doc__ or "", rounds=5, passes=4, what="steps")
    parser.add_argument("--activations", default="none", help="ours: none, selective or full")
    measure(parser.parse_args(), {"qlora": ("luyen", "peft_bitsandbytes")}, build, BATCH * LENGTH, "tokens", same)


if __name__ == "__main__":
    main()
