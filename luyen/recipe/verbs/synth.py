"""`synth`: documents to questions and answers, or questions and answers to preferences."""

from __future__ import annotations

from luyen.recipe.configs import SynthVerbConfig
from luyen.recipe.documents import Texts
from luyen.recipe.preference_making import make_preferences
from luyen.recipe.stage import Stage
from luyen.synthesis.question_answer import generate, write


def run(config: SynthVerbConfig, stage: Stage) -> None:
    """Ask about the training documents, or compare answers; rows for training and evaluation stay in the stage's folder."""
    if config.preferences is not None:
        make_preferences(config, config.preferences, stage)
        return
    texts = Texts(stage.files(config.source), config.read, stage.folder / "rejected.jsonl")
    account = write(generate(texts.train, config), stage.folder)
    stage.metrics.update(account, read=texts.account)
    stage.metrics["summary"] = f"{account['taught']} entries taught, {len(account['untaught'])} held out, {account['train']['rows']} rows"
