"""The command as a person meets it: help at once, mistakes in one line with exit code 2, odd places and small terminals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipe"))

from toy import write_pages, write_recipe  # noqa: E402

from luyen.cli import main  # noqa: E402
from luyen.cli.arguments import program  # noqa: E402
from luyen.cli.main import COMMANDS  # noqa: E402
from luyen.core.errors import ConfigError, Interrupted  # noqa: E402
from luyen.recipe.table import VERBS  # noqa: E402


def luyen(*words: str, cwd: Path | None = None, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "luyen.cli.main", *words], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=110,
        env={**os.environ, "OMP_NUM_THREADS": "2", **environment},
    )  # fmt: skip


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    result = luyen("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)
    code = "import sys, luyen.cli.main; print(sorted({'torch', 'pydantic', 'numpy', 'httpx2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_verb_is_a_command_with_the_same_words() -> None:
    for verb, row in VERBS.items():
        assert COMMANDS[verb][1] == row.help


@pytest.mark.parametrize("verb", ["sft", "curate"])
def test_help_of_a_verb_shows_every_field(verb: str) -> None:
    result = luyen(verb, "--help", COLUMNS="80", LINES="24")
    schema = json.loads(luyen("schema", verb).stdout)
    assert result.returncode == 0
    for name in schema["properties"]:
        assert f"\n    {name}" in result.stdout, name


MISTAKES = [
    (("run", "quickstrat"), "Did you mean 'quickstart'?"),
    (("run", "quickstart", "base.train.stepz=3"), "Did you mean 'train.steps'?"),
    (("sft", "steps=10", "model=a", "data=b"), "unknown key 'steps'. Did you mean 'train.steps'?"),
    (("run", "quickstart", "base.train.steps=three"), "found 'three'"),
    (("run", "quickstart", "--budget", "3m"), "has no budget '3m'. It has: 5m, 1h, 8h"),
    (("run", "quickstart", "bse.train.steps=3"), "Did you mean 'base'?"),
    (("pretrian",), "Did you mean 'pretrain'?"),
    (("pretrain", "data=x"), "give a tokenizer for a new model, or a base model, which brings its own"),
    (("sft", "data=x"), "key 'model' is missing"),
    (("sft", "model=nowhere", "data=nothing.jsonl"), "no such file or folder"),
    (("sft", "model=nowhere", "data"), "cannot read 'data'"),
    (("inspect", "nothing.jsonl"), "nothing.jsonl"),
    (("run", "quickstart", "--dry-run", "corpus.source=nowhere"), "no such file or folder 'nowhere'"),
    (("report", "nowhere"), "no run folder nowhere"),
    (("chat", "nowhere"), "no run or model 'nowhere'"),
    (("chat", "temperatur=1"), "Did you mean 'temperature'?"),
    (("import", "a.bin", "tokenizer=b.bin", "--out", "x"), "no file a.bin"),
    (("schema", "dopo"), "no verb 'dopo'"),
    (("curate", "source=nowhere"), "no such file or folder 'nowhere'"),
    (("evaluate", "models=runs/chat"), "models; found 'runs/chat'; expected a name for each. Write models.NAME=runs/chat"),
    (("crawl", "start=example.org"), "https://example.org/"),
    (("crawl", "start=[http://127.0.0.1:1/]"), "127.0.0.1"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistakes_cost_one_line_and_exit_code_2(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = luyen(*words, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if not line.startswith(("Usage", "Try"))]) <= 2


def test_data_mistakes_name_file_and_line(tmp_path: Path) -> None:
    data = tmp_path / "dữ liệu.jsonl"
    data.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n{"messages": [\n', encoding="utf-8"
    )
    result = luyen("inspect", str(data), LANG="C", LC_ALL="C")
    assert result.returncode == 0, result.stderr
    assert ":2" in result.stdout and "1 accepted, 1 rejected" in result.stdout
    assert luyen("inspect", str(data), "read.strict=true").returncode == 2
    (tmp_path / "empty.jsonl").write_text("")
    empty = luyen("inspect", str(tmp_path / "empty.jsonl"))
    assert empty.returncode == 2 and "empty" in empty.stderr


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run made by the command itself, in a folder with spaces and Cyrillic letters, under LANG=C."""
    folder = tmp_path_factory.mktemp("мой прогон")
    write_recipe(folder)
    result = luyen("run", "toy.yaml", cwd=folder, LANG="C", LC_ALL="C")
    assert result.returncode == 0, result.stderr + result.stdout
    assert "\r" not in result.stdout, "a log file has no carriage returns"
    assert (folder / "runs" / "toy" / "report.html").is_file() and (folder / "runs" / "toy" / "README.md").is_file()
    assert "report: " in result.stdout and "talk to it: luyen chat" in result.stdout
    return folder


def test_chat_answers_from_a_pipe_with_and_without_retrieval(run_folder: Path) -> None:
    with_pages = luyen("chat", "max_new_tokens=8", cwd=run_folder, stdin="What does sum_words do?\n/clear\nHello!\n")
    assert with_pages.returncode == 0, with_pages.stderr
    assert with_pages.stdout.count("the pages, ") == 1, "a greeting needs no passage"
    alone = luyen("chat", "runs/toy", "max_new_tokens=8", "--no-retrieval", cwd=run_folder, stdin="What does sum_words do?\n")
    assert alone.returncode == 0 and "the pages, " not in alone.stdout


def test_inspect_shows_tokens_and_fails_on_rows_that_teach_nothing(run_folder: Path) -> None:
    good = luyen("inspect", "runs/toy/questions/train.jsonl", "model=runs/toy/chat", cwd=run_folder)
    assert good.returncode == 0, good.stderr
    assert "{+" in good.stdout and "answer tokens" in good.stdout
    short = luyen("inspect", "runs/toy/questions/train.jsonl", "model=runs/toy/chat", "length=6", "truncation=truncate", cwd=run_folder)
    assert short.returncode == 2 and "teach nothing or not how to stop" in short.stderr


def test_a_dry_run_of_what_is_done_says_so(run_folder: Path) -> None:
    result = luyen("run", "toy.yaml", "--dry-run", cwd=run_folder)
    assert result.returncode == 0 and result.stdout == "toy, budget small: a toy\neverything is up to date, nothing to do\n"
    changed = luyen("run", "toy.yaml", "--dry-run", "seed=99", cwd=run_folder)
    assert changed.returncode == 0 and "nothing to do" not in changed.stdout and "estimate" in changed.stdout
    recipe = (run_folder / "toy.yaml").read_text(encoding="utf-8")
    (run_folder / "silent.yaml").write_text("".join(line for line in recipe.splitlines(keepends=True) if not line.startswith("about:")))
    silent = luyen("run", "silent.yaml", "--dry-run", cwd=run_folder)
    assert silent.stdout.startswith("toy, budget small\n"), "a recipe that says nothing about itself gets no colon"


def test_report_can_be_written_again(run_folder: Path) -> None:
    page = run_folder / "runs" / "toy" / "report.html"
    page.unlink()
    result = luyen("report", cwd=run_folder)
    assert result.returncode == 0 and page.is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_read_only_folder_is_ordinary_for_a_user(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    tmp_path.chmod(0o555)
    try:
        result = luyen("run", "toy.yaml", "--dry-run", cwd=tmp_path, XDG_DATA_HOME=str(tmp_path / "home"))
    finally:
        tmp_path.chmod(0o755)
    assert result.returncode == 0 and "read-only" in result.stdout


def test_words_that_a_command_takes_have_a_name() -> None:
    assert "VERB\n" in luyen("schema", "--help").stdout.splitlines(keepends=True)[0]


def install(place: Path) -> Path:
    """The program as a script in `place`, as an installation leaves it."""
    place.mkdir(parents=True)
    script = place / "luyen"
    script.write_text(f"#!{sys.executable}\nfrom luyen.cli.main import main\nmain()\n")
    script.chmod(0o755)
    return script


def test_commands_to_type_begin_as_this_program_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script, other = install(tmp_path / ".venv" / "bin"), install(tmp_path / "other" / "bin")
    monkeypatch.setenv("PATH", os.defpath)
    for called in (".venv/bin/luyen", str(script)):
        monkeypatch.setattr(sys, "argv", [called])
        assert program() == ".venv/bin/luyen", "the shell finds none"
    monkeypatch.setenv("PATH", str(other.parent))
    assert program() == ".venv/bin/luyen", "the shell finds another one"
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == "luyen"
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(script.parent)
    assert program() == "./luyen"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(install(tmp_path / "a b"))])
    assert program() == "'a b/luyen'"
    for elsewhere in ("/x/luyen/cli/main.py", "/x/bin/pytest", "luyen"):
        monkeypatch.setattr(sys, "argv", [elsewhere])
        assert program() == "luyen"


def test_the_last_lines_name_a_program_that_can_be_called(run_folder: Path) -> None:
    if not (run_folder / "bin").exists():
        install(run_folder / "bin")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": os.defpath}

    def called(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bin/luyen", *words], cwd=run_folder, capture_output=True, text=True, timeout=110, env=environment)

    assert called("run", "toy.yaml").stdout.splitlines()[-1] == "talk to it: bin/luyen chat"
    assert "talk to it: bin/luyen chat runs/toy/chat" in called("inspect", "runs/toy/chat").stderr


def test_an_evaluation_alone_says_where_its_figures_are(run_folder: Path) -> None:
    words = ("evaluate", "models.chat=runs/toy/chat", "heldout=runs/toy/corpus", "--out", "my figures")
    result = luyen(*words, cwd=run_folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == ["its figures as a page: luyen report 'my figures'", "my figures/evaluate"]
    assert luyen("report", "my figures", cwd=run_folder).returncode == 0
    page = (run_folder / "my figures" / "report.html").read_text(encoding="utf-8")
    assert "Held-out text costs chat " in page and "left no results" not in page


def test_one_verb_alone_continues_and_says_where_its_result_is(tmp_path: Path) -> None:
    write_pages(tmp_path / "pages")
    words = ("curate", "source=pages", "quality=none", "--out", "out")
    first, second = luyen(*words, cwd=tmp_path), luyen(*words, cwd=tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr
    assert "out/curate" in first.stdout and "up to date" in second.stdout


@pytest.mark.parametrize("error", [ConfigError("train.parallel", found="3"), click.UsageError("no such option")])
def test_of_many_processes_the_main_one_tells_what_all_found_wrong(
    error: ConfigError | click.UsageError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    handlers: dict[int, Callable[..., None]] = {}
    monkeypatch.setattr(main.signal, "signal", handlers.__setitem__)

    def ended(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(main.os, "_exit", ended)
    monkeypatch.setattr(main.time, "sleep", lambda seconds: handlers[signal.SIGTERM](signal.SIGTERM, None))
    with pytest.raises(SystemExit) as told:  # the launcher ends it, as the main process has ended
        main._tell(error)
    assert told.value.code == 2 and capsys.readouterr().err == ""
    main._tell(Interrupted(signal.SIGTERM))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(main.time, "sleep", lambda seconds: None)
    main._tell(error)  # the main process went on: this one's own error
    assert capsys.readouterr().err == f"luyen: rank 1: {error}\n"
    monkeypatch.setenv("RANK", "0")
    main._tell(error)
    assert "rank" not in capsys.readouterr().err
