"""`dpo`: a chat model and preferences to a chat model that writes more like the chosen answers; DPO, its kin and KTO."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from luyen.adapters import files
from luyen.adapters.preamble import preamble_of, room_of
from luyen.algorithms.dpo import DPO
from luyen.algorithms.kto import KTO
from luyen.algorithms.preference_watch import PreferenceWatch
from luyen.algorithms.reference import AdapterOff, FrozenModel, Known, Reference, log_probabilities, precompute
from luyen.core import distributed, progress
from luyen.core.device import pick_device, pick_dtype
from luyen.core.errors import ConfigError
from luyen.core.seed import derive
from luyen.data.branches import BranchedBatch
from luyen.data.loader import PackedStream
from luyen.data.pairs import GroupStream
from luyen.engine.algorithm import Hooks
from luyen.engine.estimate import Estimate, estimate_training
from luyen.engine.precision import autocast
from luyen.models.presets import count_parameters
from luyen.models.transformer import Transformer
from luyen.objectives.preference import UNPAIRED, PreferenceLoss
from luyen.recipe.documents import Texts
from luyen.recipe.estimate import adapter_cost
from luyen.recipe.preference_configs import PreferenceConfig
from luyen.recipe.preference_data import PreferenceReader
from luyen.recipe.sizes import USUAL_ROW
from luyen.recipe.stage import Stage
from luyen.recipe.training import answer_questions, heldout_hook, some_text, train_stage
from luyen.recipe.tuning import frozen_dtype, plain_base, specialise, tokenizer_of, tuned_model, with_allocation, with_rates, write_tuned
from luyen.tokenizer.load import Tokenizer

Judge = Callable[[], Mapping[str, float]]


def run(config: PreferenceConfig, stage: Stage) -> None:
    """Learn from preferences; the result is the stage's `model` folder, or with an adapter its `adapter` folder."""
    folder = stage.model(config.model)
    tokenizer = tokenizer_of(config, folder, stage, config.template).with_template(config.template)
    base = plain_base(config, folder, stage)
    model = tuned_model(config, config.train, base, tokenizer, stage)
    length = _length(config, model)
    reader = PreferenceReader(config, stage, tokenizer, length, share=not preamble_of(model))
    stream, heldout = reader.train(), reader.heldout()
    if config.adapter.method == "esft":
        chosen = PackedStream([group.sequences[0] for group in stream.groups], capacity=length, rows=1, seed=derive(stage.seed, "experts"))
        specialise(config, config.train, model, chosen, stage, tokenizer)
    objective = PreferenceLoss(**config.loss.numbers())
    reference = _reference(config, model, stage, {"train": stream, "heldout": heldout})
    stage.metrics.update(parameters=count_parameters(model.config), row_length=length, epochs=_epochs(config, stream))
    hooks = Hooks(
        evaluate=_evaluation(config, stage, model, tokenizer, _judge(model, heldout, reference, objective)),
        samples=lambda: answer_questions(model, tokenizer, config.prompts), stepped=PreferenceWatch(objective),
    )  # fmt: skip
    if config.loss.unpaired:
        assert reference is not None
        algorithm, hooks = with_allocation(config, KTO(model, stream, reference, objective), hooks)
    else:
        algorithm, hooks = with_allocation(config, DPO(model, stream, reference, objective), hooks)
    result = train_stage(algorithm, with_rates(config, config.train), stage, hooks, _estimate(config, model, stream))
    accuracy = result.evaluation.get("heldout_accuracy")
    if accuracy is not None:
        stage.metrics["summary"] += f", {accuracy:.1%} of held-out pairs"
    lineage = {
        "algorithm": "dpo", "loss": config.loss.name, "base": Path(folder).name, "tokens": result.tokens, "pairs": result.targets,
        "seed": stage.seed,
    }  # fmt: skip
    write_tuned(model, tokenizer, stage, config, base, lineage)


def _length(config: PreferenceConfig, model: Transformer) -> int:
    """Most positions of a sequence. ConfigError where the model has no such context."""
    limit = room_of(model)
    if config.batch.length is not None and config.batch.length > limit:
        raise ConfigError("batch.length", found=config.batch.length, expected=f"at most the model's {limit}",
                          fix=f"Set batch.length={limit}, or leave it out.")  # fmt: skip
    return config.batch.length or limit


def _epochs(config: PreferenceConfig, stream: GroupStream) -> float:
    """How often the pairs are read; said before training."""
    epochs = config.train.steps * config.train.accumulation * config.batch.pairs / len(stream.groups)
    what = "judged answers" if config.loss.unpaired else "pairs"
    progress.say(f"  {config.train.steps:,} steps read the {len(stream.groups):,} {what} {epochs:.2f} times")
    return round(epochs, 3)


def _reference(
    config: PreferenceConfig, model: Transformer, stage: Stage, streams: Mapping[str, GroupStream | None]
) -> Reference | None:  # fmt: skip
    """What the policy is compared with, as the config says, or as costs least: with an adapter the policy with it off.

    Where weights of the base itself change, or the policy begins as another adapter, the reference is the policy as it is now: a copy of
    a model that is trained whole, else what it says of every answer, computed here.
    """
    if not config.loss.needs_reference:
        return None
    aside = config.adapter.freezes_base and config.start is None and not config.tokens
    other = _other_model(config, model, stage) if config.reference is not None else None
    if other is None and not config.precompute and aside:
        progress.say("  reference: the policy with its adapter off")
        return AdapterOff(model)
    if other is None and not config.precompute and config.adapter.method == "full" and distributed.ranks() == 1:
        progress.say("  reference: a frozen copy of the model")
        return FrozenModel(copy.deepcopy(model))
    if other is not None and not config.precompute:
        progress.say(f"  reference: {config.reference}")
        return FrozenModel(other)
    progress.say(f"  reference: {config.reference or 'the model as it is now'}, asked once for every answer")
    _ask_before(config, other or model, stage, streams)
    return Known()


def _other_model(config: PreferenceConfig, model: Transformer, stage: Stage) -> Transformer:
    """The model that the config names. ConfigError for one that cannot be asked for the same tokens."""
    assert config.reference is not None
    other = files.open_model(stage.model(config.reference), "cpu", frozen_dtype(config, config.train))
    if other.config.vocab_size != model.config.vocab_size:
        raise ConfigError("reference", found=f"a model of {other.config.vocab_size:,} tokens",
                          expected=f"{model.config.vocab_size:,}, as the policy has", fix="Give one with the same tokenizer.")  # fmt: skip
    if preamble_of(other):
        raise ConfigError("reference", found="a model with learned positions", expected="a plain model or an adapter of another kind")
    return other


def _ask_before(config: PreferenceConfig, model: Transformer, stage: Stage, streams: Mapping[str, GroupStream | None]) -> None:
    """Let a model say of every answer how likely it is. Of several processes the main one asks it; the others may hold no weights."""
    device, home, training = pick_device(config.train.device), next(model.parameters()).device, model.training
    dtype = pick_dtype(config.train.precision, device)
    if distributed.is_main():
        model.to(device).eval()

    @torch.no_grad()
    def of(batch: BranchedBatch) -> Tensor:
        """Of a batch on the host."""
        with autocast(device, dtype):
            return log_probabilities(model, batch.to(device))

    names = [stage.model(name) for name in (config.reference or config.model, config.start or "") if name]
    key = [str(dtype), *(files.weights_digest(name) for name in names if distributed.is_main())]
    for name, stream in streams.items():
        if stream is not None:
            precompute(of, stream, stage.folder / "reference" / name, key)
    if distributed.is_main():
        model.to(home).train(training)


def _judge(model: Transformer, heldout: GroupStream | None, reference: Reference | None, objective: PreferenceLoss) -> Judge | None:
    """Measures the held-out pairs; None where there are none. Losses of judged answers are told as DPO's on pairs."""
    if heldout is None:
        return None
    paired = PreferenceLoss("sigmoid", objective.beta) if objective.name in UNPAIRED else objective
    algorithm = DPO(model, heldout, reference, paired)
    return lambda: algorithm.measure(heldout)


def _evaluation(config: PreferenceConfig, stage: Stage, model: Transformer, tokenizer: Tokenizer, judge: Judge | None) -> Judge | None:
    """What every evaluation measures: held-out pairs, and held-out text for what is forgotten."""
    documents = []
    if config.heldout is not None:
        rejected = stage.folder / "rejected-heldout-text.jsonl"
        documents = some_text(Texts(stage.files(config.heldout), config.heldout_read, rejected, "heldout_read").measured)
    forgetting = heldout_hook(model, tokenizer, documents, min(USUAL_ROW, _length(config, model)))
    if judge is None and forgetting is None:
        return None
    device = pick_device(config.train.device)
    dtype = pick_dtype(config.train.precision, device)

    def measure() -> dict[str, float]:
        """Both, those of pairs under names that begin with heldout."""
        with autocast(device, dtype):
            pairs = {f"heldout_{name}": value for name, value in judge().items()} if judge is not None else {}
        return {**(forgetting() if forgetting is not None else {}), **pairs}

    return measure


def _estimate(config: PreferenceConfig, model: Transformer, stream: GroupStream) -> Estimate:
    """What training will take, from the mean tokens of a group, its prompt counted once; a reference that is asked at every step is not
    counted."""
    lengths = []
    for group in stream.groups:
        shared = group.shared if stream.shared else 0
        lengths.append(sum(len(sequence.tokens) - shared for sequence in group.sequences) + shared)
    tokens = sum(lengths)
    targets = sum(sequence.num_targets for group in stream.groups for sequence in group.sequences)
    half = pick_dtype(config.train.precision, pick_device(config.train.device)) != torch.float32
    return estimate_training(
        model.config, config.train, config.batch.pairs, max(1, round(tokens / len(lengths))), targets / tokens,
        adapter_cost(config, model.config, half),
    )  # fmt: skip
