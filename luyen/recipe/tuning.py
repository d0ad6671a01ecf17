"""Training an existing model, as a stage: the model whole or with an adapter, what of it is trained, and the result as a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from luyen.adapters import files
from luyen.adapters.adalora import after_update, penalty
from luyen.adapters.adapt import adapt, trained_of_all
from luyen.adapters.config import LOW_RANK, AdapterConfig
from luyen.adapters.esft import Choice, choose_experts, mark, mixtures
from luyen.adapters.foreign import other_name
from luyen.adapters.linear import adapted
from luyen.adapters.merged import stored_dtype
from luyen.adapters.new_tokens import grow, new_rows, train_rows
from luyen.adapters.preamble import start_at
from luyen.adapters.quantization_error import quantization_error
from luyen.algorithms.penalised import Penalised
from luyen.core import config as configs
from luyen.core import distributed, manifest, progress
from luyen.core.device import pick_device, pick_dtype
from luyen.core.errors import ConfigError
from luyen.core.random_state import seed_everything
from luyen.core.seed import derive
from luyen.data.loader import PackedStream, collate
from luyen.engine.algorithm import Algorithm, Hooks
from luyen.engine.config import TrainConfig
from luyen.models.attention import Layout
from luyen.models.transformer import Transformer
from luyen.recipe.configs import TuningConfig
from luyen.recipe.environment import versions
from luyen.recipe.stage import Stage
from luyen.recipe.training import write_model
from luyen.tokenizer.load import Tokenizer

TEXT = (
    "The library is open every day from nine to five, and the books may be kept for three weeks. "
    "Thư viện mở cửa mỗi ngày từ chín giờ sáng đến năm giờ chiều, và sách được giữ ba tuần. "
    "Библиотека открыта каждый день с девяти до пяти, книги можно держать три недели."
)
"""What the error of a base in few bits is measured on."""
MERGED = "base"
"""Folder of a stage with the plain model that its adapter is for, where the stage was given another adapter as its model."""


def plain_base(config: TuningConfig, folder: str, stage: Stage) -> str:
    """The plain model that is tuned: the folder, or for an adapter's what it and its base are merged into, which is written first.

    Written, because PEFT opens adapters of plain models alone, and because the codes of few bits are then made of the same numbers now
    and whenever the result is opened. A model that is trained whole needs no copy, and of several processes only the main one makes it:
    the others read names and shapes alone, which the adapter's folder tells as well.
    """
    if files.locate(folder) is None:
        return folder
    progress.say(f"  the adapter of {folder} is merged into its base before training goes on")
    if config.adapter.method == "full" or not distributed.is_main():
        return folder
    place, digest = stage.folder / MERGED, files.weights_digest(folder)
    kept = manifest.read(place).get("lineage") if (place / manifest.MANIFEST).is_file() else None
    if not isinstance(kept, dict) or kept.get("weights") != digest:
        model = files.open_base(folder, None, "cpu", stored_dtype(folder))
        lineage = {"algorithm": "merge", "adapter": Path(folder).name, "weights": digest}
        write_model(model, Tokenizer.load(files.locate_tokenizer(folder)), stage, lineage, MERGED)
    progress.say(f"  what came of it is kept in {place}: the new adapter is one of that model")
    return str(place)


def tuned_model(config: TuningConfig, train: TrainConfig, folder: str, tokenizer: Tokenizer, stage: Stage) -> Transformer:
    """The model of a folder (see `plain_base`) as it will be trained: frozen, in few bits and with an adapter, where the config says so.

    What is trained is counted and said.
    """
    model = _frozen_or_whole(config, frozen_dtype(config, train), folder, tokenizer)
    if config.tokens:
        grow(model, tokenizer.vocab_size - len(config.tokens), tokenizer.vocab_size)
    if config.start is None and config.adapter.method == "esft":
        mixtures(model)  # which of them are trained the data says: specialise
        return model
    if config.start is None:
        seed_everything(derive(stage.seed, "adapter"))
        _adapt(config, model, tokenizer)
        if config.adapter.prompt.text:
            start_at(model, tokenizer.encode(config.adapter.prompt.text))
    else:
        digest = distributed.told_by_main(files.weights_digest(folder) if distributed.is_main() else None)
        start = stage.model(config.start)
        if different := other_name(start, folder):
            progress.say(f"  {different}")
        _go_on(model, config, start, digest)
    if train.parallel.shard > 1 and any(new_rows(model)):
        raise ConfigError("train.parallel.shard", found=train.parallel.shard, expected="1 for an adapter with new tokens", fix="Take data.")
    if config.adapter.method != "full":
        _count(config, model, stage)
    return model


def tokenizer_of(config: TuningConfig, folder: str, stage: Stage, template: str = "") -> Tokenizer:
    """The tokenizer of a model that is tuned with the tokens that the config adds, or that the adapter has which is gone on with."""
    own = Tokenizer.load(files.locate_tokenizer(folder))
    if config.start is not None:
        theirs = Tokenizer.load(files.locate_tokenizer(stage.model(config.start)))
        bigger = theirs.vocab_size > own.vocab_size
        same = theirs.vocab_size == own.vocab_size and theirs.has_template  # the template that the adapter was trained with
        return theirs if bigger or same else own
    return own.with_tokens(config.tokens, template)


def _adapt(config: TuningConfig, model: Transformer, tokenizer: Tokenizer) -> None:
    """The adapter, and beside it the rows of the new tokens, which are the tokenizer's last."""
    adapt(model, config.adapter)
    train_rows(model, range(tokenizer.vocab_size - len(config.tokens), tokenizer.vocab_size))


def _count(config: TuningConfig, model: Transformer, stage: Stage) -> None:
    count, whole = trained_of_all(model)
    stage.metrics["trained"] = count
    progress.say(f"  {config.adapter.method}: {count:,} of {whole:,} weights are trained ({count / whole:.2%})")


def specialise(
    config: TuningConfig, train: TrainConfig, model: Transformer, stream: PackedStream, stage: Stage, tokenizer: Tokenizer
) -> None:  # fmt: skip
    """For `esft` choose the experts that the first rows of the data go to, say them, and train those alone; nothing for other methods.

    Measured on the base, so a run that is resumed chooses the same; one that goes on from an adapter keeps that one's experts.
    """
    if config.adapter.method != "esft" or config.start is not None:
        return
    choice: Choice = distributed.told_by_main(_measured(config, train, model, stream) if distributed.is_main() else None)
    stage.metrics["experts"] = {name: {str(number): share for number, share in chosen.items()} for name, chosen in choice.items()}
    for name, chosen in choice.items():
        told = ", ".join(f"{number} ({share:.1%})" for number, share in chosen.items())
        progress.say(f"  {name}: experts {told} are trained")
    mark(model, choice)
    _adapt(config, model, tokenizer)
    _count(config, model, stage)


def _measured(config: TuningConfig, train: TrainConfig, model: Transformer, stream: PackedStream) -> Choice:
    device, home, rows = pick_device(train.device), next(model.parameters()).device, config.adapter.experts.samples
    indices = stream.plan(0)[:rows]
    batches = (collate([stream.samples[index] for index in row]).to(device) for row in indices)
    model.to(device)
    choice = choose_experts(
        model, ((batch.tokens_T[None], Layout.packed(batch.lengths, device)) for batch in batches), config.adapter.experts
    )
    model.to(home)
    return choice


def frozen_dtype(config: TuningConfig, train: TrainConfig) -> torch.dtype:
    """Type of the weights that no step changes: that of the products, in which nobody needs them more exactly. What is trained is fp32.

    Where `also` trains some of them all stay fp32, so that no layer meets two types.
    """
    if not config.adapter.freezes_base:
        return torch.float32
    return pick_dtype(train.precision, pick_device(train.device))


def _frozen_or_whole(config: TuningConfig, dtype: torch.dtype, folder: str, tokenizer: Tokenizer) -> Transformer:
    """The plain model of a folder, in few bits where the config says so; how far that is from the model is said."""
    bits = None if config.quantize == "none" else {"kind": config.quantize, "double": True}
    model = files.open_base(folder, bits, distributed.weights_of_main(), dtype)
    if bits is None or not distributed.is_main():
        return model
    known = [number for number in tokenizer.encode(TEXT) if number < model.config.vocab_size]  # new tokens have no rows yet
    tokens = torch.tensor([known[: model.config.context_length]])
    for line in quantization_error(model, folder, tokens).lines():
        progress.say(f"  {line}")
    return model


def _go_on(model: Transformer, config: TuningConfig, start: str, digest: str) -> None:
    """Put the adapter of `start` on the model. ConfigError where it is made otherwise than is asked for, or of a base in other bits."""
    before, now = (_form(item) for item in (files.read_config(start), config.adapter))
    for key, value in now.items():
        if value != before[key]:
            raise ConfigError(f"adapter.{key} is not that of start={config.start}", found=value, expected=before[key],
                              fix="Set it so, or leave start out for a new adapter.")  # fmt: skip
    folder, held = files.locate(start), files.quantization(start)
    told = folder is not None and (folder / manifest.MANIFEST).is_file()  # what others wrote does not tell
    if told and held != (None if config.quantize == "none" else {"kind": config.quantize, "double": True}):
        bits = "none" if held is None else held["kind"] if held["double"] else f"{held['kind']} without double quantization"
        raise ConfigError(f"quantize is not that of the base that start={config.start} was trained on", found=config.quantize,
                          expected=bits, fix="Set it so, or leave start out for a new adapter.")  # fmt: skip
    files.load_into(model, start, digest)
    for _, module in adapted(model):
        if hasattr(module, "dropout"):
            cast(Any, module).dropout = config.adapter.dropout


def _form(config: AdapterConfig) -> dict[str, object]:
    """What an adapter is made of, by dotted key. What training alone reads is left out: it may change when an adapter is gone on with."""
    values = configs.dump(config)
    nested = {f"{key}.{own}": value for key, part in values.items() if isinstance(part, dict) for own, value in part.items()}
    flat = {**{key: value for key, value in values.items() if not isinstance(value, dict)}, **nested}
    start = "allocation.start_rank"
    free = ("dropout", "lora.rate_ratio", "prompt.text")
    return {key: value for key, value in flat.items() if key == start or not key.startswith(("allocation.", *free))}


def with_rates(config: TuningConfig, train: TrainConfig) -> TrainConfig:
    """The training config with the learning rates that the adapter asks for (LoRA+: B learns faster than A)."""
    ratio = config.adapter.lora.rate_ratio
    if config.adapter.method not in LOW_RANK or ratio == 1:
        return train
    rates = {"lora_B": ratio, **train.optimizer.rates}
    return train.model_copy(update={"optimizer": train.optimizer.model_copy(update={"rates": rates})})


def with_allocation(config: TuningConfig, algorithm: Algorithm, hooks: Hooks) -> tuple[Algorithm, Hooks]:
    """The algorithm and the hooks, with what AdaLoRA needs of a training run; unchanged for the other methods."""
    if config.adapter.method != "adalora":
        return algorithm, hooks
    model, adapter = algorithm.model, config.adapter
    hooks = replace(hooks, updated=lambda step, steps: after_update(model, adapter, step, steps))
    return Penalised(algorithm, lambda: penalty(model, adapter)), hooks


def write_tuned(
    model: Transformer, tokenizer: Tokenizer, stage: Stage, config: TuningConfig, base: str, lineage: Mapping[str, object]
) -> Path:  # fmt: skip
    """The result: a `model` folder after full training, else an `adapter` folder with the tokenizer beside it, sealed."""
    if config.adapter.method == "full":
        return write_model(model, tokenizer, stage, lineage)
    if not distributed.is_main():
        return stage.folder / "adapter"
    with manifest.new_folder(stage.folder / "adapter") as folder:
        facts = files.write(model, config.adapter, folder, base=base, digest=files.weights_digest(base))
        tokenizer.save(folder)
        manifest.seal(folder, "adapter", **facts, lineage=lineage, versions=versions())
    return stage.folder / "adapter"
