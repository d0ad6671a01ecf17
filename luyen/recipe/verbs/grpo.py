"""`grpo`: a chat model and a reward to a model that is paid better, without a critic; also RLOO and REINFORCE++."""

from __future__ import annotations

from luyen.algorithms.grpo import GRPO
from luyen.algorithms.rollout import Policy, Rollouts
from luyen.core.device import pick_device, pick_dtype
from luyen.core.seed import derive
from luyen.recipe.policies import prepare, train_policy, write_policy
from luyen.recipe.policy_configs import GRPOConfig
from luyen.recipe.stage import Stage


def run(config: GRPOConfig, stage: Stage) -> None:
    """Draw, score, compare, update; the result is the stage's `model` folder, or with an adapter its `adapter` folder."""
    setting = prepare(config, stage, compares=config.loss.kl.beta > 0)
    decoder = setting.decoder
    dtype = pick_dtype(config.train.precision, pick_device(config.train.device))
    rollouts = Rollouts(
        Policy(decoder, decoder, setting.tokenizer, setting.reference, dtype), setting.reward, setting.prompts, config.rollout,
        config.loss.kl, stage.folder, derive(stage.seed, "rollouts"),
    )  # fmt: skip
    algorithm = GRPO(decoder, rollouts, config.loss, config.rollout.updates(config.train.accumulation))
    result = train_policy(config, stage, setting, algorithm, rollouts.watch, passes=algorithm.measures + algorithm.compares)
    write_policy(config, stage, setting, config.loss.name, result)
