"""Several models on the same questions and the same held-out text, before and after a training stage, beside baselines.

Question sets are those of `synthesis.question_answer`. Every measure is a mean over examples with a 95 % bootstrap interval.
`invented` is the share of made-up names that got any answer which does not admit ignorance by a pattern of the template's
`admissions`; a model that was never taught to admit invents nearly always, and that is what the figure is there to show.

A folder of results: `results.json` {"rows": one a model and set, "by_source": one a model, set and group of questions,
"forgetting": held-out bits per byte, "asked": how each was asked} and `answers.jsonl` with every answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luyen.core import interrupt, progress
from luyen.core.errors import DataError
from luyen.core.files import write_jsonl
from luyen.core.records import Document
from luyen.core.seed import derive
from luyen.core.storage import write_json
from luyen.evaluation import forgetting
from luyen.evaluation.perplexity import BitsPerByte
from luyen.evaluation.respondents import ModelRespondent, Respondent, RetrievalRespondent
from luyen.retrieval.index import Index
from luyen.tasks.question_answering import Answer, Example, QuestionAnswering, read_examples, summarise

SETS = ("taught", "untaught", "invented", "training")
WITH_PAGES = "with pages"
RETRIEVAL = "retrieval"


@dataclass(frozen=True)
class Material:
    """What everybody is asked."""

    examples: Sequence[Example] = ()
    admissions: Sequence[str] = ()
    """Patterns of answers that admit ignorance."""
    heldout: Sequence[Document] = ()
    """Documents that no model was trained on."""
    index: Index | None = None
    """Passages for the retrieval baseline."""

    @classmethod
    def read(cls, questions: Path | None, heldout: Sequence[Document] = (), limit: int | None = None) -> Material:
        """From a folder that `synthesis.question_answer.write` made; `limit` keeps so many examples of each set, the same ones every time.

        DataError when the folder has no evaluation.jsonl.
        """
        if questions is None:
            return cls(heldout=heldout)
        questions = Path(questions)
        if not (questions / "evaluation.jsonl").is_file():
            raise DataError(f"{questions} has no evaluation.jsonl", expected="a folder made by `luyen synth`")
        template = json.loads((questions / "template.json").read_text(encoding="utf-8")) if (questions / "template.json").is_file() else {}
        passages = questions / "passages.jsonl"
        return cls(
            limited(read_examples(questions / "evaluation.jsonl"), limit), template.get("admissions", []), heldout,
            Index.from_file(passages) if passages.is_file() else None,
        )  # fmt: skip


@dataclass
class _Results:
    rows: list[dict[str, Any]] = field(default_factory=list)
    by_source: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)


def limited(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """At most `limit` examples of each set, chosen by a hash of their ids; the order stays."""
    if limit is None:
        return list(examples)
    kept: set[tuple[str, str]] = set()
    for name in dict.fromkeys(example.meta["set"] for example in examples):
        keys = [(name, example.id) for example in examples if example.meta["set"] == name]
        kept.update(sorted(keys, key=lambda key: derive(0, "limit", *key))[:limit])
    return [example for example in examples if (example.meta["set"], example.id) in kept]


def evaluate(
    models: Mapping[str, ModelRespondent], baselines: Mapping[str, Respondent], material: Material, folder: Path, *,
    with_pages: bool = True, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Ask every model and baseline, measure held-out text, write results.json and answers.jsonl, and return the results.

    The first model is the one that forgetting is measured from. When there are passages, a baseline `retrieval` is added and, if
    `with_pages`, the last model is also asked with the best passage before each question. `baselines` are further ones.
    """
    asked: dict[str, Respondent] = dict(models)
    if material.index is not None and material.examples:
        if with_pages and models:
            name, last = list(models.items())[-1]
            if last.tokenizer.has_template:
                asked[f"{name} {WITH_PAGES}"] = replace(last, index=material.index)
        asked[RETRIEVAL] = RetrievalRespondent(material.index)
    asked.update(baselines)
    results = _Results()
    for name, respondent in asked.items() if material.examples else ():
        interrupt.check()
        given = respondent.answers(material.examples, name)
        _judge(name, material, given, results, seed)
    costs: dict[str, BitsPerByte] = {}
    if material.heldout:
        with progress.task("held-out text", len(asked), "models") as task:
            for name, respondent in asked.items():
                interrupt.check()
                cost = respondent.cost(material.heldout)
                if cost is not None:
                    costs[name] = cost
                task.advance()
    value = {
        "rows": results.rows, "by_source": results.by_source, "forgetting": forgetting.table(costs),
        "asked": {name: respondent.note for name, respondent in asked.items()},
    }  # fmt: skip
    write_jsonl(folder / "answers.jsonl", results.answers)
    write_json(folder / "results.json", value)
    return value


def _judge(name: str, material: Material, given: Sequence[Answer], results: _Results, seed: int) -> None:
    """Score one respondent's answers and add its rows."""
    scored: list[tuple[Example, dict[str, float]]] = []
    task = QuestionAnswering("questions", material.examples, material.admissions)
    for example, answer in zip(material.examples, given, strict=True):
        score = task.score(example, answer)
        scored.append((example, score))
        results.answers.append({
            "model": name, "id": example.id, **example.meta, "question": example.question, "expected": example.answer,
            "answer": answer.text, **score, "stopped": answer.stopped,
        })  # fmt: skip
    sets = list(dict.fromkeys(example.meta["set"] for example in material.examples))
    for set_name in sorted(sets, key=lambda item: (SETS.index(item) if item in SETS else len(SETS), sets.index(item))):
        of_set = [(example.meta["source"], score) for example, score in scored if example.meta["set"] == set_name]
        results.rows.append({"model": name, "set": set_name, **_summary([score for _, score in of_set], seed)})
        for source in dict.fromkeys(source for source, _ in of_set):
            row = _summary([score for other, score in of_set if other == source], seed)
            results.by_source.append({"model": name, "set": set_name, "source": source, **row})


def _summary(scores: Sequence[Mapping[str, float]], seed: int) -> dict[str, Any]:
    estimates = summarise(scores, seed)
    return {
        "examples": len(scores), **{name: value.mean for name, value in estimates.items()},
        "intervals": {name: [value.low, value.high] for name, value in estimates.items()},
    }  # fmt: skip
