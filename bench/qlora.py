"""LoRA on a base in 4 bits (QLoRA), tokens/s and peak memory against PEFT on bitsandbytes with the same codes.

    python bench/qlora.py [--size 60m] [--rounds 5] [--steps 4] [--precision bf16] [--activations selective] [--memory]

Same weights, nf4 with double quantization, computed in fp32 or under autocast to bf16; same batches of 2 rows of 512 random tokens, loss
on the last three quarters of each; rank 16 on all seven linear maps, alpha 32, fused AdamW, clip 1.0, 2 threads. PEFT's model is trained
by a plain loop without gradient checkpointing, logging or saving; ours by the loop of `luyen sft`, which with --activations selective makes
norms, gated products and attention's probabilities again instead of keeping them. In every round each variant makes one step that is not
timed and `steps` that are, in turn; reported are medians over the rounds and the median of the rounds' ratios. Before that codes, first
losses and gradients of both are compared. --memory measures instead the peak of each variant in a process of its own, from the folder on.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sft import ALPHA, RANK, RATE, VOCABULARY, Variant, base, compare

BATCH, LENGTH, BATCHES = 2, 512, 8
PROMPT = LENGTH // 4


def rows() -> np.ndarray:
    """Random ids, (BATCHES, BATCH, LENGTH)."""
    return np.random.default_rng(0).integers(8, VOCABULARY, size=(BATCHES, BATCH, LENGTH), dtype=np.int32)


def luyen(folder: Path, scratch: Path, precision: str, activations: Any) -> Variant:
    """Our loop, as `luyen sft` runs it."""
    from luyen.adapters.adapt import adapt
    from luyen.adapters.config import AdapterConfig
    from luyen.adapters.quantized_load import load_quantized
    from luyen.algorithms.sft import SFT
    from luyen.core.config import load
    from luyen.data.loader import Batch, collate
    from luyen.data.samples import NOT_TRAINED, Sample
    from luyen.engine.activations import recomputed
    from luyen.engine.algorithm import Hooks
    from luyen.engine.config import TrainConfig
    from luyen.engine.memory import freed_memory_kept
    from luyen.engine.run import Run

    class Stream:
        """The batches, without end."""

        fingerprint = ""

        def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
            while True:
                for batch in rows():
                    targets = batch[:, 1:].copy()
                    targets[:, : PROMPT - 1] = NOT_TRAINED
                    yield collate([Sample(f"row:{number}", batch[number, :-1], targets[number]) for number in range(BATCH)]), {}

    model = load_quantized(folder)
    torch.manual_seed(1)
    adapt(model, AdapterConfig(method="lora", rank=RANK, alpha=ALPHA))
    algorithm = SFT(model, Stream())  # type: ignore[arg-type]
    values = {
        "steps": 1_000_000, "device": "cpu", "precision": precision, "schedule": {"name": "constant", "warmup_steps": 0},
        "optimizer": {"learning_rate": RATE, "weight_decay": 0.0},
    }  # fmt: skip
    run = Run(algorithm, load(TrainConfig, values), scratch / "luyen", 0, Hooks())
    stream = algorithm.batches(None)

    def steps(count: int) -> float:
        with freed_memory_kept(), recomputed(model, activations):
            run.update(stream)
            started = time.perf_counter()
            for _ in range(count):
                run.update(stream)
            return time.perf_counter() - started

    def first() -> tuple[float, dict[str, torch.Tensor]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = algorithm.loss(next(algorithm.batches(None))[0])
        (loss.total / loss.count).backward()
        return float(loss.total.detach() / loss.count), slopes(model)

    return Variant("luyen", model, steps, first)


def peft(folder: Path, scratch: Path, precision: str, activations: Any) -> Variant:
    """PEFT's LoRA on bitsandbytes' Linear4bit; `activations` are ours alone."""
    import transformers
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    transformers.logging.set_verbosity_error()
    compute = torch.bfloat16 if precision == "bf16" else torch.float32
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )  # fmt: skip
    plain = LlamaForCausalLM.from_pretrained(folder, quantization_config=settings, device_map="cpu", dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model: Any = get_peft_model(plain, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")).train()
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
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
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

    def first() -> tuple[float, dict[str, torch.Tensor]]:
        loss = loss_of(*next(batches()))
        loss.backward()
        return float(loss.detach()), slopes(model)

    return Variant("peft_bitsandbytes", model, steps, first)


def slopes(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradients, by a name that both have."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name.removeprefix("base_model.model.").replace(".default.weight", "")] = parameter.grad.clone()
    model.zero_grad(set_to_none=True)
    return found


def same_codes(ours: torch.nn.Module, theirs: torch.nn.Module) -> int:
    """How many maps have the same codes in both; all must."""
    from luyen.adapters.quantized import quantized_maps

    named = dict(theirs.named_parameters())
    maps = list(quantized_maps(ours))
    assert all(torch.equal(module.codes, named[f"base_model.model.{name}.base_layer.weight"].flatten()) for name, module in maps)
    return len(maps)


VARIANTS = {"luyen": luyen, "peft_bitsandbytes": peft}


def speeds(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Interleaved rounds."""
    base(arguments.size, scratch / "base")
    pair = [make(scratch / "base", scratch, arguments.precision, arguments.activations) for make in VARIANTS.values()]
    result: dict[str, Any] = {"same_codes": same_codes(pair[0].model, pair[1].model), "same": compare(*pair)}
    found: dict[str, list[float]] = {variant.name: [] for variant in pair}
    for number in range(arguments.rounds):
        for variant in pair if number % 2 == 0 else pair[::-1]:
            gc.collect()
            found[variant.name].append(arguments.steps * BATCH * LENGTH / variant.passes(arguments.steps))
            print(f"round {number + 1} {variant.name}: {found[variant.name][-1]:.0f} tokens/s", file=sys.stderr, flush=True)
    for name, values in found.items():
        result[name] = {"tokens_per_second": round(statistics.median(values), 1), "range": f"{min(values):.0f}-{max(values):.0f}"}
    ratios = [ours / theirs for ours, theirs in zip(*found.values(), strict=True)]
    return {**result, "ratio": round(statistics.median(ratios), 2)}


def memory(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Peak of each variant in a process of its own, median of the rounds; the folder is written by this one."""
    base(arguments.size, scratch / "base")
    peaks: dict[str, float] = {}
    for name in VARIANTS:
        command = [sys.executable, __file__, "--alone", name, "--folder", str(scratch / "base"), "--steps", str(arguments.steps)]
        command += ["--precision", arguments.precision, "--activations", arguments.activations]
        told = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            for _ in range(arguments.rounds)
        ]  # fmt: skip
        peaks[name] = statistics.median(item["peak_mb"] for item in told)
        print(f"{name}: {peaks[name]:.0f} MB", file=sys.stderr, flush=True)
    return {
        "peak_mb": {name: round(peak) for name, peak in peaks.items()},
        "memory_ratio": round(peaks["luyen"] / peaks["peft_bitsandbytes"], 3),
    }


def main() -> None:
    """Run the variants."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="60m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="timed steps in a round")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--activations", default="none", help="ours: none, selective or full")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    parser.add_argument("--alone", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if arguments.alone:
            VARIANTS[arguments.alone](arguments.folder, scratch, arguments.precision, arguments.activations).passes(arguments.steps)
            print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
            return
        found = memory(arguments, scratch) if arguments.memory else speeds(arguments, scratch)
    import bitsandbytes
    import peft as library
    import transformers

    chosen = {key: getattr(arguments, key) for key in ("size", "rounds", "steps", "precision", "activations")}
    versions = {item.__name__: item.__version__ for item in (torch, transformers, library, bitsandbytes)}
    print(json.dumps({"bench": "qlora", **chosen, **found, **versions}))


if __name__ == "__main__":
    main()
