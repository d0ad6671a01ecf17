"""A run folder as the stages leave it: small, with figures that look like a real five-minute run."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from luyen.core.files import write_jsonl
from luyen.core.manifest import seal
from luyen.core.storage import write_json

UNSEALED = ("timings.jsonl",)
VERSIONS = {
    "luyen": "0.1.0+3f2a9c41d7e8",
    "python": "3.11.9",
    "torch": "2.13.0",
    "numpy": "2.3.1",
    "tokenizers": "0.22.0",
    "jinja2": "3.1.6",
}
PROMPTS = ("json.dumps", "The statistics module", "What does math.gcd do?")
STAGES = {
    "pages": {"do": "crawl", "start": "pydoc", "modules": ["json", "math", "statistics"]},
    "corpus": {"do": "curate", "source": "pages", "languages": ["en"]},
    "tokenizer": {"do": "tokenizer", "data": "corpus", "vocab_size": 4096, "kind": "bpe"},
    "base": {"do": "pretrain", "data": "corpus", "tokenizer": "tokenizer", "model": {"preset": "llama-3m"}, "train": {"steps": 600}},
    "questions": {"do": "synth", "source": "corpus"},
    "chat": {"do": "sft", "model": "base", "data": "questions", "train": {"steps": 800}},
    "before_after": {"do": "evaluate", "models": {"base": "base", "chat": "chat"}, "questions": "questions", "heldout": "corpus"},
}
KINDS = {
    "crawl": "pages",
    "curate": "corpus",
    "tokenizer": "tokenizer",
    "pretrain": "model",
    "sft": "model",
    "synth": "questions",
    "evaluate": "evaluation",
}


def build(folder: Path, *, until: str = "", hostile: str = "", long: int = 1) -> Path:
    """Make the run. `until` names the stage that was interrupted; `hostile` goes into every text; `long` multiplies rows and texts."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {
        "version": 1,
        "name": f"quickstart{hostile}",
        "about": f"An assistant about this very Python.{hostile}",
        "seed": 7,
        "stages": STAGES,
    }
    (folder / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    machine = {"versions": VERSIONS, "platform": f"Linux-6.1-x86_64{hostile}", "machine": "x86_64", "processors": 2, "threads": "2"}
    write_json(folder / "environment.json", machine)
    events = []
    makers = {
        "crawl": _pages, "curate": _corpus, "tokenizer": _tokenizer, "pretrain": _training, "synth": _questions, "sft": _training,
        "evaluate": _evaluation,
    }  # fmt: skip
    for number, (name, stage) in enumerate(STAGES.items()):
        verb = str(stage["do"])
        stage_folder = folder / name
        stage_folder.mkdir()
        time = f"2026-11-21T09:{10 + number:02d}:00+00:00"
        events.append({"time": time, "event": "started", "stage": name})
        metrics, facts = makers[verb](stage_folder, hostile, long)
        if name == until:
            events.append({"time": time, "event": "interrupted", "stage": name, "error": f"stopped; the same command continues{hostile}"})
            break
        inputs = {
            str(value): f"{number}a7c9e0b1d2f3" * 4
            for key, value in stage.items()
            if key in ("source", "data", "model", "tokenizer") and isinstance(value, str)
        }
        seal(
            stage_folder, KINDS[verb], skip=UNSEALED, verb=verb, stage=name,
            config={key: value for key, value in stage.items() if key != "do"},
            inputs=inputs, seed=1234567 + number, metrics=metrics, versions=VERSIONS, **facts,
        )  # fmt: skip
        events.append({"time": time, "event": "finished", "stage": name, "seconds": facts["seconds"]})
    write_jsonl(folder / "events.jsonl", events)
    return folder


Made = tuple[dict[str, Any], dict[str, Any]]


def _pages(folder: Path, hostile: str, long: int) -> Made:
    write_jsonl(folder / "pages-00000.jsonl", [{"url": f"http://pydoc.localhost/json.html{hostile}", "status": 200}])
    metrics = {
        "pages": 15,
        "bytes": 1_234_567,
        "requests": 16,
        "redirects": 0,
        "skipped": {f"not on this system{hostile}": 1},
        "links": {"other host": 41},
        "left": 0,
    }
    return metrics, {"seconds": 3.2, "joules": None, "estimate": {"seconds": 4.0, "bytes": 0}, "peak_bytes": 150_000_000}


def _corpus(folder: Path, hostile: str, long: int) -> Made:
    steps = [
        ("read", 15, 15, 1_234_567, 1_234_567, {}),
        ("extract", 15, 15, 1_234_567, 412_000, {}),
        ("normalise", 15, 15, 412_000, 411_200, {}),
        ("language", 15, 14, 411_200, 398_000, {f"other language{hostile}": 1}),
        ("quality", 14, 13, 398_000, 380_500, {"too few words": 1}),
        ("near", 13, 12, 380_500, 352_000, {"near duplicate": 1}),
    ]
    names = ("step", "documents_in", "documents_out", "bytes_in", "bytes_out", "dropped")
    funnel = {
        "documents": 15, "steps": [dict(zip(names, step, strict=True)) for step in steps],
        "files": 1, "files_ignored": 0, "files_damaged": [],
        "train": {"documents": 12, "bytes": 311_000}, "heldout": {"documents": 20, "bytes": 41_000}, "heldout_unit": "section",
        "masked": {f"email{hostile}": 3, "phone": 1}, "converted": {}, "languages": {"en": 12},
    }  # fmt: skip
    write_json(folder / "funnel.json", funnel)
    dropped = [
        {"id": f"d{i}", "url": f"http://pydoc.localhost/page{i}.html{hostile}", "rule": rule, "reason": reason + hostile,
         "text": (text + hostile) * long}
        for i, (rule, reason, text) in enumerate(
            [("language", "looks like fr (0.93), kept are: en", "Le module fournit une interface vers les fonctions du système. "),
             ("too_few_words", "11 words, at least 50 are wanted", "This module is deprecated. See the new one instead, please.\n"),
             ("near_duplicate", "0.94 similar to statistics", "Basic statistics module. It provides functions for averages. ")] * long
        )
    ]  # fmt: skip
    write_jsonl(folder / "dropped-00000.jsonl.zst", dropped)
    write_jsonl(folder / "train-00000.jsonl.zst", [{"id": "json", "text": "json.dumps ..." + hostile}])
    return funnel, {"seconds": 1.4, "joules": None, "peak_bytes": 180_000_000}


def _tokenizer(folder: Path, hostile: str, long: int) -> Made:
    row = {
        "language": f"en{hostile}",
        "documents": 2,
        "bytes": 41_000,
        "words": 5_600,
        "tokens": 11_800,
        "tokens_per_word": 2.107,
        "bytes_per_token": 3.475,
    }
    write_json(folder / "fertility.json", [row, {**row, "language": "vi", "tokens_per_word": None, "bytes_per_token": 1.61}])
    sample = [
        "json",
        ".",
        "dumps",
        "(",
        "obj",
        ",",
        " *",
        ",",
        " skip",
        "keys",
        "=",
        "False",
        ")",
        "\n",
        " Serial",
        "ize",
        " ``",
        "obj",
        "``",
        hostile or " to",
    ]
    return {"vocab_size": 4096, "sample": sample * long, "measured_on": "held-out documents", "fertility": [row]}, {
        "seconds": 0.9,
        "joules": None,
    }


def _training(folder: Path, hostile: str, long: int) -> Made:
    chat = folder.name == "chat"
    steps, start, end = (800, 4.1, 0.21) if chat else (600, math.log(4096), 1.9)
    noise = random.Random(3)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps * long + 1):
        done = step / (steps * long)
        loss = end + (start - end) * math.exp(-5 * done) + noise.gauss(0, 0.05)
        rate = 2e-3 * min(1, 20 * done) * (0.55 + 0.45 * math.cos(math.pi * done))
        rows.append(
            {"step": step, "loss": loss, "learning_rate": rate, "gradient_norm": 1.0, "tokens": 4096 * step, "targets": 4000 * step}
        )
        if step % 100 == 0 or step == 1:
            bits = (1.31 + 0.09 * done) if chat else 1.3 + 1.9 * math.exp(-6 * done)
            rows.append({"step": step, "heldout_bits_per_byte": bits})
    write_jsonl(folder / "metrics.jsonl", rows)
    write_jsonl(
        folder / "timings.jsonl", [{"step": step, "seconds": 0.17, "tokens_per_second": 24_000 + step} for step in range(1, steps + 1)]
    )
    _samples(folder, chat, steps, hostile, long)
    _weights(folder / "model", hostile)
    account = {
        "rows": 4210,
        "samples": 4200,
        "dropped": {"too long": 10},
        "tokens": 190_000,
        "trained": 80_000,
        "lost": 120,
        "longest": 600,
    }
    read = {"files": 1, "rows": 4212, "accepted": 4210, "rejected": 2}
    data = {f"questions{hostile}": {"format": "messages", "rows": read, "tokens": account}} if chat else account
    metrics = {"loss": end, "tokens": 4096 * steps * long, "evaluation": {"heldout_bits_per_byte": 1.4 if chat else 1.305}, "data": data}
    facts = {
        "seconds": 141.7 if chat else 104.3,
        "joules": None,
        "estimate": {"seconds": 120.0, "bytes": 700_000_000},
        "peak_bytes": 655_000_000,
    }
    return metrics, {"tokens": 4096 * steps * long, **facts}


def _samples(folder: Path, chat: bool, steps: int, hostile: str, long: int) -> None:
    stages = [
        "rop ingiter .. ( x the",
        "The module returns the the value of the value.",
        "Return the greatest common divisor of the integers.",
    ]
    if chat:
        stages = [
            "Return the value of the json module",
            "Serialize obj to the greatest common",
            "It returns the greatest common divisor of the integer arguments.",
        ]
    rows = []
    for step, answer in zip((0, steps // 2, steps), stages, strict=True):
        rows += [{"step": step, "prompt": prompt + hostile, "answer": (answer + hostile) * long} for prompt in PROMPTS[1 if chat else 0 :]]
    write_jsonl(folder / "samples.jsonl", rows)


def _weights(folder: Path, hostile: str) -> None:
    folder.mkdir()
    shapes = {"model.embed_tokens.weight": [4096, 256], "model.layers.0.mlp.up_proj.weight": [256, 8000]}
    entries = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    write_json(folder / "config.json", {"architectures": ["LlamaForCausalLM"]})


def _questions(folder: Path, hostile: str, long: int) -> Made:
    account = {
        "entries": {"documents": 12, "matches": 240, "kept": 205, "no description": 35},
        "kinds": {"function": 160, "class": 45}, "chosen": 205,
        "taught": 185, "untaught": [f"json.loads{hostile}", "math.comb"] * 10, "train": {"rows": 4210, "meaning": 2400, "reverse": 1810},
        "evaluation": {"taught/meaning": 185, "untaught/meaning": 20, "invented/meaning": 60, "training/meaning": 100},
        "left_out": {f"same description as another entry{hostile}": 12},
    }  # fmt: skip
    write_json(folder / "account.json", account)
    row = {
        "messages": [
            {"role": "user", "content": f"What does json.dumps do?{hostile}"},
            {"role": "assistant", "content": "It serializes an object."},
        ]
    }
    write_jsonl(folder / "train.jsonl", [{**row, "source": "meaning", "entry": f"json.dumps{hostile}"}] * 5)
    write_jsonl(
        folder / "evaluation.jsonl", [{"id": "e1", "set": "taught", "messages": row["messages"][:1], "answer": "It serializes."}] * 4
    )
    return {**account, "summary": "185 entries taught, 20 held out, 4210 rows"}, {
        "seconds": 0.4, "joules": None, "estimate": {"seconds": None, "bytes": None, "counted": "how much corpus holds is not known"},
    }  # fmt: skip


def _results(hostile: str) -> Iterable[dict[str, Any]]:
    table = {
        "taught": (185, {"base": 0.0, "chat": 0.643, "retrieval": 0.211, "ngram": 0.0}),
        "untaught": (20, {"base": 0.0, "chat": 0.05, "retrieval": 0.2, "ngram": 0.0}),
        "invented": (60, {"base": None, "chat": None, "retrieval": None}),
        "training": (100, {"base": 0.0, "chat": 0.91, "retrieval": 0.22}),
    }
    for name, (examples, models) in table.items():
        for model, exact in models.items():
            row: dict[str, Any] = {"model": model, "set": name, "examples": examples, "stopped": 1.0 if model != "base" else 0.033}
            if exact is None:
                row["invented"] = {"base": 1.0, "chat": 0.9, "retrieval": 1.0}[model]
            else:
                row |= {"exact_match": exact, "f1": min(1.0, exact + 0.12), "chrf": 100 * min(1.0, exact + 0.2)}
                row["intervals"] = {"exact_match": [max(0.0, exact - 0.07), min(1.0, exact + 0.07)]}
            yield row
    if hostile:
        yield {"model": hostile, "set": hostile, "examples": 3, "exact_match": 0.5, hostile: 0.1}


def _evaluation(folder: Path, hostile: str, long: int) -> Made:
    forgetting = [
        {"model": "base", "heldout_bits_per_byte": 1.305, "difference": 0.0},
        {"model": "chat", "heldout_bits_per_byte": 1.4, "difference": 0.095},
    ]
    results = {
        "rows": list(_results(hostile)), "forgetting": forgetting,
        "asked": {"base": "asked in the chat template", "retrieval": f"the description in the best passage{hostile}"},
        "by_source": [
            {"model": "chat", "set": "taught", "source": source, "examples": 90, "exact_match": 0.6} for source in ("meaning", "reverse")
        ],
    }  # fmt: skip
    write_json(folder / "results.json", results)
    answers = []
    for index in range(40 * long):
        name = ("taught", "untaught", "invented", "training")[index % 4]
        question = f"Could you explain what math.function_{index} is for?{hostile}"
        expected = "" if name == "invented" else f"Return item {index} of the sequence."
        for model in ("base", "chat", "retrieval"):
            exact = model == "chat" and index % 3 == 0 and bool(expected)
            answer = expected if exact else f"{model} says: Return the {'value ' * (index % 7)}of the function.{hostile}"
            score = {"exact_match": float(exact)} if expected else {"invented": float(index % 8 > 2), "said_unknown": float(index % 8 == 2)}
            answers.append({"model": model, "set": name, "id": f"{name}-{index}", "question": question, "expected": expected,
                            "answer": answer, **score, "stopped": model != "base"})  # fmt: skip
    write_jsonl(folder / "answers.jsonl", answers)
    return {"answers": 365, "rows": results["rows"]}, {"seconds": 31.0, "joules": None, "peak_bytes": 500_000_000}
