"""Preferences as the verb `synth` makes them: the questions, the answers of models, the scores or the judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from luyen.core import progress
from luyen.core.config import load
from luyen.core.device import pick_device
from luyen.core.errors import ConfigError, DataError
from luyen.core.files import read_jsonl, write_jsonl
from luyen.core.plural import exactly
from luyen.core.records import Document
from luyen.core.seed import derive
from luyen.core.storage import read_object, write_json
from luyen.data.config import ReadConfig
from luyen.evaluation.generative import answer
from luyen.evaluation.judge import EndpointJudge, Judge, ModelJudge, judge
from luyen.evaluation.respondents import load_model
from luyen.recipe.configs import SynthVerbConfig
from luyen.recipe.documents import Texts
from luyen.recipe.prompts import read_prompts
from luyen.recipe.stage import PREFERENCES, Stage
from luyen.recipe.synth_configs import PreferencesSection
from luyen.synthesis.invent import invented_names
from luyen.synthesis.preferences import (
    ADMISSION,
    RIGHT,
    Candidate,
    Compared,
    Preferences,
    as_pair,
    best_and_worst,
    judged,
    only_asked,
    spoilt,
    with_admissions,
)  # fmt: skip
from luyen.tasks.entries import read_entries
from luyen.tasks.question_answering import Answer, Example, QuestionAnswering, read_examples
from luyen.tasks.template import Template

SAFETY_PAIRS = 1000
"""Questions of the safety domain, unless told."""


def make_preferences(config: SynthVerbConfig, section: PreferencesSection, stage: Stage) -> None:
    """Compare answers and write preferences.jsonl and account.json. DataError where no pair comes out."""
    questions = _questions(config, stage)
    template = _template(stage.files(config.source))
    if section.domain == "safety":
        compared = _safety(config, section, stage, questions, template)
    else:
        compared = spoilt(questions, section.ways, section.pairs, derive(config.seed, "preferences"))
    compared = _answered(compared, section, stage, template)
    made = _decided(compared, section, stage)
    write_jsonl(stage.folder / PREFERENCES, made.rows)
    write_json(stage.folder / "account.json", made.account)
    for reason, count in made.left_out.items():
        progress.say(f"  left out: {exactly(count, 'question')}, {reason}")
    if not made.rows:
        raise DataError(f"no pair came out of {exactly(made.asked, 'question')}", found=str(made.account["left_out"]),
                        fix="Lower preferences.least, take other models or more samples.")  # fmt: skip
    stage.kind = "preferences"
    stage.metrics.update(made.account, domain=section.domain)
    stage.metrics["summary"] = f"{exactly(len(made.rows), 'pair')} of {section.domain}"


def _template(path: Path) -> Template | None:
    """The template that questions were made by; None where they were not."""
    file = path / "template.json"
    return load(Template, read_object(file), str(file)) if file.is_file() else None


def _questions(config: SynthVerbConfig, stage: Stage) -> list[Example]:
    """Single questions with their right answers: of a stage of questions the rows without passage and conversation, else any prompts."""
    path = stage.files(config.source)
    template = _template(path)
    if template is None:
        return read_prompts(stage.data(config.source), config.read, stage.folder / "rejected.jsonl")
    rows = [row for row in read_jsonl(path / "train.jsonl") if row["source"] in template.questions and len(row["messages"]) == 2]
    prompts = read_prompts(path / "train.jsonl", ReadConfig(), stage.folder / "rejected.jsonl")
    asked = {(item.question, item.answer): item for item in prompts if len(item.messages) == 1}
    found = []
    for row in rows:
        item = asked.get((row["messages"][0]["content"], row["messages"][1]["content"]))
        if item is not None:
            found.append(replace(item, meta={"set": "preferences", "source": row["source"], "entry": row["entry"]}))
    return found


def _safety(
    config: SynthVerbConfig, section: PreferencesSection, stage: Stage, questions: list[Example], template: Template | None
) -> list[Compared]:  # fmt: skip
    """Questions about made-up names, none of which the evaluation asks about, and about taught entries."""
    folder = stage.files(config.source)
    if template is None or not (folder / "evaluation.jsonl").is_file():
        raise ConfigError(f"preferences.domain=safety needs a stage of questions as source, and {config.source} is none",
                          fix="Make one with `luyen synth`; its template says how ignorance is admitted.")  # fmt: skip
    total = section.pairs or SAFETY_PAIRS
    wanted = max(1, round(total * (1 - section.taught)))
    kept = {example.meta["entry"] for example in read_examples(folder / "evaluation.jsonl") if example.meta["set"] == "invented"}
    documents = _documents(section, stage)
    entries = only_asked(read_entries(documents, template).entries, template)
    seed = derive(config.seed, "preferences", "invented")
    names = [name for name in invented_names(documents, entries, wanted + len(kept), seed) if name not in kept][:wanted]
    if len(names) < wanted:
        progress.say(f"  {len(names):,} of {wanted:,} names could be made up from the parts of those in {section.documents}")
    return with_admissions(questions, template, names, total - wanted, derive(config.seed, "preferences"))


def _documents(section: PreferencesSection, stage: Stage) -> list[Document]:
    texts = Texts(stage.files(str(section.documents)), ReadConfig(), stage.folder / "rejected-documents.jsonl", "preferences.documents")
    return [*texts.train, *texts.heldout]


def _answered(compared: list[Compared], section: PreferencesSection, stage: Stage, template: Template | None) -> list[Compared]:
    """With models' answers where there are models: in place of spoilt and invented answers, and without `gold` of all."""
    settings = section.answers
    if not settings.models:
        return compared
    asked = [item for item in compared if item.safety != "both_safe"]
    kept = (RIGHT, ADMISSION) if section.gold else ()
    asked = [replace(item, answers=tuple(one for one in item.answers if one.made in kept or one.made in section.ways)) for item in asked]
    task = QuestionAnswering("preferences", (), template.admissions if template else ())
    device = pick_device(settings.device)
    for name in dict.fromkeys(settings.models):
        times = settings.samples * settings.models.count(name)
        sampling = settings.sampling.model_copy(update={"seed": derive(settings.sampling.seed, stage.seed, name) % 2**31})
        who = load_model(stage.model(name), sampling, batch_size=settings.batch_size, device=device)
        examples = [item.example for item in asked for _ in range(times)]
        given = iter(answer(who.model, who.tokenizer, examples, sampling, batch_size=settings.batch_size, name=name))
        asked = [
            item.with_answers([_scored(next(given), item, task, section.measure, name) for _ in range(times)]) for item in asked
        ]  # fmt: skip
    return asked + [item for item in compared if item.safety == "both_safe"]


def _scored(given: Answer, item: Compared, task: QuestionAnswering, measure: str, name: str) -> Candidate:
    """A model's answer and its worth; None where its question has no right answer to compare with."""
    found = task.score(item.example, given)
    if item.example.answer:
        return Candidate(given.text, name, found[measure] / (100 if measure == "chrf" else 1))
    return Candidate(given.text, name, found["said_unknown"] if item.domain == "safety" else None)


def _decided(compared: list[Compared], section: PreferencesSection, stage: Stage) -> Preferences:
    """By the scores, or by the judge."""
    if section.judge is None:
        return best_and_worst(compared, section.least)
    many = [item for item in compared if len(item.answers) > 1 and all(one.text.strip() for one in item.answers[:2])]
    verdicts = judge(_who(section, stage), [as_pair(item) for item in many])
    made = judged(many, verdicts.chosen)
    told: dict[str, Any] = {"first_place": verdicts.first_place, "unusable": verdicts.unusable}
    stage.metrics["judge"] = told
    progress.say(f"  the judge named A in {verdicts.first_place:.0%} of its usable answers; {verdicts.unusable:,} were not usable")
    made.asked = len(compared)
    if len(many) < len(compared):
        made.left_out["fewer than two different answers with words"] += len(compared) - len(many)
    return made


def _who(section: PreferencesSection, stage: Stage) -> Judge:
    assert section.judge is not None
    if section.judge.model is not None:
        return ModelJudge.open(stage.model(section.judge.model), str(pick_device(section.answers.device)))
    return EndpointJudge(section.judge.url, section.judge.name)
