"""Runs that stopped: what the last line says, and that the named command continues this very run."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from toy_models import write_model, write_tokenizer

from luyen.cli.chat import _last, find
from luyen.cli.inspect import _tokenizer_folder
from luyen.cli.unfinished import command_again, no_model, standing, told_on_stop
from luyen.core import manifest, storage
from luyen.core.config import dump, load, merge, parse_overrides
from luyen.core.errors import Interrupted, UserError
from luyen.data.discover import locate
from luyen.recipe.environment import environment
from luyen.recipe.graph import Plan, StagePlan, builtin_recipes, plan
from luyen.recipe.inputs import check_inputs
from luyen.recipe.stage import Stage
from luyen.recipe.table import load_config_class


def write_run(folder: Path, recipe: dict[str, object], *events: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return folder


def resolved(verb: str, values: dict[str, object]) -> dict[str, object]:
    config = dump(load(load_config_class(verb), values))
    return {"version": 1, "name": verb, "seed": values.get("seed", 0), "stages": {verb: {"do": verb, **config}}}


SFT = {"seed": 5, "model": "a b/model", "data": ["x.jsonl", "y z.jsonl"], "train": {"steps": 40, "optimizer": {"learning_rate": 3e-4}}}


def test_a_verbs_run_is_continued_by_the_verb_with_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/sft"), resolved("sft", SFT))
    words = shlex.split(command_again(Path("runs/sft")))
    assert words[:2] == ["luyen", "sft"] and "--out" not in words and len(words) == 7
    again = load(load_config_class("sft"), parse_overrides(words[2:]))
    assert dump(again) == dump(load(load_config_class("sft"), SFT))
    write_run(Path("my runs/one"), resolved("crawl", {"start": ["https://example.org/"], "user_agent": "me/1"}))
    assert command_again(Path("my runs/one")) == ("""luyen crawl 'start=["https://example.org/"]' user_agent=me/1 --out 'my runs/one'""")


def test_a_run_of_many_processes_is_continued_by_as_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    run = write_run(Path("runs/sft"), resolved("sft", SFT))
    plain = command_again(run).removeprefix("luyen ")
    for launch, told in (
        ((2, 1, 0), "torchrun --standalone --nproc-per-node 2"),
        ((2, 1, 3), "torchrun --standalone --nproc-per-node 2 --max-restarts 3"),
        ((16, 2, 0), "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --nproc-per-node 8"),
    ):
        processes, machines, restarts = launch
        known = {"RANK": "0", "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes // machines, "MASTER_ADDR": "x", "MASTER_PORT": 1}
        with monkeypatch.context() as patch:
            for name, value in {**known, "TORCHELASTIC_MAX_RESTARTS": restarts}.items():
                patch.setenv(name, str(value))
            storage.write_json(run / "environment.json", environment())
            patch.setattr(sys, "argv", ["main.py", "sft", "a=b"])
            with pytest.raises(Interrupted, match=f"Go on with: {told} -m luyen.cli.main sft a=b$"), told_on_stop(run):
                raise Interrupted(signal.SIGTERM)
        assert command_again(run) == f"{told} -m luyen.cli.main {plain}"
        assert str(no_model(run)).endswith(f"Continue it with: {told} -m luyen.cli.main {plain}")
    monkeypatch.setenv("PATH", "")
    assert re.match(r"\S+/torchrun --nnodes 2 ", command_again(run))
    storage.write_json(run / "environment.json", {"launch": {"processes": 0}})
    assert command_again(run) == f"luyen {plain}"


def test_a_run_is_talked_to_by_a_model_that_writes(tmp_path: Path) -> None:
    """A reward model comes later in the run, and says numbers."""
    run = write_run(tmp_path / "run", {"version": 1, "stages": {"chat": {"do": "sft"}, "safe": {"do": "reward"}}})
    for place in ("chat/model", "safe/reward"):
        (run / place).mkdir(parents=True)
        storage.write_json(run / place / "config.json", {})
        storage.write_json((run / place).parent / manifest.MANIFEST, {})
    assert find(str(run)) == (run, str(run / "chat" / "model"))


def test_a_recipes_run_is_continued_by_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quickstart = builtin_recipes()["quickstart"]
    write_run(Path("runs/quickstart"), dict(plan(quickstart, {}).source))
    assert command_again(Path("runs/quickstart")) == "luyen run quickstart"
    write_run(Path("larger"), dict(plan(quickstart, {}, "1h").source))
    assert command_again(Path("larger")) == "luyen run quickstart --budget 1h --out larger"
    changed = plan(quickstart, merge({}, {"base": {"train": {"steps": 3}}}))
    write_run(Path("other/quickstart"), dict(changed.source))
    assert command_again(Path("other/quickstart")) == "luyen run other/quickstart/recipe.resolved.yaml --out other/quickstart"
    assert plan(Path("other/quickstart/recipe.resolved.yaml"), {}).source == changed.source


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"event": "interrupted", "stage": "sft"}, "sft was stopped at step 30 of 40"),
        ({"event": "failed", "stage": "sft", "error": "the disk is full"}, "sft failed at step 30 of 40 (the disk is full)"),
        ({"event": "resumed", "stage": "sft"}, "sft was cut off or is still at work at step 30 of 40"),
        ({"event": "finished", "stage": "corpus"}, "it stopped after corpus"),
    ],
)
def test_where_a_run_stands(event: dict[str, object], told: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", resolved("sft", SFT), {"event": "started", "stage": "sft"}, event)
    for step in (20, 30):
        (run / "sft" / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "fin')  # a line that a kill cut short
    assert standing(run) == told
    with pytest.raises(UserError, match="has no finished model yet") as error:
        find(str(run))
    assert told in str(error.value) and "Continue it with: luyen sft 'model=a b/model'" in str(error.value)
    with pytest.raises(UserError, match="Continue it with: luyen sft"):
        find(str(run / "sft"))


def test_a_run_that_makes_no_model_is_told_apart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", resolved("crawl", {}), {"event": "interrupted", "stage": "crawl"})
    assert "makes no model; found crawl" in str(no_model(run)) and "Continue" not in str(no_model(run))


def test_a_base_model_stands_in_for_an_assistant_that_is_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = resolved("sft", SFT)
    stages = {"base": {"do": "pretrain"}, "chat": recipe["stages"]["sft"]}  # type: ignore[index]
    run = write_run(tmp_path / "run", recipe | {"name": "mine", "stages": stages}, {"event": "interrupted", "stage": "chat"})
    write_model(run / "base" / "model", algorithm="pretrain")
    manifest.seal(run / "base", "model")
    assert find(str(run)) == (run, str(run / "base" / "model"))
    told = capsys.readouterr().err
    assert told.startswith("luyen: chat has no finished model yet (chat was stopped), so this is base. Continue with: luyen run ")


def luyen(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "luyen.cli.main", *words], cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_stopped_training_says_where_it_is_and_how_to_go_on(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("The function dumps turns an object into a string. " * 40)
    words = [
        "pretrain", "data=text.txt", "tokenizer=tokenizer", "model.preset=llama-1m", "model.num_layers=1", "model.context_length=32",
        "batch.length=32", "batch.rows=1", "train.steps=100000", "train.device=cpu",
    ]  # fmt: skip
    process = luyen(*words, cwd=tmp_path)
    log = tmp_path / "runs" / "pretrain" / "pretrain" / "metrics.jsonl"
    end = time.monotonic() + 60
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "\npretrain\n" in f"\n{out}" and "pretrain: pretrain" not in out
    checkpoint = max((log.parent / "checkpoints").glob("step-*"))
    step = int(checkpoint.name.removeprefix("step-"))
    assert err.splitlines()[-1] == (
        f"luyen: stopped in stage pretrain at step {step:,} of 100,000, saved in {checkpoint.relative_to(tmp_path)}. "
        f"Go on with: luyen {shlex.join(words)}"
    )
    talk = luyen("chat", cwd=tmp_path)
    told = talk.communicate(timeout=60)[1]
    assert talk.returncode == 2
    assert f"has no finished model yet: pretrain was stopped at step {step:,} of 100,000. Continue it with: luyen pretrain " in told
    again = shlex.split(told.strip().partition("Continue it with: luyen ")[2])
    assert load(load_config_class("pretrain"), parse_overrides(again[1:])) == load(
        load_config_class("pretrain"), parse_overrides(words[1:])
    )


def test_without_a_name_the_newest_run_with_a_finished_model_is_talked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match="there is no run yet"):
        _last()
    runs = [write_run(Path("runs") / name, resolved(verb, SFT if verb == "sft" else {})) for name, verb in (("a", "sft"), ("b", "crawl"))]
    for age, run in enumerate(runs):
        os.utime(run / "events.jsonl", (age, age))
    with pytest.raises(UserError, match="the run runs/a has no finished model yet. Continue it with: luyen sft .* --out runs/a"):
        _last()  # the newer crawl makes no model
    write_run(Path("runs/c"), resolved("sft", SFT))
    write_model(Path("runs/c/sft/model"))  # not sealed: the stage was stopped after its model was written
    write_model(Path("runs/a/sft/model"))
    manifest.seal(Path("runs/a/sft"), "model")
    assert _last() == (Path("runs/a"), "runs/a/sft/model")


def test_a_damaged_recipe_does_not_hide_the_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    good, bad = write_run(Path("runs/good"), resolved("sft", SFT)), write_run(Path("runs/bad"), {})
    for age, run in enumerate((good, bad)):
        os.utime(run / "events.jsonl", (age, age))
    (bad / "recipe.resolved.yaml").write_text("stages: {a: [")
    write_model(good / "sft" / "model")
    manifest.seal(good / "sft", "model")
    assert _last() == (good, "runs/good/sft/model")
    told = capsys.readouterr().err
    assert told.startswith("luyen: the run runs/bad is passed over: runs/bad/recipe.resolved.yaml is not YAML") and told.count("\n") == 1


def test_a_second_signal_is_told_like_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", resolved("sft", SFT), {"event": "interrupted", "stage": "sft"})
    (run / "sft" / "checkpoints" / "step-00000020").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["luyen", "sft", "model=a b/model"])
    for error, code in ((KeyboardInterrupt(), 130), (Interrupted(signal.SIGTERM), 143)):
        with pytest.raises(Interrupted) as told, told_on_stop(run):
            raise error
        assert told.value.exit_code == code
        assert str(told.value) == (
            f"stopped in stage sft at step 20 of 40, saved in {run}/sft/checkpoints/step-00000020. Go on with: luyen sft 'model=a b/model'"
        )
    (run / "events.jsonl").write_text('{"event": "finished", "stage": "corpus"}\n')
    with pytest.raises(Interrupted, match="stopped after stage corpus. Go on with"), told_on_stop(run):
        raise Interrupted(signal.SIGINT)


def test_a_replacement_that_was_cut_is_found_by_every_command(tmp_path: Path) -> None:
    """A kill between the two renames leaves no folder of that name; whoever names it gets what was there."""

    def cut(name: str) -> Path:
        folder = write_model(tmp_path / name)
        return folder.rename(tmp_path / f".tmp-old-4194304-0-{name}").with_name(name)

    assert find(str(cut("talk"))) == (None, str(tmp_path / "talk"))
    assert _tokenizer_folder(str(cut("looked at"))) == tmp_path / "looked at"
    stage = Stage("sft", tmp_path / "out", 0)
    assert stage.model(str(cut("tuned"))) == str(tmp_path / "tuned") and stage.tokenizer(str(cut("words"))) == tmp_path / "words"
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}')
    values = {"model": str(cut("checked")), "data": str(tmp_path / "rows.jsonl")}
    config = load(load_config_class("sft"), values)
    check_inputs(Plan("sft", "", 0, "", (StagePlan("sft", "sft", config, ()),), {}), tmp_path / "run")
    assert (tmp_path / "checked").is_dir()
    assert locate(str(cut("read"))) == tmp_path / "read"


def test_a_folder_at_the_top_is_no_run(tmp_path: Path) -> None:
    assert find("/") == (None, "/") and find("/tmp") == (None, "/tmp")


def test_an_earlier_model_is_named_while_a_new_one_is_not_finished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", resolved("sft", SFT), {"event": "interrupted", "stage": "sft"})
    kept = run / ".before" / "sft-0123456789ab"
    write_model(kept / "model")
    manifest.seal(kept, "model")
    with pytest.raises(UserError) as error:
        find(str(run))
    assert f"Talk to an earlier one with: luyen chat {kept / 'model'}. Continue it with: luyen sft " in str(error.value)
