"""What pretraining and fine-tuning share as stages: hooks for evaluation and samples, the result's folder, the facts to record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from luyen.core import distributed, manifest, progress
from luyen.core.device import multiplies_fast, pick_device
from luyen.core.random_state import seed_everything
from luyen.core.records import Document, Message
from luyen.core.seed import derive
from luyen.engine import carbon
from luyen.engine.algorithm import Algorithm, Hooks, TrainResult
from luyen.engine.config import TrainConfig
from luyen.engine.estimate import Estimate
from luyen.engine.memory import peak_bytes, reset_peak
from luyen.engine.trainer import fit
from luyen.evaluation.perplexity import bits_per_byte
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate
from luyen.models import hf
from luyen.models.transformer import Transformer
from luyen.recipe.environment import versions
from luyen.recipe.estimate import counts_gpu, process_bytes, training_rate
from luyen.recipe.sizes import HELD_OUT_BYTES, SAMPLE_TOKENS
from luyen.recipe.stage import Stage
from luyen.tokenizer.chat import render
from luyen.tokenizer.load import Tokenizer

SAMPLE = SamplingConfig(max_new_tokens=SAMPLE_TOKENS)
WORTH_TELLING = 600.0
"""Seconds of training from which a faster setting is pointed out."""


def some_text(documents: Iterable[Document], limit: int = HELD_OUT_BYTES) -> list[Document]:
    """Documents from the start until `limit` bytes are reached."""
    chosen: list[Document] = []
    size = 0
    for document in documents:
        if size >= limit:
            break
        chosen.append(document)
        size += len(document.text.encode())
    return chosen


def heldout_hook(
    model: Transformer, tokenizer: Tokenizer, documents: Sequence[Document], length: int
) -> Callable[[], Mapping[str, float]] | None:
    """Measures bits per byte of held-out text; None when there is no such text."""
    if not documents:
        return None
    return lambda: {"heldout_bits_per_byte": bits_per_byte(model, tokenizer, documents, length).value}


def continue_texts(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[dict[str, str]]:
    """How the model goes on after each prompt, greedily."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return _written(model, tokenizer, prompts, [start + tokenizer.encode(prompt) for prompt in prompts])


def answer_questions(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[dict[str, str]]:
    """What the model answers to each question, greedily."""
    ids = [render(tokenizer, [Message("user", prompt)], add_generation_prompt=True).ids for prompt in prompts]
    return _written(model, tokenizer, prompts, ids)


def _written(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str], ids: list[list[int]]) -> list[dict[str, str]]:
    if not prompts:
        return []
    answers = generate(model, ids, SAMPLE, tokenizer.stop_ids)
    return [{"prompt": prompt, "answer": tokenizer.decode(answer.ids)} for prompt, answer in zip(prompts, answers, strict=True)]


def train_stage(
    algorithm: Algorithm, config: TrainConfig, stage: Stage, hooks: Hooks, estimate: Estimate
) -> TrainResult:  # fmt: skip
    """Run the loop in the stage's folder, continuing what is there, and record what it did beside what was estimated."""
    if stage.instead:
        stage.instead(algorithm, config)
    rate = training_rate(config, estimate)  # before the peak is reset: measuring it takes memory too
    on_gpu = counts_gpu(config)
    if on_gpu:
        reset_peak(pick_device(config.device))  # the process' own is counted from the stage's start
    said = {"seconds": round(estimate.seconds(rate), 3), "bytes": process_bytes(config, estimate)}
    stage.facts.setdefault("estimate", said)  # one made before the whole run is what its user was told
    if hint := faster_precision(config, said["seconds"]):
        progress.say(hint)
    seed_everything(derive(stage.seed, "loop"))
    hooks = dataclasses.replace(hooks, rate=rate.operations, operations=estimate.work.operations, measured=stage.measured)
    try:
        result = fit(algorithm, config, stage.folder, seed=stage.seed, hooks=hooks)
    finally:
        if on_gpu:  # also of a run that is stopped, whose next attempt has a peak of its own
            stage.facts["peak_bytes"] = peak_bytes(pick_device(config.device))
    stage.metrics.update(dataclasses.asdict(result))
    stage.facts.update(tokens=result.tokens, joules=result.joules, processes=distributed.ranks())
    if config.watch.carbon != "" and result.joules is not None:
        kwh, each = carbon.from_joules(result.joules), carbon.intensity(str(config.watch.carbon))
        stage.facts["grams_co2"] = round(carbon.grams(kwh, each), 3)
    bits = result.evaluation.get("heldout_bits_per_byte")
    stage.metrics["summary"] = f"loss {result.loss:.3f}" + (f", held-out text {bits:.3f} bits/byte" if bits is not None else "")
    return result


def faster_precision(train: TrainConfig, seconds: float) -> str:
    """What to say before a run of so many seconds that would be much shorter in bf16; empty for others."""
    fast = pick_device(train.device).type == "cpu" and multiplies_fast(torch.bfloat16)
    if train.precision != "auto" or not fast or seconds < WORTH_TELLING:
        return ""
    return "this CPU has units for bf16: train.precision=bf16 makes products about seven times as fast, and rounds them to three digits"


def write_model(model: Transformer, tokenizer: Tokenizer, stage: Stage, lineage: Mapping[str, object], name: str = "model") -> Path:
    """The model and its tokenizer as a sealed Hugging Face folder of the stage; of several processes the main one writes it."""
    place = stage.folder / name
    if not distributed.is_main():
        return place
    with manifest.new_folder(place) as folder:
        with torch.no_grad():
            hf.save(model, folder, bos_id=tokenizer.bos_id, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
        tokenizer.save(folder)
        manifest.seal(folder, "model", lineage=lineage, versions=versions())
    return place
