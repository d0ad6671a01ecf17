"""`pretrain`: documents, a tokenizer and a size to a base model."""

from __future__ import annotations

from pathlib import Path

from luyen.adapters.preamble import room_of
from luyen.algorithms.pretrain import Pretrain
from luyen.core import config as configs
from luyen.core import distributed, progress
from luyen.core.random_state import seed_everything
from luyen.core.seed import derive
from luyen.data.loader import PackedStream
from luyen.data.samples import text_samples
from luyen.engine.algorithm import Hooks
from luyen.models.presets import count_parameters
from luyen.models.transformer import Transformer
from luyen.recipe.configs import PretrainConfig
from luyen.recipe.documents import Texts
from luyen.recipe.estimate import of_stage
from luyen.recipe.sizes import model_config, row_length
from luyen.recipe.stage import Stage
from luyen.recipe.training import continue_texts, heldout_hook, some_text, train_stage, write_model
from luyen.recipe.tuning import plain_base, specialise, tokenizer_of, tuned_model, with_allocation, with_rates, write_tuned
from luyen.tokenizer.load import Tokenizer


def run(config: PretrainConfig, stage: Stage) -> None:
    """Train from nothing or from a base; the result is the stage's `model` folder, or with an adapter its `adapter` folder."""
    given = None if config.base is None else stage.model(config.base)
    tokenizer = Tokenizer.load(stage.tokenizer(str(config.tokenizer))) if given is None else tokenizer_of(config, given, stage)
    base = None if given is None else plain_base(config, given, stage)
    model = _new(config, tokenizer, stage) if base is None else tuned_model(config, config.train, base, tokenizer, stage)
    size = model.config
    length = row_length(config.batch, room_of(model))
    progress.say(f"  rows of {length:,} tokens")
    texts = Texts(stage.files(config.data), config.read, stage.folder / "rejected.jsonl")
    samples, account = text_samples(texts.train, tokenizer, length)
    held_out = some_text(texts.heldout)
    stream = PackedStream(samples, capacity=length, rows=config.batch.rows, seed=derive(stage.seed, "order"))
    hooks = Hooks(
        evaluate=heldout_hook(model, tokenizer, held_out, length),
        samples=lambda: continue_texts(model, tokenizer, config.prompts),
    )
    stage.metrics.update(parameters=count_parameters(size), model=configs.dump(size), row_length=length)
    stage.metrics.update(data=account.as_dict(), read=texts.account)
    if base is not None:
        specialise(config, config.train, model, stream, stage, tokenizer)
    algorithm, hooks = with_allocation(config, Pretrain(model, stream), hooks)
    result = train_stage(algorithm, with_rates(config, config.train), stage, hooks, of_stage(config, size))
    stage.metrics["epochs"] = round(result.tokens / max(account.tokens, 1), 2)
    lineage = {"algorithm": "pretrain", "tokens": result.tokens, "seed": stage.seed}
    if given is None or base is None:
        write_model(model, tokenizer, stage, lineage)
    else:
        write_tuned(model, tokenizer, stage, config, base, {**lineage, "base": Path(given).name})


def _new(config: PretrainConfig, tokenizer: Tokenizer, stage: Stage) -> Transformer:
    seed_everything(derive(stage.seed, "weights"))
    with distributed.weights_of_main():
        return Transformer(model_config(config.model, tokenizer.vocab_size))
