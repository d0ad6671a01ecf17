"""Scores of answers, each from its config: a reward model, a task's measure, a program, an endpoint, Llama 2's gate, a weighted sum.

The gate is that of Llama 2 (arXiv:2307.09288, section 3.2.3):

    R_c(g | p) = R_s(g | p)  if IS_SAFETY(p) or R_s(g | p) < 0.15,  else  R_h(g | p)          then logit; PPO whitens (loss.whiten_scores)

R_s and R_h are probabilities: reward models' numbers after the sigmoid, so that what the gate gives is such a number unchanged, compared
with the threshold's logit. Other sources must give probabilities themselves; for the logit 0 and 1 become `EDGE` and 1 - `EDGE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from luyen.core.errors import DataError, ModelError
from luyen.core.records import Message
from luyen.inference.reward_config import GatedConfig, RewardConfig, SourceConfig, program_path
from luyen.inference.reward_endpoint import EndpointReward
from luyen.inference.reward_model import open_reward_model, score_outputs
from luyen.inference.reward_process import ProgramReward
from luyen.models.scored import ScoredDecoder
from luyen.tasks.measure import measured
from luyen.tasks.question_answering import Answer, QuestionAnswering
from luyen.tasks.reward import Reward, Written, checked
from luyen.tokenizer.load import Tokenizer

EDGE = 1e-4
"""Nearest to 0 and 1 that a probability is taken for: a logit of 9.2."""
OUTPUTS = {"reward": 0, "safety": 1}
Turns = tuple[Message, ...]


@dataclass(frozen=True)
class Where:
    """What a config's names stand for."""

    path: Callable[[str], str] = str
    """The folder or file of a name."""
    device: str = "auto"
    """Where reward models compute."""
    admissions: Sequence[str] = ()
    """Patterns of answers that say that they do not know."""
    safety_prompts: Callable[[str], Collection[Turns]] = field(default=lambda name: ())
    """The prompts in a file or stage."""


def open_reward(config: RewardConfig, where: Where) -> Reward:
    """The reward of a config. Raises UserError where a program or a host was not allowed, ModelError for what is no reward model."""
    if config.mix:
        return MixedReward({name: (part.weight, _gated(part, where)) for name, part in config.mix.items()})
    return _gated(config, where)


def _gated(config: GatedConfig, where: Where) -> Reward:
    gate = config.gate
    if gate is None:
        return _source(config, where)
    marked = frozenset(where.safety_prompts(gate.prompts)) if gate.prompts is not None else frozenset()
    logits = gate.helpful.model is not None, gate.safe.model is not None
    return GatedReward(_source(gate.helpful, where), _source(gate.safe, where), logits, gate.threshold, marked, frozenset(gate.sets))


def _source(config: SourceConfig, where: Where) -> Reward:
    if config.model is not None:
        return ModelReward(*open_reward_model(where.path(config.model), where.device), output=config.output)
    if config.measure is not None:
        return MeasureReward(config.measure, where.admissions)
    if config.program is not None:
        return ProgramReward(program_path(config.program), config.seconds)
    return EndpointReward(config.url, config.seconds, config.batch, config.key)


class ModelReward:
    """What a reward model says, of whatever tokenizer and family: it reads the text."""

    def __init__(self, model: ScoredDecoder, tokenizer: Tokenizer, output: str = "reward") -> None:
        """ModelError for an output that the model has not."""
        self.model, self.tokenizer, self.output = model, tokenizer, OUTPUTS[output]
        if self.output >= model.score.out_features:
            raise ModelError("the reward model has no second output for what is safe", found=f"{model.score.out_features} output",
                             expected="one that was trained with loss.safety_head=true", fix="Leave out output=safety.")  # fmt: skip

    def score(self, written: Sequence[Written]) -> list[float]:
        """A number for each answer, in order; answers to one prompt that stand together share its pass."""
        talks = [(*item.prompt, Message("assistant", item.answer)) for item in written]
        return [float(row[self.output]) for row in score_outputs(self.model, self.tokenizer, talks)]


class MeasureReward:
    """A task's measure of each answer beside the one that its prompt's data has."""

    def __init__(self, measure: str, admissions: Sequence[str] = ()) -> None:
        """`admissions` are patterns of answers that say that they do not know."""
        self.measure, self.task = measure, QuestionAnswering("reward", (), admissions)

    def score(self, written: Sequence[Written]) -> list[float]:
        """A number for each answer, in order. DataError names a prompt of which the measure says nothing; asked before, none was drawn."""
        found = []
        for item in written:
            value = None if item.example is None else measured(self.task, item.example, Answer(item.answer, item.stopped), self.measure)
            if value is None:
                fix = "Take another measure, such as right, or other prompts."
                raise DataError(f"reward.measure={self.measure} says nothing of the prompt {item.id}", fix=fix)
            found.append(value)
        return found


class MixedReward:
    """The weighted sum of some rewards."""

    def __init__(self, parts: Mapping[str, tuple[float, Reward]]) -> None:
        """Name -> weight and reward."""
        self.parts = dict(parts)

    def score(self, written: Sequence[Written]) -> list[float]:
        """A number for each answer, in order. DataError that names the part and the answer where a score is no finite number."""
        columns = [(weight, _named(f"reward.mix.{name}", part, written)) for name, (weight, part) in self.parts.items()]
        return [sum(weight * column[place] for weight, column in columns) for place in range(len(written))]


class GatedReward:
    """Llama 2's: the safety score for safety prompts and where it is low, else the helpfulness score; as a logit."""

    def __init__(
        self, helpful: Reward, safe: Reward, logits: tuple[bool, bool] = (True, True), threshold: float = 0.15,
        prompts: Collection[Turns] = frozenset(), sets: Collection[str] = frozenset(),
    ) -> None:  # fmt: skip
        """`logits`: whether the helpful and the safe reward give numbers for the sigmoid, or probabilities. `prompts` and `sets` say which
        prompts are safety ones."""
        self.helpful, self.safe, self.logits, self.prompts, self.sets = helpful, safe, logits, prompts, sets
        self.least = -math.inf if threshold == 0 else math.inf if threshold == 1 else math.log(threshold / (1 - threshold))

    def is_safety(self, item: Written) -> bool:
        """Whether the prompt is a safety one."""
        return item.prompt in self.prompts or item.example is not None and item.example.meta.get("set") in self.sets

    def score(self, written: Sequence[Written]) -> list[float]:
        """A number for each answer, in order. DataError that names the source and the answer of a score that is none."""
        helpful = self._column("helpful", self.helpful, self.logits[0], written)
        safe = self._column("safe", self.safe, self.logits[1], written)
        return [s if self.is_safety(item) or s < self.least else h for item, h, s in zip(written, helpful, safe, strict=True)]

    def _column(self, name: str, reward: Reward, is_logit: bool, written: Sequence[Written]) -> list[float]:
        found = _named(f"reward.gate.{name}", reward, written)
        return found if is_logit else [_logit(value, f"reward.gate.{name}", item) for item, value in zip(written, found, strict=True)]


def _named(name: str, reward: Reward, written: Sequence[Written]) -> list[float]:
    """Checked scores, whose error says which of several sources it was."""
    try:
        return checked(reward, written)
    except DataError as error:
        raise DataError(f"{name}: {error.what}", found=error.found, expected=error.expected, fix=error.fix) from error


def _logit(value: float, name: str, item: Written) -> float:
    if not 0 <= value <= 1:
        raise DataError(f"{name}: the score of an answer to {item.id} is no probability", found=value, expected="0 to 1",
                        fix="A gate takes reward models, or sources that give probabilities.")  # fmt: skip
    inside = min(max(value, EDGE), 1 - EDGE)
    return math.log(inside / (1 - inside))
