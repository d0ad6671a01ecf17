"""`sft`: a model and conversations to an assistant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luyen.adapters.preamble import room_of
from luyen.algorithms.sft import SFT
from luyen.core import progress
from luyen.core.errors import ConfigError, DataError
from luyen.core.plural import exactly
from luyen.core.records import Document
from luyen.core.seed import derive
from luyen.data.loader import PackedStream
from luyen.data.mixture import Mixture
from luyen.data.samples import TOO_LONG, Account, Sample, chat_samples
from luyen.engine.algorithm import Hooks
from luyen.models.presets import count_parameters
from luyen.recipe.configs import SFTConfig
from luyen.recipe.documents import Texts, read_whole
from luyen.recipe.estimate import of_stage
from luyen.recipe.sizes import row_length
from luyen.recipe.stage import Stage
from luyen.recipe.training import answer_questions, heldout_hook, some_text, train_stage
from luyen.recipe.tuning import plain_base, specialise, tokenizer_of, tuned_model, with_allocation, with_rates, write_tuned
from luyen.tokenizer.load import Tokenizer

LOST_IS_MUCH = 0.05
"""Share of the answer tokens whose loss is said aloud with what to do."""


def run(config: SFTConfig, stage: Stage) -> None:
    """Fine-tune on the answers; the result is the stage's `model` folder, or with an adapter its `adapter` folder."""
    folder = stage.model(config.model)
    tokenizer = tokenizer_of(config, folder, stage, config.template).with_template(config.template)
    base = plain_base(config, folder, stage)
    model = tuned_model(config, config.train, base, tokenizer, stage)
    length = row_length(config.batch, room_of(model))
    progress.say(f"  rows of {length:,} tokens")
    mixture = _mixture(config, stage, tokenizer, length)
    stream = PackedStream(mixture.samples, capacity=length, rows=config.batch.rows, seed=derive(stage.seed, "order"), order=mixture.order)
    held_out = some_text(_held_out(config, stage)) if config.heldout is not None else []
    hooks = Hooks(
        evaluate=heldout_hook(model, tokenizer, held_out, length),
        samples=lambda: answer_questions(model, tokenizer, config.prompts),
    )
    stage.metrics.update(parameters=count_parameters(model.config), row_length=length)
    sources = mixture.names if len(mixture.names) > 1 else []
    specialise(config, config.train, model, stream, stage, tokenizer)
    algorithm, hooks = with_allocation(config, SFT(model, stream, sources), hooks)
    result = train_stage(algorithm, with_rates(config, config.train), stage, hooks, of_stage(config, model.config))
    lineage = {"algorithm": "sft", "base": Path(folder).name, "tokens": result.tokens, "targets": result.targets, "seed": stage.seed}
    write_tuned(model, tokenizer, stage, config, base, lineage)


def _held_out(config: SFTConfig, stage: Stage) -> list[Document]:
    assert config.heldout is not None
    rejected = stage.folder / "rejected-heldout.jsonl"
    return Texts(stage.files(config.heldout), config.heldout_read, rejected, "heldout_read").measured


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
        _tell(value, account, length, config.truncation)
    weights = dict(zip(sources, config.weights, strict=True)) if config.weights else None
    stage.metrics["data"] = accounts
    return Mixture(sources, weights, seed=derive(stage.seed, "mixture"))


def _tell(value: str, account: Account, length: int, truncation: str) -> None:
    """What became of a source's rows, and why. Raises DataError when nothing is left of them."""
    why = ", ".join(f"{count:,} {reason}" for reason, count in account.dropped.items()).replace(TOO_LONG, f"longer than {length:,} tokens")
    progress.say(
        f"  {value}: {exactly(account.samples, 'row')} used, {account.num_dropped:,} dropped{f' ({why})' if why else ''}; "
        f"{exactly(account.trained, 'answer token')} trained, {account.lost:,} lost"
    )
    longer = "" if truncation == "truncate" else f"Set batch.length (rows are up to {account.longest:,} tokens) or truncation=truncate."
    if not account.samples:
        fix = longer if TOO_LONG in account.dropped else "Look at its rows: luyen inspect DATA model=MODEL."
        raise DataError(f"{value}: no row is left to train on", found=why or "no rows", fix=fix)
    if account.lost > LOST_IS_MUCH * account.answer:
        advice = longer or f"Set batch.length; rows are up to {account.longest:,} tokens."
        progress.say(f"  {account.lost / account.answer:.0%} of its answer tokens are lost. {advice}")
