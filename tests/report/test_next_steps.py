"""The commands at the end of the page: whole, in order, and safe to copy."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from luyen.report.next_steps import suggestions
from luyen.report.reading import open_run

from .toy_run import build


def commands(run: Path) -> list[str]:
    return [item.command for item in suggestions(open_run(run))]


def test_a_finished_run(finished_run: Path) -> None:
    found = commands(finished_run)
    assert found[0] == f"luyen chat {finished_run}"
    assert "luyen run quickstart --budget 1h" in found
    assert f"luyen inspect {finished_run}/questions/train.jsonl model={finished_run}/chat/model" in found
    assert f"luyen run {finished_run}/recipe.resolved.yaml --out {finished_run} chat.train.steps=1600" in found
    assert found[-1].endswith(" seed=8")


def test_an_unfinished_run_continues_first(tmp_path: Path) -> None:
    run = build(tmp_path / "a run")
    (run / "before_after" / "luyen.json").unlink()
    found = commands(run)
    assert found == [f"luyen run '{run}/recipe.resolved.yaml' --out '{run}'", f"luyen chat '{run}'"]


def test_the_usual_folder_needs_no_out(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    run = build(Path("runs/quickstart"))
    assert f"luyen run {run}/recipe.resolved.yaml chat.train.steps=1600" in commands(run)


def test_names_cannot_smuggle_a_command(tmp_path: Path) -> None:
    run = build(tmp_path / "x; touch $(id)\nrm")
    recipe = yaml.safe_load((run / "recipe.resolved.yaml").read_text())
    recipe["stages"]["chat; reboot"] = recipe["stages"].pop("chat")
    (run / "chat").rename(run / "chat; reboot")
    (run / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    found = commands(run)
    assert len(found) > 3
    for command in found:
        assert "\n" not in command
        assert shlex.split(command)[:1] == ["luyen"]
        bare = shlex.shlex(command, posix=True, punctuation_chars=True)
        assert not [token for token in bare if token in (";", "&", "|", ">", "(", ")")], command
