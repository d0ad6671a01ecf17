"""What a run will take, said before it starts: time and memory of every training stage on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from luyen.core.device import matmul_rate, pick_device, pick_dtype
from luyen.engine.config import TrainConfig
from luyen.engine.estimate import Estimate, estimate_training
from luyen.models import hf
from luyen.models.config import TransformerConfig
from luyen.recipe.configs import BatchSection, PretrainConfig, SFTConfig, TokenizerVerbConfig
from luyen.recipe.graph import Plan, StagePlan
from luyen.recipe.sizes import model_config, row_length
from luyen.tokenizer.load import Tokenizer


def training_rate(train: TrainConfig) -> float:
    """Matrix-product operations per second of the device and type that `train` will use, measured now."""
    device = pick_device(train.device)
    return matmul_rate(device, pick_dtype(train.precision, device))


def of_stage(train: TrainConfig, batch: BatchSection, model: TransformerConfig) -> Estimate:
    """The estimate of a training stage."""
    return estimate_training(model, train, batch.rows, row_length(batch, model.context_length))


def estimate_lines(plan: Plan) -> list[str]:
    """One line a training stage; a stage whose model is not known yet (a hub name) is said to be so."""
    stages = {stage.name: stage for stage in plan.stages}
    lines: list[str] = []
    whole, rate = 0.0, 0.0
    for stage in plan.stages:
        config = stage.config
        if not isinstance(config, (PretrainConfig, SFTConfig)):
            continue
        model = _model_of(stage, stages)
        if model is None:
            lines.append(f"  {stage.name}: the model's size is not known here, so nothing can be estimated")
            continue
        rate = rate or training_rate(config.train)
        estimate = of_stage(config.train, config.batch, model)
        seconds = estimate.seconds(rate)
        whole += seconds
        lines.append(
            f"  {stage.name}: {estimate.parameters / 1e6:.1f}M parameters, at most {estimate.tokens:,} tokens, "
            f"about {seconds:,.0f} s and {estimate.bytes / 1e9:.1f} GB"
        )
    if not lines:
        return []
    return [f"estimate, for {rate / 1e9:,.0f} GFLOP/s measured now:", *lines, f"  all training: about {whole / 60:.1f} min"]


def _model_of(stage: StagePlan, stages: Mapping[str, StagePlan]) -> TransformerConfig | None:
    config = stage.config
    if isinstance(config, PretrainConfig):
        size = _vocabulary(config.tokenizer, stages)
        return model_config(config.model, size) if size else None
    assert isinstance(config, SFTConfig)
    if config.model in stages:
        return _model_of(stages[config.model], stages)
    path = Path(config.model).expanduser()
    folder = path / "model" if (path / "model" / "config.json").is_file() else path
    return hf.read_config(folder) if (folder / "config.json").is_file() else None


def _vocabulary(name: str, stages: Mapping[str, StagePlan]) -> int:
    if name in stages:
        config = stages[name].config
        return config.vocab_size if isinstance(config, TokenizerVerbConfig) else 0
    path = Path(name).expanduser()
    return Tokenizer.load(path).vocab_size if (path / "tokenizer.json").is_file() else 0
