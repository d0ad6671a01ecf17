"""README.md of a run: a model card with the front matter that the Hugging Face hub reads.

The license is left out on purpose: it is the user's to choose and depends on the pages.
"""

from __future__ import annotations

import html
import re

import yaml

from luyen.core.folders import ADAPTER_FILE, model_in
from luyen.report.answers import SHARES, forgetting, results, set_name, trained_models
from luyen.report.data_sections import languages
from luyen.report.headline import headline
from luyen.report.model_sections import final_loss, tokens_of, weights_of
from luyen.report.reading import TALKING, Run, Stage, mapping, pick, text
from luyen.report.run_sections import outcome, result_fingerprint, versions_of
from luyen.report.wording import clip, decimal, duration, share, whole

SPECIAL = re.compile(r"([\\`*_{}\[\]#|~!$])")


def model_card(run: Run) -> str:
    """The card as Markdown; texts of the run are escaped, so that none becomes markup or a link."""
    trained = run.finished("model")
    final = next((stage for stage in reversed(trained) if stage.verb in TALKING), trained[-1] if trained else None)
    parts = [_front_matter(run, final), f"# {escape(run.name)}\n", _summary(run)]
    about = text(run.recipe.get("about"))
    if about:
        parts.insert(2, f"{escape(about)}\n")
    parts += [_use(final), _trained_on(run), _figures(run), _limits(run, final), _lineage(run)]
    return "\n".join(part for part in parts if part)


def escape(value: str) -> str:
    """Text as one line of Markdown that shows exactly its characters; addresses do not become links."""
    line = SPECIAL.sub(r"\\\1", html.escape(" ".join(value.split()), quote=False))
    return line.replace("://", ":\u200b//").replace("www.", "www\u200b.")


def _front_matter(run: Run, final: Stage | None) -> str:
    facts: dict[str, object] = {}
    spoken = languages(run)
    if spoken:
        facts["language"] = spoken
    facts |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    facts["tags"] = ["luyen", "llama"] + (["conversational"] if final is not None and final.verb in TALKING else [])
    written = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    return f"---\n{written}# license: yours to choose; it depends on the pages that the model was trained on\n---\n"


def _summary(run: Run) -> str:
    top = headline(run)
    return "\n\n".join([f"**{escape(top.title)}**", *map(escape, top.sentences)]) + "\n"


def _use(final: Stage | None) -> str:
    folder = None if final is None else model_in(final.folder)
    if final is None or folder is None:
        return "## How to load it\n\nThere is no finished model in this run yet.\n"
    where = f"{final.name}/{folder.name}"
    if (folder / ADAPTER_FILE).is_file():
        return _use_of_adapter(where, str(final.config.get("model") or final.config.get("base")), str(final.config.get("quantize")))
    chat = final.verb in TALKING
    if chat:
        prompt = 'messages = [{"role": "user", "content": "..."}]\n' + (
            'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)'
        )
    else:
        prompt = 'inputs = tokenizer("...", return_tensors="pt")'
    return f"""## How to load it

From this folder:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({where!r})
model = AutoModelForCausalLM.from_pretrained({where!r})
{prompt}
output = model.generate(**inputs, max_new_tokens=100, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""


def _use_of_adapter(where: str, base: str, quantize: str) -> str:
    bits = (
        "" if quantize in ("", "none", "None") else f" It was trained on the base in {quantize}; on the base in numbers its answers differ."
    )
    return f"""## How to load it

It is an adapter beside the model of `{escape(base)}`, which it needs.{bits} Talk to it with `luyen chat {where}`, or make one model of both
with `luyen merge BASE {where} out=FOLDER`. Of the methods that PEFT has:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({where!r})
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), {where!r})
```
"""


def _trained_on(run: Run) -> str:
    done = [stage for stage in run.stages if stage.state == "done" and stage.kind != "evaluation"]
    lines = [f"- {escape(stage.name)}: {escape(outcome(run, stage))}" for stage in done]
    starts = [str(stage.config["start"]) for stage in run.finished("pages") if isinstance(stage.config.get("start"), (str, list))]
    if starts:
        lines.insert(0, f"- pages from: {escape(clip(', '.join(starts), 500))}")
    return "## What it was trained on\n\n" + ("\n".join(lines) or "Nothing yet.") + "\n"


def _figures(run: Run) -> str:
    rows = []
    for stage in run.finished("model"):
        bits = stage.number("evaluation.heldout_bits_per_byte")
        rows.append([
            escape(stage.name), whole(weights_of(stage)), whole(tokens_of(stage)), decimal(final_loss(run, stage)), decimal(bits),
            duration(pick(stage.manifest, "seconds")),
        ])  # fmt: skip
    columns = ["Model", "Parameters", "Tokens", "Loss (nats)", "Held-out bits per byte", "Time"]
    card = "## Figures\n\n" + table(columns, rows) if rows else ""
    for stage in run.finished("evaluation"):
        found = results(run, stage)
        measured = [key for key in (*SHARES, "chrf") if any(row.number(key) is not None for row in found)]
        cells = [
            [escape(row.model), escape(set_name(row.set)), whole(row.number("examples"))]
            + [share(row.number(key)) if key in SHARES else decimal(row.number(key), 1) for key in measured]
            for row in found[:80]
        ]
        if cells:
            card += "\n" + table(["Model", "Questions", "Asked", *(SHARES.get(key, "chrF") for key in measured)], cells)
        changes = [
            [escape(text(row.get("model"))), decimal(pick(row, "heldout_bits_per_byte", "bits_per_byte")), _signed(pick(row, "difference"))]
            for row in forgetting(run, stage)[:80]
        ]
        if changes:
            card += "\n" + table(["Model", "Held-out bits per byte", "Change"], changes)
    return card


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; cells are already escaped."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def _limits(run: Run, final: Stage | None) -> str:
    lines = ["- It knows only what its pages say, and only as they were when they were fetched."]
    for stage in run.finished("evaluation"):
        found = results(run, stage)
        learned = trained_models(run, stage, found)
        for row in found:
            rate = row.number("invented") if row.set == "invented" else None
            if learned and row.model == learned[-1] and rate is not None:
                lines.append(f"- Asked about names that do not exist it invented an answer in {share(rate, 0)} of the cases.")
    weights = weights_of(final) if final else None
    if weights is not None and weights < 1e9:
        able = "it can recall and rephrase; do not expect it to reason, translate or follow long instructions"
        lines.append(f"- With {whole(weights)} parameters {able}.")
    lines.append("- It was not aligned for safety. Do not let it decide anything about people.")
    return "## Limits\n\n" + "\n".join(lines) + "\n"


def _lineage(run: Run) -> str:
    rows = [
        [escape(stage.name), f"`{result_fingerprint(stage) or '–'}`",
         escape(", ".join(f"{name} {text(value)[:12]}" for name, value in mapping(stage.manifest.get("inputs")).items())) or "–"]
        for stage in run.stages if stage.manifest
    ]  # fmt: skip
    if not rows:
        return ""
    versions = versions_of(run)
    made = ", ".join(f"{name} {versions[name]}" for name in ("luyen", "python", "torch") if name in versions)
    seed = run.recipe.get("seed")
    lines = [f"Seed {escape(str(seed)[:40])}." if seed is not None else "", f"Made with {escape(made)}." if made else ""]
    return (
        "## Lineage\n\nEach stage's content as sha256 (file names and their hashes) and what it was made from. "
        f"{' '.join(line for line in lines if line)} The exact recipe is in `recipe.resolved.yaml`.\n\n"
    ) + table(["Stage", "Content", "Made from"], rows)
