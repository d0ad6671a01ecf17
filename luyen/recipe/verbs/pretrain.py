"""`pretrain`: documents, a tokenizer and a size to a base model."""

from __future__ import annotations

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
from luyen.tokenizer.load import Tokenizer


def run(config: PretrainConfig, stage: Stage) -> None:
    """Train from nothing; the result is the stage's `model` folder."""
    tokenizer = Tokenizer.load(stage.tokenizer(config.tokenizer))
    size = model_config(config.model, tokenizer.vocab_size)
    length = row_length(config.batch, size.context_length)
    progress.say(f"  rows of {length:,} tokens")
    texts = Texts(stage.files(config.data), config.read, stage.folder / "rejected.jsonl")
    samples, account = text_samples(texts.train, tokenizer, length)
    held_out = some_text(texts.heldout)
    seed_everything(derive(stage.seed, "weights"))
    with distributed.weights_of_main():
        model = Transformer(size)
    stream = PackedStream(samples, capacity=length, rows=config.batch.rows, seed=derive(stage.seed, "order"))
    hooks = Hooks(
        evaluate=heldout_hook(model, tokenizer, held_out, length),
        samples=lambda: continue_texts(model, tokenizer, config.prompts),
    )
    stage.metrics.update(parameters=count_parameters(size), model=configs.dump(size), row_length=length)
    stage.metrics.update(data=account.as_dict(), read=texts.account)
    result = train_stage(Pretrain(model, stream), config.train, stage, hooks, of_stage(config.train, config.batch, model.config))
    stage.metrics["epochs"] = round(result.tokens / max(account.tokens, 1), 2)
    write_model(model, tokenizer, stage, {"algorithm": "pretrain", "tokens": result.tokens, "seed": stage.seed})
