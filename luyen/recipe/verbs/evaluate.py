"""`evaluate`: models side by side, before and after, beside retrieval and an n-gram."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from luyen.adapters.preamble import room_of
from luyen.core.device import pick_device, pick_dtype
from luyen.core.errors import ConfigError
from luyen.core.files import read_jsonl
from luyen.core.records import Message
from luyen.evaluation.before_after import Material, evaluate
from luyen.evaluation.respondents import ModelRespondent, NGramRespondent, Respondent, load_models
from luyen.recipe.configs import EvaluateConfig
from luyen.recipe.documents import Texts
from luyen.recipe.stage import Stage


def run(config: EvaluateConfig, stage: Stage) -> None:
    """Ask, measure and compare; results.json and answers.jsonl stay in the stage's folder."""
    if not config.models:
        raise ConfigError("models is empty", expected="name: model")
    if config.questions is None and config.heldout is None:
        raise ConfigError("nothing to evaluate on", fix="Set questions, heldout or both.")
    texts = _texts(config, stage)
    held_out = texts.measured if texts else []
    device = pick_device(config.device)
    dtype = pick_dtype(config.precision, device)
    places = {name: stage.model(value) for name, value in config.models.items()}
    models = load_models(places, config.sampling, batch_size=config.batch_size, device=device, dtype=dtype)
    shortest = min(room_of(model.model) for model in models.values())
    models = {name: dataclasses.replace(model, length=shortest) for name, model in models.items()}
    questions = stage.path(config.questions) if config.questions else None
    material = Material.read(questions, held_out, config.examples)
    results = evaluate(models, _ngram(texts, questions, models), material, stage.folder, seed=stage.seed)
    stage.metrics.update(rows=results["rows"], forgetting=results["forgetting"], device=str(device), read=texts.account if texts else {})
    taught = [f"{row['model']} {row['exact_match']:.0%}" for row in results["rows"] if row["set"] == "taught" and row["model"] in models]
    if taught:
        stage.metrics["summary"] = f"taught questions answered exactly, in words that no model has seen: {', '.join(taught)}"
    elif results["forgetting"]:
        costs = ", ".join(f"{row['model']} {row['heldout_bits_per_byte']:.3f}" for row in results["forgetting"])
        stage.metrics["summary"] = f"bits per byte of held-out text: {costs}"


def _texts(config: EvaluateConfig, stage: Stage) -> Texts | None:
    if config.heldout is None:
        return None
    return Texts(stage.files(config.heldout), config.heldout_read, stage.folder / "rejected.jsonl", "heldout_read")


def _ngram(texts: Texts | None, questions: Path | None, models: dict[str, ModelRespondent]) -> dict[str, Respondent]:
    """The n-gram baseline, counted over the text that the models were trained on; none without a corpus."""
    if texts is None or not texts.train:
        return {}
    tokenizer = list(models.values())[-1].tokenizer
    talks: list[tuple[Message, ...]] = []
    if questions is not None and tokenizer.has_template and (questions / "train.jsonl").is_file():
        talks = [tuple(Message(turn["role"], turn["content"]) for turn in row["messages"]) for row in read_jsonl(questions / "train.jsonl")]
    return {"n-gram": NGramRespondent.fit(tokenizer, texts.train, talks)}
