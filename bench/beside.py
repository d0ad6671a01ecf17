"""What the benchmarks of adapters share: one base and one adapter on both sides, one command line, and how they are measured in turn.

A benchmark gives its pairs of variants by name and a function that builds one. In every round each variant of a pair does its passes, the
first first in one round and last in the next; reported are medians over the rounds, and the median of the rounds' ratios. Before that the
first losses and gradients of both are compared. With --memory the peak of each variant is measured instead, in a process of its own, from
the base's folder on, imports included.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

VOCABULARY, RATE, RANK, ALPHA = 8192, 1e-4, 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Gradients = dict[str, torch.Tensor]


class Variant:
    """`passes(n)` returns the seconds of n passes, `first()` the loss and gradients of the first batch."""

    def __init__(
        self, model: nn.Module, passes: Callable[[int], float], first: Callable[[], tuple[float, Gradients]] | None = None
    ) -> None:
        self.model, self.passes, self.first = model, passes, first


Build = Callable[[str, Path, Path, argparse.Namespace], Variant]
"""Of a variant's name, the base's folder, a folder to write in and the command line."""


def base(size: str, folder: Path, precision: str) -> None:
    """Weights that every process draws alike, stored in the type of the precision, so that both sides make the same codes of them."""
    from luyen.models import hf
    from luyen.models.presets import preset
    from luyen.models.transformer import Transformer

    torch.manual_seed(0)
    folder.mkdir()
    hf.save(Transformer(preset(f"llama-{size}", VOCABULARY)).to(DTYPES[precision]), folder, bos_id=1, stop_ids=[2], pad_id=0)


def our_model(folder: Path, method: str, precision: str) -> nn.Module:
    """The base as `luyen sft` opens it, with the adapter of `method` (lora, qlora or full): frozen weights in the type of the products."""
    from luyen.adapters.adapt import adapt
    from luyen.adapters.config import AdapterConfig
    from luyen.adapters.quantized_load import load_quantized
    from luyen.models import hf

    dtype = torch.float32 if method == "full" else DTYPES[precision]
    model = load_quantized(folder, dtype=dtype) if method == "qlora" else hf.load(folder, dtype=dtype)
    torch.manual_seed(1)
    adapt(model, AdapterConfig(method="full" if method == "full" else "lora", rank=RANK, alpha=ALPHA))
    return model


def ours(
    model: nn.Module, batches: Callable[[], Iterator[Any]], folder: Path, precision: str, updates: int = 1, activations: Any = "none"
) -> Variant:  # fmt: skip
    """Our loop, as `luyen sft` runs it, on batches without end; a pass is so many updates, and an update that is not timed comes before."""
    from luyen.algorithms.sft import SFT

    class Stream:
        """The batches as an algorithm reads them."""

        fingerprint = ""

        def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[Any, dict[str, Any]]]:
            return ((batch, {}) for batch in batches())

    return running(SFT(model, Stream()), folder, precision, updates, activations)  # type: ignore[arg-type]


def running(algorithm: Any, folder: Path, precision: str, updates: int = 1, activations: Any = "none") -> Variant:
    """Our loop on any algorithm's batches; a pass is so many updates, and an update that is not timed comes before."""
    from luyen.core.config import load
    from luyen.engine.activations import recomputed
    from luyen.engine.algorithm import Hooks
    from luyen.engine.config import TrainConfig
    from luyen.engine.memory import freed_memory_kept
    from luyen.engine.run import Run

    values = {
        "steps": 1_000_000, "device": "cpu", "precision": precision, "schedule": {"name": "constant", "warmup_steps": 0},
        "optimizer": {"learning_rate": RATE, "weight_decay": 0.0},
    }  # fmt: skip
    run = Run(algorithm, load(TrainConfig, values), folder, 0, Hooks())
    stream = algorithm.batches(None)

    def passes(count: int) -> float:
        with freed_memory_kept(), recomputed(algorithm.model, activations):
            run.update(stream)
            started = time.perf_counter()
            for _ in range(count * updates):
                run.update(stream)
            return time.perf_counter() - started

    def first() -> tuple[float, Gradients]:
        with autocast(precision):
            loss = algorithm.loss(next(algorithm.batches(None))[0])
        (loss.total / loss.count).backward()
        return float(loss.total.detach() / loss.count), gradients(algorithm.model)

    return Variant(algorithm.model, passes, first)


def peft_model(folder: Path, method: str, precision: str) -> Any:
    """The same by transformers, bitsandbytes and PEFT."""
    import transformers
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    transformers.logging.set_verbosity_error()
    dtype = torch.float32 if method == "full" else DTYPES[precision]
    few_bits = {"device_map": "cpu", "quantization_config": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )} if method == "qlora" else {}  # fmt: skip
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, **few_bits)
    if method == "full":
        return model
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM"))


def autocast(precision: str) -> torch.autocast:
    """Products in the type of the precision."""
    return torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32")


def gradients(model: nn.Module) -> Gradients:
    """Taken from the model, by a name that both have."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            key = (
                name.removeprefix("base_model.model.")
                .removeprefix("decoder.")
                .replace(".default", "")
                .replace(".base_layer", "")
                .replace(".base", "")
            )
            found[key.replace(".weight", "")] = parameter.grad.clone()
    model.zero_grad(set_to_none=True)
    return found


def compare(our: Variant, theirs: Variant) -> dict[str, float]:
    """Largest differences of the first loss and of its gradients, relative to each gradient's largest entry. B is not zero for this."""
    assert our.first is not None and theirs.first is not None
    same_adapter(our.model, theirs.model)
    (loss, slopes), (other, other_slopes) = our.first(), theirs.first()
    assert slopes.keys() == other_slopes.keys(), sorted(slopes.keys() ^ other_slopes.keys())[:4]
    worst = max(float((slopes[name] - other_slopes[name]).abs().max() / other_slopes[name].abs().max().clamp(min=1e-12)) for name in slopes)
    return {"loss_difference": abs(loss - other), "gradient_difference": worst}


def same_adapter(our: nn.Module, theirs: nn.Module) -> None:
    """Random factors, the same in both."""
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in our.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.02)
                named[f"base_model.model.{name}.default.weight"].copy_(parameter)


def in_turn(variants: Mapping[str, Variant], rounds: int, passes: int, work: float, unit: str) -> tuple[dict[str, Any], list[list[float]]]:
    """Median and range of each variant in units a second, where a pass is `work` units, and all rates by round."""
    order = list(variants.items())
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, variant in order if number % 2 == 0 else order[::-1]:
            gc.collect()
            found[name].append(passes * work / variant.passes(passes))
            print(f"round {number + 1} {name}: {found[name][-1]:.2f} {unit}/s", file=sys.stderr, flush=True)
    told = {
        name: {f"{unit}_per_second": round(statistics.median(rates), 3), "range": f"{min(rates):.2f}-{max(rates):.2f}"}
        for name, rates in found.items()
    }
    return told, [list(rates) for rates in zip(*found.values(), strict=True)]


def command_line(doc: str, rounds: int, passes: int, what: str) -> argparse.ArgumentParser:
    """The arguments that all have; `what` is what one pass is."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--size", default="60m")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--passes", type=int, default=passes, help=f"timed passes of a round: {what}")
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def measure(
    arguments: argparse.Namespace, pairs: Mapping[str, Sequence[str]], build: Build, work: float, unit: str,
    check: Callable[[Variant, Variant], Mapping[str, Any]] = compare,
) -> None:  # fmt: skip
    """Speed or peak memory of each pair, as one JSON line. The first of a pair is ours; `check` says how far both are the same."""
    torch.set_num_threads(2)
    warnings.filterwarnings("ignore")
    plain = {key: value.name if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    settings = {key: value for key, value in plain.items() if key not in ("memory", "alone", "folder")}
    result: dict[str, Any] = {"bench": Path(sys.argv[0]).stem, **settings, "threads": 2}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if arguments.alone:
            build(arguments.alone, arguments.folder, scratch, arguments).passes(arguments.passes)
            print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
            return
        base(arguments.size, scratch / "base", arguments.precision)
        for key, pair in pairs.items():
            if arguments.memory:
                result[key] = _peaks(pair, scratch / "base", arguments.rounds)
                continue
            variants = {variant: build(variant, scratch / "base", scratch, arguments) for variant in pair}
            same = check(*variants.values())
            told, rates = in_turn(variants, arguments.rounds, arguments.passes, work, unit)
            ratio = statistics.median(mine / other for mine, other in rates)
            result[key] = {"same": same, **told, "ratio": round(ratio, 2)}
    print(
        json.dumps(
            {**result, **{package: metadata.version(package) for package in ("torch", "transformers", "peft", "trl", "bitsandbytes")}}
        )
    )


def _peaks(pair: Sequence[str], folder: Path, rounds: int) -> dict[str, Any]:
    """MB of each variant, median over the rounds, and the ratio."""
    peaks = {}
    for name in pair:
        command = [sys.executable, *sys.argv, "--alone", name, "--folder", str(folder)]
        told = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1] for _ in range(rounds)]
        peaks[name] = round(statistics.median(json.loads(line)["peak_mb"] for line in told))
        print(f"{name}: {peaks[name]} MB", file=sys.stderr, flush=True)
    mine, other = peaks.values()
    return {"peak_mb": peaks, "ratio": round(mine / other, 3)}


def clock() -> Any:
    """A callback of transformers' Trainer whose `ends` are the times at the end of its steps."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """The time at the end of every step."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            self.ends.append(time.perf_counter())

    return Clock()


def numbers_tokenizer() -> Any:
    """A tokenizer of transformers whose words are the ids themselves, so that both sides read the same ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{str(number): number for number in range(3, VOCABULARY)}}
    plain = Tokenizer(models.WordLevel(words, "<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left")


def trl_settings(folder: Path, precision: str, batch: int, steps: int) -> dict[str, Any]:
    """What all of TRL's trainers are given: our optimizer, nothing logged or saved, no checkpointed activations."""
    return {
        "output_dir": str(folder), "per_device_train_batch_size": batch, "max_steps": steps, "learning_rate": RATE, "weight_decay": 0.0,
        "adam_beta2": 0.95, "max_grad_norm": 1.0, "optim": "adamw_torch_fused", "lr_scheduler_type": "constant", "save_strategy": "no",
        "logging_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "seed": 0, "gradient_checkpointing": False,
        "bf16": precision == "bf16",
    }  # fmt: skip
