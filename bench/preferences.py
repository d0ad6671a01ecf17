"""Learning from preferences: pairs/s against TRL's DPOTrainer and RewardTrainer on the same pairs.

    python bench/preferences.py [--data hh.jsonl.gz] [--size 60m] [--rounds 3] [--pairs 12] [--variants dpo,reward] [--precision bf16]

Same weights, all of them trained, the same pairs in the same batches of 4, fused AdamW, clip 1.0, 2 threads. `--data` is a file of
Anthropic's HH form (chosen and rejected transcripts), read by a byte-level BPE of the bench's vocabulary that is trained on the file's
chosen sides; its first pairs within 512 tokens are taken. Without it the rows are random tokens with the lengths of such pairs. TRL pads
each batch to its longest sequence (its padding_free is switched off in 1.16), without logging, saving or checkpointed activations. DPO's
reference is a second model, for the comparison of the first losses another one than the policy: its first map of values is half of it. With
--precomputed both take the reference's figures before the clock runs. A step that is not timed comes before the timed ones. In bf16 the
weights are fp32 under autocast, and the reference is bf16.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beside import DTYPES, VOCABULARY, Gradients, Variant, autocast, clock, command_line, gradients, measure, numbers_tokenizer, running
from beside import trl_settings as settings

BATCH, LONGEST, TURN, END = 4, 512, "\n\nAssistant:", 2
Row = tuple[list[int], list[int], list[int]]
"""Ids of the prompt, the chosen and the rejected answer, which end with END."""


@cache
def rows(data: Path | None, count: int) -> list[Row]:
    """So many pairs."""
    return _drawn(count) if data is None else _read(data, count)


def _drawn(count: int) -> list[Row]:
    """Random ids with the lengths of Anthropic's harmless-base: log-normal, medians of about 71, 26 and 37 tokens."""
    random, found = np.random.default_rng(0), []
    while len(found) < count:
        lengths = [int(np.exp(random.normal(*each))) + 1 for each in ((4.26, 0.97), (3.26, 0.88), (3.60, 0.92))]
        if lengths[0] + max(lengths[1:]) <= LONGEST:
            prompt, chosen, rejected = (random.integers(3, VOCABULARY, size=length).tolist() for length in lengths)
            found.append((prompt, [*chosen[1:], END], [*rejected[1:], END]))
    return [row for row in found if len(row[1]) > 1 or len(row[2]) > 1]


def _read(data: Path, count: int) -> list[Row]:
    """The first pairs of a file whose answers are to one prompt and which are short enough."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    text = gzip.decompress(data.read_bytes()) if data.suffix == ".gz" else data.read_bytes()
    told = [json.loads(line) for line in text.splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator((row["chosen"] for row in told), trainer)
    found: list[Row] = []
    for row in told:
        sides = [row["chosen"], row["rejected"]]
        cut = min(side.rindex(TURN) for side in sides) + len(TURN)
        if len({side[:cut] for side in sides}) == 1 and len(set(sides)) == 2:
            prompt, *answers = (tokenizer.encode(part).ids for part in (sides[0][:cut], *(side[cut:] for side in sides)))
            if len(prompt) + max(map(len, answers)) < LONGEST:
                found.append((prompt, [*answers[0], END], [*answers[1], END]))
    return found[:count]


def stream(arguments: argparse.Namespace, whole: bool) -> Any:
    """The pairs as our algorithms read them, in order; `whole` sequences are read at their last token, others predict their answers."""
    from luyen.data.branches import Group
    from luyen.data.pairs import GroupStream
    from luyen.data.samples import NOT_TRAINED, Sample

    def side(name: str, prompt: list[int], answer: list[int]) -> Sample:
        ids = np.array([*prompt, *answer], np.int32)
        if whole:
            return Sample(name, ids, np.full(len(ids), NOT_TRAINED, np.int32))
        return Sample(name, ids[:-1], np.array([NOT_TRAINED] * (len(prompt) - 1) + answer, np.int32))

    groups = [
        Group(f"{number}", (side(f"{number}/chosen", prompt, chosen), side(f"{number}/rejected", prompt, rejected)))
        for number, (prompt, chosen, rejected) in enumerate(rows(arguments.data, arguments.pairs))
    ]
    return GroupStream(groups, size=BATCH, seed=0, order=lambda epoch: np.arange(len(groups)))


def scored(folder: Path, scratch: Path) -> Path:
    """The base with a random map to a number, as both load it."""
    from luyen.models import hf, scored_files
    from luyen.models.scored import ScoredDecoder, without_words

    out = scratch / "scored"
    if not out.exists():
        model = ScoredDecoder(without_words(hf.load(folder)))
        torch.manual_seed(2)
        torch.nn.init.normal_(model.score.weight, 0.0, 0.02)
        out.mkdir()
        scored_files.save(model, out, bos_id=1, stop_ids=[END], pad_id=0)
    return out


def luyen_dpo(folder: Path, scratch: Path, arguments: argparse.Namespace) -> Variant:
    """Our loop with DPO."""
    from luyen.algorithms.dpo import DPO
    from luyen.algorithms.reference import FrozenModel, Known, precompute
    from luyen.models import hf

    model, pairs = hf.load(folder), stream(arguments, whole=False)
    reference: Any = FrozenModel(changed(copy.deepcopy(model).to(DTYPES[arguments.precision])))
    if arguments.precomputed:
        precompute(reference, pairs, scratch / "reference", "bench")
        reference = Known()
    return running(DPO(model, pairs, reference), scratch / "luyen-dpo", arguments.precision, updates=arguments.pairs // BATCH)


def changed(model: Any) -> Any:
    """The same model with its first map of values changed, in place: what differs from the policy before the first step."""
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(0.5)
    return model


def luyen_reward(folder: Path, scratch: Path, arguments: argparse.Namespace) -> Variant:
    """Our loop with a reward model."""
    from luyen.algorithms.reward_model import RewardModel
    from luyen.models import scored_files

    algorithm = RewardModel(scored_files.load(scored(folder, scratch)), stream(arguments, whole=True))
    return running(algorithm, scratch / "luyen-reward", arguments.precision, updates=arguments.pairs // BATCH)


def trl_variant(model: Any, made: Any, arguments: argparse.Namespace) -> Variant:
    """A trainer of TRL's; `made(steps, clock)` makes a new one on the same model."""

    def passes(count: int) -> float:
        ends = clock()
        made(count * arguments.pairs // BATCH + 1, ends).train()
        return float(ends.ends[-1] - ends.ends[0])

    def first() -> tuple[float, Gradients]:
        trainer = made(1, clock())
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        with autocast(arguments.precision):
            loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
        loss.backward()
        return float(loss.detach()), gradients(trainer.model)

    return Variant(model, passes, first)


def trl_dpo(folder: Path, scratch: Path, arguments: argparse.Namespace) -> Variant:
    """TRL's DPOTrainer."""
    from beside import peft_model
    from datasets import Dataset
    from transformers import LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer

    model = peft_model(folder, "full", arguments.precision)
    reference = changed(LlamaForCausalLM.from_pretrained(folder, dtype=DTYPES[arguments.precision]))
    names = ("prompt", "chosen", "rejected")
    parts = [["".join(f" {id_}" for id_ in part if id_ != END) for part in row] for row in rows(arguments.data, arguments.pairs)]
    data = Dataset.from_list([dict(zip(names, (part[0], f"{part[1]} </s>", f"{part[2]} </s>"), strict=True)) for part in parts])

    def made(steps: int, ends: Any) -> DPOTrainer:
        given = settings(scratch / "trl", arguments.precision, BATCH, steps)
        config = DPOConfig(**given, beta=0.1, max_length=None, train_sampling_strategy="sequential",
                           precompute_ref_log_probs=arguments.precomputed)  # fmt: skip
        return DPOTrainer(model, reference, args=config, train_dataset=data, processing_class=numbers_tokenizer(), callbacks=[ends])

    return trl_variant(model, made, arguments)


def trl_reward(folder: Path, scratch: Path, arguments: argparse.Namespace) -> Variant:
    """TRL's RewardTrainer."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(scored(folder, scratch), num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = 0
    data = Dataset.from_list([
        {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
        for prompt, chosen, rejected in rows(arguments.data, arguments.pairs)
    ])  # fmt: skip

    def made(steps: int, ends: Any) -> RewardTrainer:
        given = settings(scratch / "trl", arguments.precision, BATCH, steps)
        config = RewardConfig(**given, max_length=None, train_sampling_strategy="sequential")
        return RewardTrainer(model, args=config, train_dataset=data, processing_class=numbers_tokenizer(), callbacks=[ends])

    return trl_variant(model, made, arguments)


VARIANTS = {"luyen_dpo": luyen_dpo, "trl_dpo": trl_dpo, "luyen_reward": luyen_reward, "trl_reward": trl_reward}


def build(name: str, folder: Path, scratch: Path, arguments: argparse.Namespace) -> Variant:
    """A variant by name."""
    return VARIANTS[name](folder, scratch, arguments)


def main() -> None:
    """Run the variants."""
    parser = command_line(__doc__ or "", rounds=3, passes=1, what="over the pairs")
    parser.add_argument("--variants", default="dpo,reward")
    parser.add_argument("--data", type=Path, help="pairs of Anthropic's HH form; drawn where there is none")
    parser.add_argument("--pairs", type=int, default=12, help=f"a multiple of {BATCH}")
    parser.add_argument("--precomputed", action="store_true", help="the reference's figures are known")
    arguments = parser.parse_args()
    pairs = {kind: (f"luyen_{kind}", f"trl_{kind}") for kind in arguments.variants.split(",")}
    measure(arguments, pairs, build, arguments.pairs, "pairs")


if __name__ == "__main__":
    main()
