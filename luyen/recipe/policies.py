"""What the verbs share that train a policy on its own answers: prompts, the policy and its reference, the true score, the estimate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from luyen.adapters import files
from luyen.adapters.preamble import room_of
from luyen.algorithms.policy_watch import PolicyWatch
from luyen.algorithms.rollout_files import Prompt
from luyen.core import distributed, progress
from luyen.core.device import pick_device, pick_dtype
from luyen.core.plural import exactly
from luyen.engine.algorithm import Algorithm, Hooks, TrainResult
from luyen.engine.estimate import FORWARD, Estimate, estimate_training, token_work, writing_work
from luyen.evaluation.before_after import Material
from luyen.evaluation.generative import answer
from luyen.inference.config import SamplingConfig
from luyen.models.presets import count_parameters
from luyen.models.transformer import Transformer
from luyen.recipe.documents import Texts
from luyen.recipe.estimate import adapter_cost
from luyen.recipe.policy_configs import AnsweringConfig, PolicyConfig, ScoreConfig
from luyen.recipe.prompts import rendered_prompts, stage_prompts
from luyen.recipe.rewards import check_measures, reward_of
from luyen.recipe.sizes import USUAL_ROW
from luyen.recipe.stage import Stage
from luyen.recipe.training import answer_questions, heldout_hook, some_text, train_stage
from luyen.recipe.tuning import plain_base, tokenizer_of, tuned_model, with_allocation, with_rates, write_tuned
from luyen.tasks.measure import measured
from luyen.tasks.question_answering import QuestionAnswering
from luyen.tasks.reward import Reward, Written, checked
from luyen.tokenizer.load import Tokenizer


@dataclass(frozen=True)
class Setting:
    """What a policy stage has before its algorithm is made."""

    tokenizer: Tokenizer
    base: str
    """Folder of the plain model."""
    decoder: Transformer
    """What answers and is trained."""
    reference: Transformer | None
    """A frozen copy of what the policy begins as; None: the policy with its adapter off."""
    prompts: list[Prompt]
    reward: Reward


def prepare(config: PolicyConfig, stage: Stage, compares: bool) -> Setting:
    """Everything from the config; `compares` says whether a reference is needed at all."""
    folder = stage.model(config.model)
    tokenizer = tokenizer_of(config, folder, stage)
    base = plain_base(config, folder, stage)
    decoder = tuned_model(config, config.train, base, tokenizer, stage)
    prompts = prompts_of(config, stage, tokenizer, room_of(decoder) - config.rollout.max_new_tokens)
    progress.say(f"  {exactly(len(prompts), 'prompt')}, {config.rollout.samples} answers to each")
    stage.metrics["parameters"] = count_parameters(decoder.config)
    frozen = compares and (not config.adapter.freezes_base or config.start is not None)
    reference = _frozen(stage.model(config.start) if config.start is not None else base, config) if frozen else None
    reward = reward_of(config, stage, config.train.device)
    check_measures(reward, prompts)
    return Setting(tokenizer, base, decoder, reference, prompts, reward)


def _frozen(folder: str, config: PolicyConfig) -> Transformer:
    """A second model that nothing changes, in the type of the products."""
    device = pick_device(config.train.device)
    model = files.open_model(folder, dtype=pick_dtype(config.train.precision, device))
    return model.requires_grad_(False).eval()


def prompts_of(config: AnsweringConfig, stage: Stage, tokenizer: Tokenizer, most: int) -> list[Prompt]:
    """The prompts of a config that have `most` tokens at most; the others are counted."""
    asked = stage_prompts(config.prompts, config.read, stage)
    kept = [
        Prompt(example.id, example.messages, tuple(ids), example) for example, ids in rendered_prompts(asked, tokenizer, most)
    ]  # fmt: skip
    stage.metrics["prompts"] = {"given": len(asked), "used": len(kept)}
    return kept


def train_policy(
    config: PolicyConfig, stage: Stage, setting: Setting, algorithm: Algorithm, watch: PolicyWatch, passes: int
) -> TrainResult:  # fmt: skip
    """Run the loop with what is measured beside it, and write the result. `passes` over a rollout's tokens come before its updates."""
    hooks = policy_hooks(config, stage, setting, watch)
    algorithm, hooks = with_allocation(config, algorithm, hooks)
    estimate = estimated(config, setting, passes)
    result = train_stage(algorithm, with_rates(config, config.train), stage, hooks, estimate)
    score = result.evaluation.get("score")
    stage.metrics["summary"] = f"loss {result.loss:.3f}" if score is None else f"true score {score:.1%} on held-out questions"
    return result


def policy_hooks(config: AnsweringConfig, stage: Stage, setting: Setting, watch: PolicyWatch) -> Hooks:
    """What is measured and answered at every evaluation."""
    decoder, tokenizer = setting.decoder, setting.tokenizer
    measures: list[Callable[[], Mapping[str, float]]] = []
    if config.score is not None:
        measures.append(TrueScore(config.score, stage, setting, watch))
    if config.heldout is not None:
        texts = Texts(stage.files(config.heldout), config.heldout_read, stage.folder / "rejected-heldout.jsonl", "heldout_read")
        hook = heldout_hook(decoder, tokenizer, some_text(texts.measured), min(USUAL_ROW, room_of(decoder)))
        measures += [hook] if hook is not None else []
    return Hooks(
        evaluate=lambda: {name: value for measure in measures for name, value in measure().items()},
        samples=lambda: answer_questions(decoder, tokenizer, config.ask),
    )


def write_policy(config: PolicyConfig, stage: Stage, setting: Setting, name: str, result: TrainResult) -> Path:
    """The result: the policy, without what was trained beside it."""
    lineage = {
        "algorithm": name, "base": Path(stage.model(config.model)).name, "tokens": result.tokens, "targets": result.targets,
        "seed": stage.seed,
    }  # fmt: skip
    return write_tuned(setting.decoder, setting.tokenizer, stage, config, setting.base, lineage)


class TrueScore:
    """Measures held-out answers by what is known to be right, and the reward of the same answers."""

    def __init__(self, score: ScoreConfig, stage: Stage, setting: Setting, watch: PolicyWatch) -> None:
        self.setting, self.watch, self.measure = setting, watch, score.measure
        material = Material.read(stage.path(score.questions), limit=score.examples)
        self.task = QuestionAnswering("score", material.examples, material.admissions)
        self.evaluations = 0

    def __call__(self) -> Mapping[str, float]:
        """`score` of all questions and `score_SET` of each set, where the measure says something of them, and `heldout_reward`."""
        setting, examples = self.setting, self.task.examples
        sampling = SamplingConfig(max_new_tokens=_room(setting))
        given = answer(setting.decoder, setting.tokenizer, examples, sampling, name="held-out questions")
        pairs = list(zip(examples, given, strict=True))
        written = [Written(example.id, example.messages, said.text, said.stopped, example) for example, said in pairs]
        rewards = distributed.told_by_main(checked(setting.reward, written) if distributed.is_main() else None)
        scores: dict[str, list[float]] = {}
        for example, said in pairs:
            if (value := measured(self.task, example, said, self.measure)) is not None:
                for name in ("score", f"score_{example.meta['set']}"):
                    scores.setdefault(name, []).append(value)
        found = {**{name: statistics.fmean(values) for name, values in scores.items()}, "heldout_reward": statistics.fmean(rewards)}
        self.evaluations += 1
        if "score" in found and distributed.is_main():
            for line in self.watch.compare(self.evaluations, found["heldout_reward"], found["score"]):
                progress.say(line)
        return found


def _room(setting: Setting) -> int:
    """Room for a held-out answer: as the samples of any training have, less where the model's context is short."""
    longest = max(len(prompt.ids) for prompt in setting.prompts)
    return max(1, min(64, room_of(setting.decoder) - longest))


def estimated(config: PolicyConfig, setting: Setting, passes: int) -> Estimate:
    """Updates, drawing and measuring, all answers of full length; what scores them is not counted."""
    rollout, model, train = config.rollout, setting.decoder.config, config.train
    half = pick_dtype(train.precision, pick_device(train.device)).itemsize < 4
    shared = statistics.fmean(len(prompt.ids) for prompt in setting.prompts)
    length = int(shared) + rollout.max_new_tokens
    rows = rollout.minibatch * rollout.samples
    trained = rollout.max_new_tokens / length
    cost = adapter_cost(config, model, half)
    plain = estimate_training(model, train, rows, length, trained, cost)
    rollouts = train.steps / rollout.updates(train.accumulation)
    drawn = rollouts * rollout.prompts * rollout.samples
    more = writing_work(model, drawn * rollout.max_new_tokens) + token_work(model, length, trained) * (passes * FORWARD * drawn * length)
    ranks = max(1, distributed.ranks())
    return replace(plain, work=plain.work + more, own=plain.own + more * (1 / ranks))
