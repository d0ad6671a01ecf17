"""`reject`: a chat model and a reward to a model that was fine-tuned on the best of its own answers."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luyen.adapters import files
from luyen.adapters.off import without_adapter
from luyen.adapters.preamble import room_of
from luyen.algorithms.policy_config import KLConfig
from luyen.algorithms.policy_watch import PolicyWatch
from luyen.algorithms.rejection_sampling import Best, Drawn, Sampler, choose, pairs
from luyen.algorithms.rollout_files import Prompt
from luyen.algorithms.sft import SFT
from luyen.core import config as configs
from luyen.core import distributed, manifest, progress
from luyen.core.device import pick_device, pick_dtype
from luyen.core.errors import DataError
from luyen.core.files import read_jsonl, write_jsonl
from luyen.core.plural import exactly
from luyen.core.records import Message, Preference
from luyen.core.seed import derive
from luyen.core.storage import write_json
from luyen.data.loader import PackedStream
from luyen.data.samples import Account, Sample, cut_sample
from luyen.engine.estimate import Estimate, estimate_training
from luyen.evaluation import best_of_curve
from luyen.models.presets import count_parameters
from luyen.models.transformer import Transformer
from luyen.recipe.estimate import adapter_cost
from luyen.recipe.policies import Setting, policy_hooks, prompts_of
from luyen.recipe.reject_configs import RejectConfig, RejectTrainConfig
from luyen.recipe.rewards import check_measures, reward_of
from luyen.recipe.sizes import row_length
from luyen.recipe.stage import PREFERENCES, Stage
from luyen.recipe.training import train_stage
from luyen.recipe.tuning import plain_base, tokenizer_of, tuned_model, with_allocation, with_rates, write_tuned
from luyen.tasks.best_of import curve
from luyen.tokenizer.chat import Rendered, render_batch
from luyen.tokenizer.load import Tokenizer

BEST, DRAWN = "best.jsonl", "drawn.jsonl"
REFERENCE = "the data"
"""Source of answers that the prompts' data has."""


def run(config: RejectConfig, stage: Stage) -> None:
    """Draw, score, take the best, fine-tune; the result is the stage's `model` folder, or with an adapter its `adapter` folder."""
    folder = stage.model(config.model)
    tokenizer = tokenizer_of(config, folder, stage)
    base = plain_base(config, folder, stage)
    model = tuned_model(config, config.train, base, tokenizer, stage)
    asked = prompts_of(config, stage, tokenizer, room_of(model) - config.draw.max_new_tokens)
    prompts = list({prompt.ids: prompt for prompt in reversed(asked)}.values())[::-1]  # of equal ones the first
    progress.say(f"  {exactly(len(prompts), 'prompt')}, {len(asked) - len(prompts):,} twice; {config.samples} answers to each")
    reward = reward_of(config, stage, config.train.device)
    check_measures(reward, prompts)
    setting = Setting(tokenizer, base, model, None, prompts, reward)
    stage.metrics["parameters"] = count_parameters(model.config)
    best = _best(config, stage, setting)
    length = row_length(config.batch, room_of(model))
    samples, account = best_samples(best, tokenizer, length)
    if not samples:
        raise DataError("no best answer is left to learn from", found=dict(account.dropped), fix="Set batch.length, or draw more answers.")
    stream = PackedStream(samples, capacity=length, rows=config.batch.rows, seed=derive(stage.seed, "order"))
    train = _with_epochs(config, len(stream.plan(0)))
    stage.metrics.update(data=account.as_dict(), row_length=length)
    hooks = policy_hooks(config, stage, setting, PolicyWatch(KLConfig()))
    algorithm, hooks = with_allocation(config, SFT(model, stream), hooks)
    result = train_stage(algorithm, with_rates(config, train), stage, hooks, _estimate(config, setting, train, length, account))
    score = result.evaluation.get("score")
    told = f"best of {config.samples}: reward {stage.metrics['rewards']['best']:.3f}, middle one {stage.metrics['rewards']['median']:.3f}"
    stage.metrics["summary"] = told if score is None else f"{told}; true score {score:.1%} on held-out questions"
    lineage = {"algorithm": "rejection-sampling", "base": Path(folder).name, "tokens": result.tokens, "targets": result.targets,
               "seed": stage.seed}  # fmt: skip
    write_tuned(model, tokenizer, stage, config, base, lineage)


def _best(config: RejectConfig, stage: Stage, setting: Setting) -> list[Best]:
    """Draw and choose; what was drawn, the best of it and the figures are kept in the stage's folder."""
    with _writer(config, setting) as writer:
        sampler = Sampler(writer, setting.tokenizer, setting.reward, config.samples, config.draw, stage.folder / "rollouts",
                          derive(stage.seed, "answers"))  # fmt: skip
        temperature, tried, drawn = sampler.draw(setting.prompts)
    for value, found in tried.items():
        progress.say(f"  temperature {value:g}: the best of {config.samples} answers is worth {found:.4f}")
    earlier = {name: _earlier(stage.path(name)) for name in config.previous}
    if config.references:
        given = ((prompt, prompt.example.answer) for prompt in setting.prompts if prompt.example is not None)
        earlier[REFERENCE] = [Best(prompt.id, prompt.messages, answer, 0.0) for prompt, answer in given if answer]
    best = choose(setting.prompts, drawn, earlier, setting.reward)
    if not best:
        fix = "Raise draw.max_new_tokens, or take a model that ends its answers."
        raise DataError("no answer ended by itself", found=f"{len(drawn)} prompts of {config.samples} answers", fix=fix)
    made = pairs(setting.prompts, drawn)
    stage.metrics["rewards"] = figures = _figures(drawn, best)
    stage.metrics.update(temperature=temperature, temperatures={f"{value:g}": found for value, found in tried.items()}, pairs=len(made))
    progress.say(
        f"  at temperature {temperature:g}: mean reward {figures['mean']:.4f}, best of {config.samples} {figures['max']:.4f}; "
        f"{exactly(len(best), 'answer')} to learn, {figures['earlier']:,} of earlier rounds, {figures['references']:,} of the data; "
        f"{figures['unanswered']:,} prompts without a whole answer"
    )
    if distributed.is_main():
        _write(stage, setting.prompts, drawn, best, made, temperature)
    return best


@contextlib.contextmanager
def _writer(config: RejectConfig, setting: Setting) -> Iterator[Transformer]:
    """What draws: the model before it learns, without an adapter that nothing taught yet, which may say anything."""
    device, model = pick_device(config.train.device), setting.decoder
    new = config.adapter.freezes_base and config.start is None
    if new and config.adapter.preamble:  # learned positions are in the caches of generation, too
        yield files.open_model(setting.base, device, pick_dtype(config.train.precision, device)).eval()
        return
    training = model.training
    model.to(device).eval()
    with without_adapter(model) if new else contextlib.nullcontext():
        yield model
    model.train(training)


def _figures(drawn: Sequence[Sequence[Drawn]], best: Sequence[Best]) -> dict[str, Any]:
    rewards = [[item.reward for item in row] for row in drawn]
    return {
        "mean": statistics.fmean(statistics.fmean(row) for row in rewards), "max": statistics.fmean(max(row) for row in rewards),
        "median": statistics.fmean(statistics.median(row) for row in rewards), "best": statistics.fmean(item.reward for item in best),
        "stopped": statistics.fmean(item.stopped for row in drawn for item in row),
        "earlier": sum(item.source not in ("", REFERENCE) for item in best), "references": sum(item.source == REFERENCE for item in best),
        "unanswered": sum(not any(item.usable for item in row) for row in drawn),
    }  # fmt: skip


def _write(
    stage: Stage, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Drawn]], best: Sequence[Best], made: Sequence[Preference],
    temperature: float,
) -> None:  # fmt: skip
    write_jsonl(stage.folder / DRAWN, (
        {"id": prompt.id, "number": number, "answer": item.text, "stopped": item.stopped, "reward": item.reward}
        for prompt, row in zip(prompts, drawn, strict=True) for number, item in enumerate(row)
    ))  # fmt: skip
    write_jsonl(stage.folder / BEST, (item.row() for item in best))
    if made:
        write_jsonl(stage.folder / PREFERENCES, (
            {name: [{"role": turn.role, "content": turn.content} for turn in getattr(pair, name)]
             for name in ("prompt", "chosen", "rejected")} for pair in made
        ))  # fmt: skip
    rows = curve([[item.reward for item in row] for row in drawn])
    write_json(stage.folder / "curve.json", {"temperature": temperature, "rows": rows})
    best_of_curve.draw(rows, stage.folder / "curve.svg")


def _earlier(folder: Path) -> list[Best]:
    """The best answers of an earlier stage. DataError for a folder that is none; DamagedFile."""
    path = folder / BEST
    if not path.is_file():
        raise DataError(f"previous: {folder} is no stage of rejection sampling", found=f"no {BEST}", expected="a finished stage of reject")
    manifest.verify_listed(path)
    found = []
    for row in read_jsonl(path):
        *turns, answer = (Message(turn["role"], turn["content"]) for turn in row["messages"])
        found.append(Best(row["id"], tuple(turns), answer.content, row["reward"], row["source"]))
    return found


def best_samples(best: Sequence[Best], tokenizer: Tokenizer, length: int) -> tuple[list[Sample], Account]:
    """Samples that train on the best answers alone, not on earlier turns of the assistant, which nobody chose."""
    samples, account = [], Account()
    talks = [(*item.messages, Message("assistant", item.answer)) for item in best]
    for number, rendered in enumerate(render_batch(tokenizer, talks)):
        last = max(rendered.message_index)
        trained = [own and index == last for own, index in zip(rendered.trained, rendered.message_index, strict=True)]
        sample, entry = cut_sample(Rendered(rendered.ids, trained, rendered.message_index), length, "drop", key=f"best:{number}")
        account += entry
        samples += [] if sample is None else [sample]
    if account.num_dropped:
        progress.say(f"  {exactly(account.num_dropped, 'best answer')} left out, longer than {length:,} tokens with their prompts")
    return samples, account


def _with_epochs(config: RejectConfig, rows: int) -> RejectTrainConfig:
    """The training config with the steps that the epochs take, where they are fewer than its own."""
    each = config.batch.rows * config.train.accumulation
    needed = math.ceil(config.epochs * rows / each)
    steps = min(config.train.steps, max(1, needed))
    progress.say(f"  {steps:,} steps of {each:,} rows; {config.epochs:g} epochs of {exactly(rows, 'row')} are {needed:,}")
    return configs.load(RejectTrainConfig, {**configs.dump(config.train), "steps": steps}, "train")


def _estimate(config: RejectConfig, setting: Setting, train: RejectTrainConfig, length: int, account: Account) -> Estimate:
    model = setting.decoder.config
    half = pick_dtype(train.precision, pick_device(train.device)).itemsize < 4
    trained = account.trained / max(1, account.tokens)
    return estimate_training(model, train, config.batch.rows, length, trained, adapter_cost(config, model, half))
