"""A decoder of one layer that answers with a few tokens, and rewards whose best answer is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from luyen.algorithms.grpo import GRPO
from luyen.algorithms.policy_config import GroupLossConfig, PPOLossConfig, RolloutConfig
from luyen.algorithms.ppo import PPO, ActorCritic
from luyen.algorithms.rollout import Policy, Rollouts
from luyen.algorithms.rollout_files import Prompt
from luyen.core.config import load
from luyen.core.records import Message
from luyen.engine.config import TrainConfig
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer
from luyen.tasks.reward import Written

VOCABULARY, STOP = 12, 1


class Letters:
    """Ids as words: their numbers, with spaces between."""

    stop_ids = (STOP,)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


class Score:
    """A reward by a function of the ids of an answer and its end."""

    def __init__(self, score: Callable[[list[int], bool], float]) -> None:
        self.of, self.asked = score, 0

    def score(self, written: Sequence[Written]) -> list[float]:
        self.asked += 1
        return [self.of([int(word) for word in item.answer.split()], item.stopped) for item in written]


def bandit(ids: list[int], stopped: bool) -> float:
    """Arm 7 pays 1, arm 4 pays 0.8, the others nothing."""
    return {7: 1.0, 4: 0.8}.get(ids[0], 0.0) if ids else 0.0


def ends_with_nine(ids: list[int], stopped: bool) -> float:
    """An answer must end by itself, and its last word must be 9."""
    return float(stopped and ids[-1:] == [9])


def decoder(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 2, "context_length": 16}
    return Transformer(load(TransformerConfig, {"vocab_size": VOCABULARY, **size}))


def prompts(count: int = 8) -> list[Prompt]:
    """Of two to four tokens, each another one."""
    return [
        Prompt(f"p{number}", (Message("user", str(number)),), tuple([2 + number % 9, 3 + number % 5, 5, 6][: 2 + number % 3]))
        for number in range(count)
    ]


ROLLOUT = {"prompts": 8, "samples": 8, "minibatch": 4, "epochs": 2, "max_new_tokens": 3}


def algorithm(
    name: str, folder: Path, reward: Any, *, seed: int = 0, rollout: dict[str, Any] | None = None, loss: dict[str, Any] | None = None,
    model: Transformer | None = None,
) -> PPO | GRPO:  # fmt: skip
    """ppo, or one of grpo's names; the reference is the model as it was."""
    own, reference = model or decoder(seed), decoder(seed)
    config = load(RolloutConfig, {**ROLLOUT, **(rollout or {})})
    if name == "ppo":
        terms = load(PPOLossConfig, loss or {})
        both = ActorCritic(own)
        return PPO(both, Rollouts(Policy(both, own, Letters(), reference), reward, prompts(), config, terms.kl, folder, seed), terms)
    group = load(GroupLossConfig, {"name": name, **(loss or {})})
    rollouts = Rollouts(Policy(own, own, Letters(), reference), reward, prompts(), config, group.kl, folder, seed)
    return GRPO(own, rollouts, group, config.updates(1))


def train_config(steps: int, rate: float = 1e-2, **values: Any) -> TrainConfig:
    plain = {"steps": steps, "device": "cpu", "optimizer": {"learning_rate": rate, "weight_decay": 0}, "schedule": {"name": "constant"}}
    return load(TrainConfig, {**plain, "evaluate_every": 0, **values})
