"""`sft`: a model and conversations to an assistant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luyen.algorithms.sft import SFT
from luyen.core import progress
from luyen.core.errors import ConfigError
from luyen.core.records import Document
from luyen.core.seed import derive
from luyen.data.config import ReadConfig
from luyen.data.loader import PackedStream
from luyen.data.mixture import Mixture
from luyen.data.samples import Sample, chat_samples
from luyen.engine.algorithm import Hooks
from luyen.models import hf
from luyen.models.presets import count_parameters
from luyen.recipe.configs import SFTConfig
from luyen.recipe.documents import Texts, read_whole
from luyen.recipe.estimate import ANSWER_SHARE, of_stage
from luyen.recipe.sizes import row_length
from luyen.recipe.stage import Stage
from luyen.recipe.training import answer_questions, heldout_hook, some_text, train_stage, write_model
from luyen.tokenizer.load import Tokenizer


def run(config: SFTConfig, stage: Stage) -> None:
    """Fine-tune all weights on the answers; the result is the stage's `model` folder."""
    folder = stage.model(config.model)
    model = hf.load(folder)
    tokenizer = Tokenizer.load(hf.locate(folder)).with_template(config.template)
    length = row_length(config.batch, model.config.context_length)
    progress.say(f"  rows of {length:,} tokens")
    mixture = _mixture(config, stage, tokenizer, length)
    stream = PackedStream(mixture.samples, capacity=length, rows=config.batch.rows, seed=derive(stage.seed, "order"), order=mixture.order)
    held_out = some_text(_held_out(config, stage))
    hooks = Hooks(
        evaluate=heldout_hook(model, tokenizer, held_out, length),
        samples=lambda: answer_questions(model, tokenizer, config.prompts),
    )
    stage.metrics.update(parameters=count_parameters(model.config), row_length=length)
    result = train_stage(SFT(model, stream), config.train, stage, hooks, of_stage(config.train, config.batch, model.config, ANSWER_SHARE))
    lineage = {"algorithm": "sft", "base": Path(folder).name, "tokens": result.tokens, "targets": result.targets, "seed": stage.seed}
    write_model(model, tokenizer, stage, lineage)


def _held_out(config: SFTConfig, stage: Stage) -> list[Document]:
    if config.heldout is None:
        return []
    reading = ReadConfig(strict=config.read.strict)  # the rest of `read` is about the files of `data`
    return Texts(stage.files(config.heldout), reading, stage.folder / "rejected-heldout.jsonl").heldout


def _mixture(config: SFTConfig, stage: Stage, tokenizer: Tokenizer, length: int) -> Mixture:
    """All sources as samples in their shares; what was dropped is counted, said and kept."""
    values = [config.data] if isinstance(config.data, str) else config.data
    if config.weights is not None and len(config.weights) != len(values):
        raise ConfigError("weights", found=f"{len(config.weights)} numbers", expected=f"one for each of the {len(values)} sources")
    sources: dict[str, Sequence[Sample]] = {}
    accounts = {}
    for number, value in enumerate(values):
        dataset = read_whole(stage.data(value), config.read, stage.folder / f"rejected-{number}.jsonl")
        name = f"source{number}"  # not the path: the same data under another name gives the same bits
        samples, account = chat_samples(dataset.records, tokenizer, length, config.truncation, name=name)
        sources[name] = samples
        accounts[value] = {"format": dataset.format, "rows": dataset.account.as_dict(), "tokens": account.as_dict()}
        progress.say(
            f"  {value}: {account.samples:,} rows used, {account.num_dropped:,} dropped; "
            f"{account.trained:,} answer tokens trained, {account.lost:,} lost"
        )
    weights = dict(zip(sources, config.weights, strict=True)) if config.weights else None
    stage.metrics["data"] = accounts
    return Mixture(sources, weights, seed=derive(stage.seed, "mixture"))
