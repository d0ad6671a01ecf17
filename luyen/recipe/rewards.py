"""Rewards of a stage: what the names in a reward's config stand for, and a first look at what it cannot score."""

from __future__ import annotations

from collections.abc import Sequence

from luyen.algorithms.rollout_files import Prompt
from luyen.core import progress, storage
from luyen.core.plural import exactly
from luyen.inference.rewards import GatedReward, MeasureReward, MixedReward, Turns, Where, open_reward
from luyen.recipe.policy_configs import AnsweringConfig
from luyen.recipe.prompts import stage_prompts
from luyen.recipe.stage import Stage
from luyen.tasks.reward import Reward, Written


def reward_of(config: AnsweringConfig, stage: Stage, device: str) -> Reward:
    """The reward of a config; of several processes the main one alone asks it."""
    sources = [config.prompts] if isinstance(config.prompts, str) else config.prompts
    templates = [path for path in (stage.files(source) / "template.json" for source in sources) if path.is_file()]
    admissions = [pattern for path in templates for pattern in storage.read_object(path).get("admissions", [])]

    def marked(name: str) -> set[Turns]:
        return {example.messages for example in stage_prompts(name, config.read, stage, "rejected-safety")}

    return open_reward(config.reward, Where(lambda name: str(stage.sources.get(name, name)), device, admissions, marked))


def check_measures(reward: Reward, prompts: Sequence[Prompt]) -> None:
    """Tell what a measure cannot score before an answer is drawn. DataError that names the prompt."""
    match reward:
        case MeasureReward():
            reward.score([Written(prompt.id, prompt.messages, "", example=prompt.example) for prompt in prompts])
        case MixedReward():
            for _, part in reward.parts.values():
                check_measures(part, prompts)
        case GatedReward():
            marked = sum(reward.is_safety(Written(prompt.id, prompt.messages, "", example=prompt.example)) for prompt in prompts)
            progress.say(f"  {exactly(len(prompts), 'prompt')}, {marked:,} of them for safety")
            check_measures(reward.safe, prompts)
            check_measures(reward.helpful, prompts)
