"""Commands that make sense after a run, built from what the run holds and quoted for a POSIX shell."""

from __future__ import annotations

import shlex
from pathlib import Path

from luyen.report.blocks import Command, Limits, Section
from luyen.report.reading import RECIPE, TALKING, Run, Stage, pick


def next_steps(run: Run, limits: Limits) -> Section:
    """The commands with a line on each."""
    section = Section(
        "next", "What to try next",
        "Each command continues from what is here; copy one and see what changes. If the shell does not find luyen, activate the "
        "environment that it was installed in first, for example with: . .venv/bin/activate",
    )  # fmt: skip
    section.blocks.extend(suggestions(run)[: limits.groups])
    return section


def suggestions(run: Run) -> list[Command]:
    """The commands, most useful first."""
    chat = next((stage for stage in reversed(run.finished("model")) if stage.verb in TALKING), None)
    talk = [Command(f"luyen chat {quoted(run.folder)}", "Talk to the model, with the pages that it read at hand.")] if chat else []
    again = _run_command(run)
    unfinished = any(stage.state != "done" for stage in run.stages if stage.planned)
    if unfinished:
        purpose = "Continue: finished stages are skipped, the interrupted one goes on from its last checkpoint."
        return ([Command(again, purpose)] if again else []) + talk
    commands = list(talk)
    if chat:
        commands.append(Command(f"{talk[0].command} --no-retrieval", "The same without the pages: only what the weights remember."))
    if run.name == "quickstart":
        purpose = "The same chain over the whole standard library, with a larger model and more training."
        commands.append(Command("luyen run quickstart --budget 1h", purpose))
    if chat:
        commands.extend(_inspect(run, chat))
    if again:
        commands.extend(_changes(run, chat, again))
    return commands


def _run_command(run: Run) -> str:
    """The command that runs this very recipe, settings of the command line included, in this very folder; "" without a recipe."""
    if not run.recipe_text:
        return ""
    command = f"luyen run {quoted(run.folder / RECIPE)}"
    usual = run.folder.name == run.name and run.folder.parent == Path("runs")
    return command if usual else f"{command} --out {quoted(run.folder)}"


def _inspect(run: Run, chat: Stage) -> list[Command]:
    for questions in run.finished("questions"):
        if (questions.folder / "train.jsonl").is_file():
            command = f"luyen inspect {quoted(questions.folder / 'train.jsonl')} model={quoted(chat.folder / 'model')}"
            return [Command(command, "See, token by token, what the chat model was trained to say and what was only context.")]
    return []


def _changes(run: Run, chat: Stage | None, again: str) -> list[Command]:
    """One setting changed; only the stages that depend on it run again."""
    changes = []
    stages = ([chat] if chat else []) + [stage for stage in run.finished("model") if stage is not chat][:1]
    for stage in stages:
        steps = pick(stage.config, "train.steps")
        if steps:
            what = {"pretrain": "Pretrain", "sft": "Fine-tune"}.get(stage.verb, "Align")
            purpose = f"{what} twice as long; only this stage and those after it run again."
            changes.append((f"{stage.name}.train.steps={2 * int(steps)}", purpose))
    for stage in run.finished("tokenizer")[:1]:
        vocabulary = pick(stage.config, "vocab_size")
        if vocabulary:
            purpose = "A vocabulary twice as large: fewer tokens per word, more weights to train."
            changes.append((f"{stage.name}.vocab_size={2 * int(vocabulary)}", purpose))
    if isinstance(run.recipe.get("seed"), int):
        changes.append((f"seed={run.recipe['seed'] + 1}", "Another seed: how much of the result is luck?"))
    return [Command(f"{again} {quoted(setting)}", purpose) for setting, purpose in changes]


def quoted(value: Path | str) -> str:
    """For a shell, without line ends and control characters, so that a copied command stays one command."""
    return shlex.quote("".join(character if character.isprintable() else " " for character in str(value)))
