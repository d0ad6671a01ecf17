"""`evaluate`: models side by side, before and after, beside retrieval and an n-gram."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from luyen.core.errors import ConfigError
from luyen.core.files import read_jsonl
from luyen.core.records import Message
from luyen.evaluation.before_after import Material, evaluate
from luyen.evaluation.respondents import ModelRespondent, NGramRespondent, Respondent, load_model
from luyen.recipe.configs import EvaluateConfig
from luyen.recipe.documents import read_texts
from luyen.recipe.stage import Stage


def run(config: EvaluateConfig, stage: Stage) -> None:
    """Ask, measure and compare; results.json and answers.jsonl stay in the stage's folder."""
    if not config.models:
        raise ConfigError("models is empty", expected="name: model")
    if config.questions is None and config.heldout is None:
        raise ConfigError("nothing to evaluate on", fix="Set questions, heldout or both.")
    models = {name: load_model(stage.model(value), config.sampling, batch_size=config.batch_size) for name, value in config.models.items()}
    shortest = min(model.model.config.context_length for model in models.values())
    models = {name: dataclasses.replace(model, length=shortest) for name, model in models.items()}
    questions = stage.path(config.questions) if config.questions else None
    corpus = stage.path(config.heldout) if config.heldout else None
    material = Material.read(questions, read_texts(corpus, "heldout") if corpus else (), config.examples)
    results = evaluate(models, _ngram(corpus, questions, models), material, stage.folder, seed=stage.seed)
    stage.metrics.update(rows=results["rows"], forgetting=results["forgetting"])
    taught = {row["model"]: row for row in results["rows"] if row["set"] == "taught"}
    last = list(models)[-1]
    if last in taught:
        stage.metrics["summary"] = (
            f"{last} answers {taught[last]['exact_match']:.0%} of the taught questions exactly, in words it has not seen"
        )


def _ngram(corpus: Path | None, questions: Path | None, models: dict[str, ModelRespondent]) -> dict[str, Respondent]:
    """The n-gram baseline, counted over the text that the models were trained on; none without a corpus."""
    if corpus is None:
        return {}
    tokenizer = list(models.values())[-1].tokenizer
    talks: list[tuple[Message, ...]] = []
    if questions is not None and tokenizer.has_template and (questions / "train.jsonl").is_file():
        talks = [tuple(Message(turn["role"], turn["content"]) for turn in row["messages"]) for row in read_jsonl(questions / "train.jsonl")]
    return {"n-gram": NGramRespondent.fit(tokenizer, read_texts(corpus, "train"), talks)}
