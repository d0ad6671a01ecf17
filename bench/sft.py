"""LoRA fine-tuning samples/s against TRL's SFTTrainer with PEFT on the same rows, and the peak memory of both.

    python bench/sft.py [--size 60m] [--rounds 5] [--passes 1] [--variants lora,qlora,full] [--precision bf16] [--memory]

Same weights, same 48 rows in the same batches of 8, loss on the answers alone, rank 16 on all seven linear maps, alpha 32, fused AdamW,
clip 1.0, 2 threads. The rows are random tokens with the lengths of instruction data: 209 tokens on average and 512 at most, of which the
last three quarters are the answer. TRL pads each batch to its longest row (its default; on a CPU padding_free is refused and packing is no
faster), with gradient_checkpointing off, without logging or saving. In every round each variant runs one pass over the rows that is
not timed and `passes` that are, in turn; reported are medians over the rounds and the median of the rounds' ratios. Before that the
first losses and gradients of both are compared. --memory measures instead the peak of each variant in a process of its own.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROWS, BATCH, LONGEST, VOCABULARY, RATE, RANK, ALPHA = 48, 8, 512, 8192, 1e-4, 16, 32
Row = tuple[list[int], int]
"""Ids, and how many of them are the prompt's."""


def rows() -> list[Row]:
    """Random ids with lengths as instruction data has them: log-normal, mean about 209, at most LONGEST, prompts a quarter."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(5.08, 0.75, ROWS)), 24, LONGEST).astype(int)
    return [(random.integers(8, VOCABULARY, size=length).tolist(), max(4, length // 4)) for length in lengths]


class Variant:
    """`passes(n)` returns the seconds of n passes over the rows; `first()` the loss and gradients of the first batch."""

    def __init__(
        self, name: str, model: nn.Module, passes: Callable[[int], float], first: Callable[[], tuple[float, dict[str, torch.Tensor]]]
    ) -> None:
        self.name, self.model, self.passes, self.first = name, model, passes, first


def luyen(folder: Path, scratch: Path, method: str, precision: str) -> Variant:
    """Our loop, as `luyen sft` runs it."""
    from luyen.adapters.adapt import adapt
    from luyen.adapters.config import AdapterConfig
    from luyen.adapters.quantized_load import load_quantized
    from luyen.algorithms.sft import SFT
    from luyen.core.config import load
    from luyen.data.loader import Batch, collate
    from luyen.data.samples import NOT_TRAINED, Sample
    from luyen.engine.algorithm import Hooks
    from luyen.engine.config import TrainConfig
    from luyen.engine.memory import freed_memory_kept
    from luyen.engine.run import Run
    from luyen.models import hf

    class Stream:
        """The rows in batches of BATCH, without end."""

        fingerprint = ""

        def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
            samples = []
            for number, (ids, prompt) in enumerate(rows()):
                targets = [NOT_TRAINED] * (prompt - 1) + ids[prompt:]
                samples.append(Sample(f"row:{number}", np.array(ids[:-1], np.int32), np.array(targets, np.int32)))
            while True:
                for start in range(0, ROWS, BATCH):
                    yield collate(samples[start : start + BATCH]), {}

    model = load_quantized(folder) if method == "qlora" else hf.load(folder)
    torch.manual_seed(1)
    adapt(model, AdapterConfig(method="full" if method == "full" else "lora", rank=RANK, alpha=ALPHA))
    algorithm = SFT(model, Stream())  # type: ignore[arg-type]
    values = {
        "steps": 1_000_000, "device": "cpu", "precision": precision, "schedule": {"name": "constant", "warmup_steps": 0},
        "optimizer": {"learning_rate": RATE, "weight_decay": 0.0},
    }  # fmt: skip
    run = Run(algorithm, load(TrainConfig, values), scratch / f"luyen-{method}", 0, Hooks())
    stream = algorithm.batches(None)

    def passes(count: int) -> float:
        with freed_memory_kept():
            for _ in range(ROWS // BATCH):
                run.update(stream)
            started = time.perf_counter()
            for _ in range(count * ROWS // BATCH):
                run.update(stream)
            return time.perf_counter() - started

    def first() -> tuple[float, dict[str, torch.Tensor]]:
        batch = next(algorithm.batches(None))[0]
        loss = algorithm.loss(batch)
        (loss.total / loss.count).backward()
        return float(loss.total.detach() / loss.count), _taken(model)

    return Variant(f"luyen_{method}", model, passes, first)


def trl(folder: Path, scratch: Path, method: str, precision: str) -> Variant:
    """TRL's SFTTrainer, with PEFT's LoRA."""
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    transformers.logging.set_verbosity_error()
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{str(number): number for number in range(3, VOCABULARY)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "<pad>")), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )  # fmt: skip
    data = Dataset.from_list([{"input_ids": ids, "completion_mask": [0] * prompt + [1] * (len(ids) - prompt)} for ids, prompt in rows()])

    class Clock(TrainerCallback):
        """The time at the end of every step."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            self.ends.append(time.perf_counter())

    def made(passes: int, clock: Clock) -> SFTTrainer:
        settings = SFTConfig(
            output_dir=str(scratch / "trl"), per_device_train_batch_size=BATCH, num_train_epochs=passes, learning_rate=RATE,
            weight_decay=0.0, adam_beta2=0.95, max_grad_norm=1.0, optim="adamw_torch_fused", lr_scheduler_type="constant",
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, seed=0, max_length=LONGEST,
            gradient_checkpointing=False, completion_only_loss=True, bf16=precision == "bf16",
            train_sampling_strategy="sequential",
        )  # fmt: skip
        return SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[clock])

    few_bits = {"quantization_config": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )} if method == "qlora" else {}  # fmt: skip
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, **few_bits)
    if method != "full":
        from peft import get_peft_model

        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM"))

    def passes(count: int) -> float:
        clock = Clock()
        made(count + 1, clock).train()
        return clock.ends[-1] - clock.ends[ROWS // BATCH - 1]

    def first() -> tuple[float, dict[str, torch.Tensor]]:
        trainer = made(1, Clock())
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
        loss.backward()
        return float(loss.detach()), _taken(trainer.model)

    return Variant(f"trl_{method}", model, passes, first)


def _taken(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients, by a name that both have."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            key = name.removeprefix("base_model.model.").replace(".default", "").replace(".base_layer", "").replace(".base", "")
            found[key.replace(".weight", "")] = parameter.grad.clone()
    model.zero_grad(set_to_none=True)
    return found


def compare(ours: Variant, theirs: Variant) -> dict[str, float]:
    """Largest differences of the first loss and of its gradients, relative to each gradient's largest entry. B is not zero for this."""
    same_adapter(ours.model, theirs.model)
    (loss, slopes), (other, other_slopes) = ours.first(), theirs.first()
    assert slopes.keys() == other_slopes.keys(), sorted(slopes.keys() ^ other_slopes.keys())[:4]
    worst = max(float((slopes[name] - other_slopes[name]).abs().max() / other_slopes[name].abs().max().clamp(min=1e-12)) for name in slopes)
    return {"loss_difference": abs(loss - other), "gradient_difference": worst}


def same_adapter(ours: nn.Module, theirs: nn.Module) -> None:
    """Random factors, the same in both."""
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.02)
                named[f"base_model.model.{name}.default.weight"].copy_(parameter)


def base(size: str, folder: Path) -> None:
    """Weights that every process draws alike."""
    from luyen.models import hf
    from luyen.models.presets import preset
    from luyen.models.transformer import Transformer

    torch.manual_seed(0)
    folder.mkdir()
    hf.save(Transformer(preset(f"llama-{size}", VOCABULARY)), folder, bos_id=1, stop_ids=[2], pad_id=0)


def build(name: str, folder: Path, scratch: Path, precision: str) -> Variant:
    """A variant by name."""
    kind, _, method = name.partition("_")
    return (luyen if kind == "luyen" else trl)(folder, scratch, method, precision)


def speeds(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Interleaved rounds."""
    folder = scratch / "base"
    base(arguments.size, folder)
    result: dict[str, Any] = {}
    for method in arguments.variants.split(","):
        pair = [
            build(f"luyen_{method}", folder, scratch, arguments.precision),
            build(f"trl_{method}", folder, scratch, arguments.precision),
        ]
        result[f"same_{method}"] = compare(*pair)
        found: dict[str, list[float]] = {variant.name: [] for variant in pair}
        for number in range(arguments.rounds):
            for variant in pair if number % 2 == 0 else pair[::-1]:
                gc.collect()
                found[variant.name].append(arguments.passes * ROWS / variant.passes(arguments.passes))
                print(f"round {number + 1} {variant.name}: {found[variant.name][-1]:.2f} samples/s", file=sys.stderr, flush=True)
        for name, values in found.items():
            result[name] = {"samples_per_second": round(statistics.median(values), 3), "range": f"{min(values):.2f}-{max(values):.2f}"}
        ratios = [ours / theirs for ours, theirs in zip(*found.values(), strict=True)]
        result[f"ratio_{method}"] = round(statistics.median(ratios), 2)
    return result


def memory(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Peak of each variant in a process of its own, median of the rounds."""
    result: dict[str, Any] = {}
    for method in arguments.variants.split(","):
        peaks: dict[str, float] = {}
        for name in (f"luyen_{method}", f"trl_{method}"):
            command = [sys.executable, __file__, "--alone", name, "--size", arguments.size, "--precision", arguments.precision]
            told = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
                    for _ in range(arguments.rounds)]  # fmt: skip
            peaks[name] = statistics.median(item["peak_mb"] for item in told)
        result |= {**peaks, f"memory_ratio_{method}": round(peaks[f"luyen_{method}"] / peaks[f"trl_{method}"], 3)}
    return result


def main() -> None:
    """Run the variants."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="60m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=1, help="timed passes over the rows in a round")
    parser.add_argument("--variants", default="lora", help="of lora, qlora (NF4 with double quantization) and full")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if arguments.alone:
            base(arguments.size, scratch / "base")
            build(arguments.alone, scratch / "base", scratch, arguments.precision).passes(1)
            print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
            return
        found = memory(arguments, scratch) if arguments.memory else speeds(arguments, scratch)
    import peft
    import transformers
    import trl as library

    settings = {"bench": "sft", "size": arguments.size, "precision": arguments.precision, "rounds": arguments.rounds, "threads": 2}
    versions = {item.__name__: item.__version__ for item in (torch, transformers, peft, library)}
    print(json.dumps({**settings, **found, **versions}))


if __name__ == "__main__":
    main()
