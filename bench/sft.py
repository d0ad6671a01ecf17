"""LoRA, QLoRA and full fine-tuning: samples/s against TRL's SFTTrainer with PEFT on the same rows, and the peak memory of both.

    python bench/sft.py [--size 60m] [--rounds 5] [--passes 1] [--variants lora,qlora,full] [--precision bf16] [--sorted] [--memory]

Same weights, same 48 rows in the same batches of 8, loss on the answers alone, rank 16 on all seven linear maps, alpha 32 (full: no
adapter, all weights), fused AdamW, clip 1.0, 2 threads. In bf16 what is frozen is loaded in bf16 on both sides; what is trained is fp32,
under autocast. The rows are random tokens with the lengths of instruction data: 209 tokens on average and 512 at most, of which the last
three quarters are the answer. TRL pads each batch to its longest row (its default; on a CPU padding_free is refused and packing is no
faster), with gradient_checkpointing off, without logging or saving; with --sorted the rows come by length, so that it has little to pad.
A step that is not timed comes before the timed ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from beside import RATE, VOCABULARY, Gradients, Variant, autocast, command_line, gradients, measure, our_model, ours, peft_model

ROWS, BATCH, LONGEST = 48, 8, 512
Row = tuple[list[int], int]
"""Ids, and how many of them are the prompt's."""


def rows(by_length: bool) -> list[Row]:
    """Random ids with lengths as instruction data has them: log-normal, mean about 209, at most LONGEST, prompts a quarter."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(5.08, 0.75, ROWS)), 24, LONGEST).astype(int)
    found = [(random.integers(8, VOCABULARY, size=length).tolist(), max(4, length // 4)) for length in lengths]
    return sorted(found, key=lambda row: len(row[0])) if by_length else found


def luyen(folder: Path, scratch: Path, method: str, arguments: argparse.Namespace) -> Variant:
    """Our loop; every sample lies beside the next, without padding."""
    from luyen.data.loader import Batch, collate
    from luyen.data.samples import NOT_TRAINED, Sample

    def batches() -> Iterator[Batch]:
        samples = []
        for number, (ids, prompt) in enumerate(rows(arguments.sorted)):
            targets = [NOT_TRAINED] * (prompt - 1) + ids[prompt:]
            samples.append(Sample(f"row:{number}", np.array(ids[:-1], np.int32), np.array(targets, np.int32)))
        while True:
            for start in range(0, ROWS, BATCH):
                yield collate(samples[start : start + BATCH])

    model = our_model(folder, method, arguments.precision)
    return ours(model, batches, scratch / f"luyen-{method}", arguments.precision, updates=ROWS // BATCH)


def trl(folder: Path, scratch: Path, method: str, arguments: argparse.Namespace) -> Variant:
    """TRL's SFTTrainer, with PEFT's LoRA."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{str(number): number for number in range(3, VOCABULARY)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "<pad>")), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )  # fmt: skip
    masks = [{"input_ids": ids, "completion_mask": [0] * prompt + [1] * (len(ids) - prompt)} for ids, prompt in rows(arguments.sorted)]
    data = Dataset.from_list(masks)

    class Clock(TrainerCallback):
        """The time at the end of every step."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            self.ends.append(time.perf_counter())

    def made(steps: int, clock: Clock) -> SFTTrainer:
        settings = SFTConfig(
            output_dir=str(scratch / "trl"), per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=RATE,
            weight_decay=0.0, adam_beta2=0.95, max_grad_norm=1.0, optim="adamw_torch_fused", lr_scheduler_type="constant",
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, seed=0, max_length=LONGEST,
            gradient_checkpointing=False, completion_only_loss=True, bf16=arguments.precision == "bf16",
            train_sampling_strategy="sequential",
        )  # fmt: skip
        return SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[clock])

    model = peft_model(folder, method, arguments.precision)

    def passes(count: int) -> float:
        clock = Clock()
        made(count * ROWS // BATCH + 1, clock).train()
        return clock.ends[-1] - clock.ends[0]

    def first() -> tuple[float, Gradients]:
        trainer = made(1, Clock())
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        with autocast(arguments.precision):
            loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
        loss.backward()
        return float(loss.detach()), gradients(trainer.model)

    return Variant(model, passes, first)


def build(name: str, folder: Path, scratch: Path, arguments: argparse.Namespace) -> Variant:
    """A variant by name."""
    kind, _, method = name.partition("_")
    return (luyen if kind == "luyen" else trl)(folder, scratch, method, arguments)


def main() -> None:
    """Run the variants."""
    parser = command_line(__doc__ or "", rounds=5, passes=1, what="over the rows")
    parser.add_argument("--variants", default="lora", help="of lora, qlora (nf4 with double quantization) and full")
    parser.add_argument("--sorted", action="store_true", help="rows by length")
    arguments = parser.parse_args()
    pairs = {method: (f"luyen_{method}", f"trl_{method}") for method in arguments.variants.split(",")}
    measure(arguments, pairs, build, ROWS, "samples")


if __name__ == "__main__":
    main()
