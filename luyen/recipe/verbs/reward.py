"""`reward`: a chat model and preferences to a reward model, and how good it is at telling answers apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luyen.adapters.adapt import merge_in_place
from luyen.algorithms.reward_model import RewardLoss, RewardModel, columns
from luyen.core import config as configs
from luyen.core import distributed, manifest, progress
from luyen.core.device import pick_device, pick_dtype
from luyen.core.errors import ConfigError
from luyen.core.storage import write_atomic, write_json
from luyen.data.pairs import GroupStream
from luyen.data.shuffle import permutation
from luyen.engine.algorithm import Hooks, TrainResult
from luyen.engine.estimate import estimate_training
from luyen.engine.trainer import fit
from luyen.evaluation import reward_accuracy, reward_scaling
from luyen.evaluation.judge import EndpointJudge, Judge, ModelJudge, judge
from luyen.evaluation.reward_accuracy import Judged, agreement, summary
from luyen.evaluation.reward_baselines import word_counts
from luyen.inference.reward_model import open_reward_model, score_groups, score_texts
from luyen.models import scored_files
from luyen.models.presets import count_parameters
from luyen.models.scored import ScoredDecoder, without_words
from luyen.objectives.reward import ranking_losses
from luyen.recipe.environment import versions
from luyen.recipe.estimate import adapter_cost
from luyen.recipe.reward_configs import RewardTrainConfig, RewardVerbConfig
from luyen.recipe.reward_data import PairData, Pairs, Reader
from luyen.recipe.stage import Stage
from luyen.recipe.training import train_stage
from luyen.recipe.tuning import plain_base, tokenizer_of, tuned_model, with_allocation, with_rates
from luyen.tokenizer.load import Tokenizer

WATCHED = 256
"""Held-out pairs that evaluations during training measure on; the last figures are of all of them."""


def run(config: RewardVerbConfig, stage: Stage) -> None:
    """Train on the pairs and measure; the result is the stage's `reward` folder."""
    if config.scaling and distributed.ranks() > 1:
        raise ConfigError("scaling", found=f"{distributed.ranks()} processes", expected="one", fix="Run it without torchrun.")
    folder = stage.model(config.model)
    tokenizer = tokenizer_of(config, folder, stage).with_template("")
    base = plain_base(config, folder, stage)
    model = _model(config, base, tokenizer, stage)
    data = Reader(config, stage, tokenizer, _length(config, model)).read()
    algorithm = _algorithm(config, model, data, stage.seed)
    train = _with_epochs(config, len(data.train.groups))
    stage.metrics.update(parameters=count_parameters(model.config), pairs=len(data.train.groups), held_out_pairs=len(data.heldout.groups))
    watched = data.heldout.part(range(min(WATCHED, len(data.heldout.groups))))
    hooks = Hooks(evaluate=lambda: _measured(model, watched))
    half = pick_dtype(train.precision, pick_device(train.device)) != torch.float32
    tokens = sum(len(sequence.tokens) for group in data.train.groups for sequence in group.sequences)
    mean = max(1, round(tokens / (2 * len(data.train.groups))))
    estimate = estimate_training(model.config, train, 2 * config.batch.pairs, mean, 1 / mean, adapter_cost(config, model.config, half))
    trained, hooks = with_allocation(config, algorithm, hooks)
    result = train_stage(trained, with_rates(config, train), stage, hooks, estimate)
    if config.adapter.method != "full":
        merge_in_place(model.decoder)
    if distributed.is_main():
        _report(config, stage, model.eval(), tokenizer, data)
    _write(model, tokenizer, stage, {"algorithm": "reward", "base": Path(folder).name, **_told(result), "seed": stage.seed})
    if config.scaling:
        _scale(config, stage)


def _told(result: TrainResult) -> dict[str, int]:
    return {"tokens": result.tokens, "pairs": result.targets}


def _model(config: RewardVerbConfig, base: str, tokenizer: Tokenizer, stage: Stage) -> ScoredDecoder:
    """The chat model with a map to numbers in place of its head for words."""
    decoder = without_words(tuned_model(config, config.train, base, tokenizer, stage))
    return ScoredDecoder(decoder, 2 if config.loss.safety_head else 1)


def _length(config: RewardVerbConfig, model: ScoredDecoder) -> int:
    """Most tokens of a sequence. ConfigError where the model has no such context."""
    limit = model.config.context_length
    if config.batch.length is not None and config.batch.length > limit:
        raise ConfigError("batch.length", found=config.batch.length, expected=f"at most the model's {limit}")
    return config.batch.length or limit


def _algorithm(config: RewardVerbConfig, model: ScoredDecoder, data: PairData, seed: int) -> RewardModel:
    found = columns(data.train.rows, config.loss.margins, config.loss.safety > 0)
    stream = GroupStream(data.train.groups, size=config.batch.pairs, seed=seed, columns=found, order=data.order)
    return RewardModel(model, stream, RewardLoss(config.loss.centring, config.loss.safety))


def _with_epochs(config: RewardVerbConfig, pairs: int) -> RewardTrainConfig:
    """The training config with the steps that the epochs take, where they are fewer than its own."""
    needed = math.ceil(config.epochs * pairs / (config.batch.pairs * config.train.accumulation))
    steps = min(config.train.steps, max(1, needed))
    progress.say(f"  {steps:,} steps of {config.batch.pairs * config.train.accumulation:,} pairs, {config.epochs:g} epochs are {needed:,}")
    return configs.load(RewardTrainConfig, {**configs.dump(config.train), "steps": steps}, "train")


def _rewards(model: ScoredDecoder, pairs: Pairs) -> list[Judged]:
    scores = score_groups(model, pairs.groups)[:, 0].reshape(-1, 2).tolist()
    return [Judged(row, both[0], both[1], source) for row, both, source in zip(pairs.rows, scores, pairs.sources, strict=True)]


def _loss(judged: list[Judged]) -> float:
    both = torch.tensor([[item.chosen, item.rejected] for item in judged], dtype=torch.float64)
    return float(ranking_losses(both[:, 0], both[:, 1]).mean())


def _measured(model: ScoredDecoder, pairs: Pairs) -> dict[str, float]:
    """Loss without margins and accuracy on held-out pairs."""
    judged = _rewards(model, pairs)
    return {"heldout_loss": _loss(judged), "heldout_accuracy": float(np.mean([item.right for item in judged]))}


def _report(config: RewardVerbConfig, stage: Stage, model: ScoredDecoder, tokenizer: Tokenizer, data: PairData) -> None:
    """All measures on the held-out pairs: said, in the stage's metrics, evaluation.json and heldout.jsonl."""
    judged = _rewards(model, data.heldout)
    found = {**summary(judged), "loss": _loss(judged)}
    words = word_counts(data.train.rows, data.heldout.rows)
    found["word_counts"] = words
    for line in reward_accuracy.told(found):
        progress.say(f"  {line}")
    found["safety"] = _safety(config, model, data.heldout)
    counted = f"{words['accuracy']:.1%}" if words else "not measured, as scikit-learn is not installed"
    progress.say(f"  TF-IDF and logistic regression: {counted}")
    if config.beside is not None:
        other, own = open_reward_model(stage.model(config.beside), config.train.device)
        texts = [[*row.prompt, *answer] for row in data.heldout.rows for answer in (row.chosen, row.rejected)]
        scores = iter(score_texts(other, own, texts))
        theirs = [dataclasses.replace(item, chosen=next(scores), rejected=next(scores)) for item in judged]
        found["beside"] = agreement(judged, theirs)
        progress.say(f"  agrees with {config.beside} on {found['beside']['agree']:.1%} of the pairs, which is right in "
                     f"{found['beside']['second_accuracy']:.1%}")  # fmt: skip
    found["judges"] = _judges(config, stage, data, judged)
    stage.metrics["heldout"] = found
    longer = found["longer_answer"]["accuracy"]
    stage.metrics["summary"] = f"{found['accuracy']:.1%} of {found['pairs']:,} held-out pairs, the longer answer {longer:.1%}"
    write_json(stage.folder / "evaluation.json", found)
    rows = [{"source": item.source, "grade": item.pair.grade, "chosen": item.chosen, "rejected": item.rejected} for item in judged]
    write_atomic(stage.folder / "heldout.jsonl", "".join(f"{manifest.canonical(row)}\n" for row in rows))


def _safety(config: RewardVerbConfig, model: ScoredDecoder, pairs: Pairs) -> dict[str, Any] | None:
    """How unsafe answers are told from safe ones, where the safety label was learned and the held-out pairs have it."""
    if not config.loss.safety:
        return None
    found = reward_accuracy.safety(pairs.rows, score_groups(model, pairs.groups)[:, -1].reshape(-1, 2).tolist())
    if found is not None:
        shares = ["none there" if found[key] is None else f"{found[key]:.1%}" for key in ("recall", "false_alarms")]
        progress.say(f"  safety: of unsafe answers {shares[0]} are told, of safe ones {shares[1]} are taken for unsafe")
    return found


def _judges(config: RewardVerbConfig, stage: Stage, data: PairData, judged: list[Judged]) -> Mapping[str, Any]:
    """What judges say of the first held-out pairs, beside the rewards of the same pairs."""
    who: dict[str, Judge] = {}
    if config.judge is not None:
        who[config.judge] = ModelJudge.open(stage.model(config.judge), str(pick_device(config.train.device)))
    if config.endpoint.url:
        who[config.endpoint.name] = EndpointJudge(config.endpoint.url, config.endpoint.name)
    asked, found = data.heldout.rows[: config.endpoint.pairs], {}
    for name, one in who.items():
        verdicts = judge(one, asked).as_dict()
        own = reward_accuracy.accuracy([item.right for item in judged[: len(asked)]])
        found[name] = {**verdicts, "reward_model": own["accuracy"]}
        progress.say(
            f"  the judge {name} is right in {verdicts['accuracy']:.1%} of {len(asked):,} pairs ({verdicts['verdicts']:,} clear verdicts, "
            f"{verdicts['unusable']:,} unusable answers, A in {verdicts['first_place']:.0%}); the reward model in {own['accuracy']:.1%}"
        )
    return found


def _write(model: ScoredDecoder, tokenizer: Tokenizer, stage: Stage, lineage: Mapping[str, object]) -> None:
    """The sealed folder; of several processes the main one writes it."""
    if not distributed.is_main():
        return
    with manifest.new_folder(stage.folder / scored_files.FOLDER) as folder:
        with torch.no_grad():
            scored_files.save(model, folder, bos_id=tokenizer.bos_id, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
        tokenizer.save(folder)
        manifest.seal(folder, "reward", lineage=lineage, versions=versions())


def _scale(config: RewardVerbConfig, stage: Stage) -> None:
    """A model of every size on every share of the pairs, each share within the next; scaling.json and scaling.svg."""
    found: dict[str, list[reward_scaling.Point]] = {}
    for number, name in enumerate([config.model, *config.sizes]):
        folder = stage.model(name)
        tokenizer, base = tokenizer_of(config, folder, stage).with_template(""), plain_base(config, folder, stage)
        data: PairData | None = None
        for share in sorted(config.scaling):
            model = _model(config, base, tokenizer, stage)
            data = data or Reader(config, stage, tokenizer, _length(config, model)).read()
            order = permutation(len(data.train.groups), stage.seed, "scaling").tolist()
            part = data.train.part(sorted(order[: max(1, round(share * len(order)))]))
            algorithm, hooks = with_allocation(config, _algorithm(config, model, PairData(part, data.heldout), stage.seed), Hooks())
            train = with_rates(config, _with_epochs(config, len(part.groups)))
            fit(algorithm, train, stage.folder / "scaling" / f"{number}-{share:g}", seed=stage.seed, hooks=hooks)
            measured = _measured(model.eval(), data.heldout)
            point = reward_scaling.Point(len(part.groups), measured["heldout_loss"], measured["heldout_accuracy"])
            found.setdefault(name, []).append(point)
    rows: dict[str, Any] = {}
    for name, points in found.items():
        progress.say(f"  {reward_scaling.told(name, points)}")
        law = reward_scaling.fit_law(points)
        rows[name] = {"points": [dataclasses.asdict(point) for point in points], "law": law and dataclasses.asdict(law)}
    stage.metrics["scaling"] = rows
    write_json(stage.folder / "scaling.json", rows)
    reward_scaling.draw(found, stage.folder / "scaling.svg")
