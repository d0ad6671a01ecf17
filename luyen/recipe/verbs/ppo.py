"""`ppo`: a chat model and a reward to a model that is paid better for its answers."""

from __future__ import annotations

from pathlib import Path

from luyen.adapters import files
from luyen.algorithms.ppo import PPO, ActorCritic
from luyen.algorithms.rollout import Policy, Rollouts
from luyen.core import distributed
from luyen.core.device import pick_device, pick_dtype
from luyen.core.folders import model_in
from luyen.core.seed import derive
from luyen.models import hf, scored_files
from luyen.models.scored import ScoredDecoder, without_words
from luyen.recipe.policies import prepare, train_policy, write_policy
from luyen.recipe.policy_configs import PPOConfig
from luyen.recipe.stage import Stage


def run(config: PPOConfig, stage: Stage) -> None:
    """Draw, score, update; the result is the stage's `model` folder, or with an adapter its `adapter` folder, without the critic."""
    setting = prepare(config, stage, compares=True)
    critic = None if config.critic is None else _critic(config.critic, stage)
    model = ActorCritic(setting.decoder, critic)
    dtype = pick_dtype(config.train.precision, pick_device(config.train.device))
    policy = Policy(model, setting.decoder, setting.tokenizer, setting.reference, dtype)
    rollouts = Rollouts(
        policy, setting.reward, setting.prompts, config.rollout, config.loss.kl, stage.folder, derive(stage.seed, "rollouts")
    )  # fmt: skip
    result = train_policy(config, stage, setting, PPO(model, rollouts, config.loss), rollouts.watch, passes=2)
    write_policy(config, stage, setting, "ppo", result)


def _critic(value: str, stage: Stage) -> ScoredDecoder:
    """A reward model as it is, or a language model whose scores begin at zero."""
    path, device = stage.sources.get(value, Path(value)), distributed.weights_of_main()
    folder = model_in(path)  # a stage of a reward model has none
    words = folder is not None and (files.is_adapter(folder) or not hf.gives_numbers(hf.read_values(folder)))
    return ScoredDecoder(without_words(files.open_model(str(folder), device))) if words else scored_files.load(path, device)
