"""The verbs that a stage can do: one literal table. Modules are named, not imported, so that the command starts at once."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from luyen.core.config import Config


@dataclass(frozen=True)
class Verb:
    """How a stage of this verb is configured, run and recorded."""

    config: str
    """Module and class of its config; the module imports no torch where the verb's work does not need it to check a config."""
    kind: str
    """What it makes: pages, corpus, tokenizer, model, questions, evaluation."""
    help: str
    """One line for `luyen --help`."""


VERBS: dict[str, Verb] = {
    "crawl": Verb("luyen.corpus.crawl:CrawlConfig", "pages", "Fetch web pages politely, with provenance."),
    "curate": Verb("luyen.recipe.configs:CurateVerbConfig", "corpus", "Turn pages or files into clean, deduplicated documents."),
    "tokenizer": Verb("luyen.recipe.configs:TokenizerVerbConfig", "tokenizer", "Train a tokenizer on documents."),
    "pretrain": Verb("luyen.recipe.configs:PretrainConfig", "model", "Train a language model from nothing on documents."),
    "synth": Verb("luyen.recipe.configs:SynthVerbConfig", "questions", "Make questions and answers from documents with a template."),
    "sft": Verb("luyen.recipe.configs:SFTConfig", "model", "Fine-tune a model on conversations; loss on the answers only."),
    "reward": Verb("luyen.recipe.reward_configs:RewardVerbConfig", "reward", "Train a reward model on preferences, and measure it."),
    "dpo": Verb("luyen.recipe.preference_configs:PreferenceConfig", "model", "Learn from preferences: DPO, its kin, and KTO."),
    "ppo": Verb("luyen.recipe.policy_configs:PPOConfig", "model", "Improve a model by its own answers and a reward: PPO, with a critic."),
    "grpo": Verb("luyen.recipe.policy_configs:GRPOConfig", "model", "Improve a model by its own answers: GRPO, RLOO, REINFORCE++."),
    "reject": Verb("luyen.recipe.reject_configs:RejectConfig", "model", "Fine-tune a model on the best of its own answers, by a reward."),
    "evaluate": Verb("luyen.recipe.configs:EvaluateConfig", "evaluation", "Compare models on questions and on held-out text."),
}


def load_config_class(verb: str) -> type[Config]:
    """The config class of a verb."""
    module, _, name = VERBS[verb].config.partition(":")
    config_class: type[Config] = getattr(importlib.import_module(module), name)
    return config_class


def load_verb(verb: str) -> ModuleType:
    """The module with the verb's `run(config, stage)`; imports what the work needs, torch included."""
    return importlib.import_module(f"luyen.recipe.verbs.{verb}")
