"""A recipe small enough to run whole in seconds: HTML pages made here, one-layer models, a few steps."""

from __future__ import annotations

from pathlib import Path

import yaml

VERBS = ("sum", "list", "count", "sort", "join", "split", "pack", "fold", "find", "copy")
THINGS = ("numbers", "words", "rows", "files", "names", "trees")


def write_pages(folder: Path, count: int = 6) -> Path:
    """HTML pages in the manner of a reference manual; the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in range(count):
        thing = THINGS[page % len(THINGS)]
        entries = "".join(
            f"<dl><dt><strong>{verb}_{thing}</strong>(values, /)</dt><dd><span class='code'>"
            f"{verb.capitalize()} the {thing} of page {page} and return the result in order {place}.</span></dd></dl>"
            for place, verb in enumerate(VERBS)
        )
        head = f"<html><head><title>{thing}</title></head><body><h1>{thing}</h1><p>Tools for {thing}.</p><h2>Functions</h2>"
        text = f"{head}{entries}</body></html>"
        (folder / f"{thing}.html").write_text(text, encoding="utf-8")
    return folder


def recipe(pages: Path, *, steps: int = 4, every: int = 2) -> dict[str, object]:
    """The toy recipe as plain values."""
    train = {"steps": steps, "evaluate_every": every, "checkpoint": {"every_steps": every}, "device": "cpu"}
    loop = {"batch": {"rows": 2, "length": 64}, "train": train}
    model = {"preset": "llama-1m", "num_layers": 1, "context_length": 128}
    judged = {"questions": "questions", "heldout": "corpus", "examples": 4, "sampling": {"max_new_tokens": 8}}
    stages: dict[str, dict[str, object]] = {
        "corpus": {"do": "curate", "source": str(pages), "quality": "none", "heldout_unit": "section", "heldout_fraction": 0.2},
        "tokenizer": {"do": "tokenizer", "data": "corpus", "vocab_size": 400},
        "base": {"do": "pretrain", "data": "corpus", "tokenizer": "tokenizer", "model": model, **loop, "prompts": ["The"]},
        "questions": {"do": "synth", "source": "corpus", "max_entries": 12, "invented": 3},
        "chat": {"do": "sft", "model": "base", "data": "questions", "heldout": "corpus", **loop, "prompts": ["Hello!"]},
        "before_after": {"do": "evaluate", "models": {"base": "base", "chat": "chat"}, **judged},
    }
    budgets: dict[str, dict[str, object]] = {"small": {}, "larger": {"base.train.steps": steps + 2}}
    return {"version": 1, "name": "toy", "about": "a toy", "stages": stages, "budgets": budgets}


def write_recipe(folder: Path, **changes: int) -> Path:
    """Pages and recipe in a folder; returns the recipe's path."""
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(recipe(write_pages(folder / "pages"), **changes), sort_keys=False), encoding="utf-8")
    return path
