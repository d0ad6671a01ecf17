"""`luyen chat` in a terminal and in a pipe: conversations, continued texts, commands, devices."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import CTRL_C, CTRL_D, Terminal
from toy_models import write_model


def luyen(*words: str, cwd: Path, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "luyen.cli.main", *words], cwd=cwd, input=stdin, capture_output=True, timeout=110,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    return subprocess.CompletedProcess(result.args, result.returncode, result.stdout.decode(), result.stderr.decode())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an assistant, a model without a template, and one that was only pretrained."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "assistant", context=4096)
    write_model(folder / "bare", template=False, context=4096)
    write_model(folder / "base", algorithm="pretrain")
    return folder


def test_a_conversation_in_a_terminal(models: Path) -> None:
    with Terminal("chat", "assistant", "max_new_tokens=3500", cwd=models) as terminal:
        terminal.expect("assistant. Ctrl-C stops an answer, Ctrl-D ends, /help.\n")
        terminal.expect("you> ")
        terminal.type(b"/help\n")
        help_text = terminal.expect("you> ")
        assert "/clear   forget the conversation" in help_text and "//word" in help_text
        assert "end (also /quit, Ctrl-D, and Ctrl-C at the prompt)" in help_text
        terminal.type(b"caf\xe9\n")
        assert "this line is not UTF-8 text and was not sent\n" in terminal.expect("you> ")
        terminal.type(b"/claer\n")
        assert "no command /claer. Commands:\n    /clear" in terminal.expect("you> ")
        terminal.type(b"Hello\n")
        terminal.expect("Hello\n")
        while len(terminal.seen) == terminal.taken:
            terminal._read()
        terminal.type(CTRL_C)
        assert "you> " not in terminal.expect(" [stopped]\n"), "an answer of thousands of tokens was stopped in the middle"
        terminal.expect("you> ")
        terminal.type(b"/clear\n")
        assert "the conversation is forgotten\n" in terminal.expect("you> ")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


def test_texts_in_a_terminal(models: Path) -> None:
    with Terminal("chat", "bare", "max_new_tokens=3500", cwd=models) as terminal:
        told = terminal.expect("text> ")
        assert "bare has no chat template: it continues what you type; an empty line asks for a text from nothing." in told
        terminal.type(b"The function\n")
        terminal.expect("The function\nThe function")  # typed, and again at the head of the whole text
        terminal.type(CTRL_C)
        terminal.expect(" [stopped]\ntext> ")
        terminal.type(b"/clear\n")
        assert "no command /clear. Commands:\n    /help" in terminal.expect("text> "), "nothing is remembered between texts"
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


def test_a_transcript_of_a_pipe_is_readable(models: Path) -> None:
    result = luyen("chat", "assistant", "max_new_tokens=4", cwd=models, stdin=b"Hello\n/clear\n/what\n//what\n  \nBye")
    assert result.returncode == 0 and result.stderr == ""
    asked = [line for line in result.stdout.splitlines() if line.startswith("you> ")]
    assert asked == ["you> Hello", "you> /clear", "you> /what", "you> /what", "you> Bye"]
    assert "you> /clear\nthe conversation is forgotten\n" in result.stdout and result.stdout.count("no command /what") == 1
    assert not result.stdout.endswith("\n\n"), "the end of a pipe is quiet"


def test_a_pipe_of_texts(models: Path) -> None:
    result = luyen("chat", "bare", "max_new_tokens=9", "temperature=1", cwd=models, stdin="Xin chào\n\n\nПривет ".encode())
    assert result.returncode == 0 and result.stderr == "luyen: bare has no chat template: it continues what you type\n"
    texts = result.stdout.split("text> ")[1:]
    assert texts[0].startswith("Xin chào") and texts[3].startswith("Привет ") and all(len(text) > 9 for text in texts)
    assert texts[1] != texts[2], "the same beginning again is drawn anew"


def test_who_continues_and_who_answers(models: Path) -> None:
    base = luyen("chat", "base", "max_new_tokens=2", cwd=models, stdin=b"The")
    assert base.stdout.startswith("text> The") and "base was only pretrained: it continues what you type" in base.stderr
    assert luyen("chat", "base", "--no-continue", "max_new_tokens=2", cwd=models, stdin=b"The").stdout.startswith("you> The\n")
    forced = luyen("chat", "assistant", "--continue", "max_new_tokens=2", cwd=models, stdin=b"The")
    assert forced.stdout.startswith("text> The") and "assistant continues what you type" in forced.stderr
    refused = luyen("chat", "bare", "--no-continue", cwd=models)
    assert refused.returncode == 2 and "bare has no chat template, so it cannot chat" in refused.stderr
    system = luyen("chat", "bare", "--system", "Be short.", cwd=models)
    assert system.returncode == 2 and "--system is for a conversation" in system.stderr


def test_the_device_is_chosen_and_a_missing_one_is_told(models: Path) -> None:
    assert luyen("chat", "bare", "device=cpu", "max_new_tokens=2", cwd=models, stdin=b"The").returncode == 0
    wrong = luyen("chat", "bare", "device=gpu", cwd=models, stdin=b"The")
    assert wrong.returncode == 2 and "device; found 'gpu'; expected auto, cpu, cuda" in wrong.stderr


def test_bytes_that_are_no_text_are_refused_in_one_line(models: Path) -> None:
    result = luyen("chat", "assistant", "max_new_tokens=2", cwd=models, stdin=b"caf\xe9\nHello\n", PYTHONUTF8="1")
    assert result.returncode == 0 and result.stderr == "luyen: this line is not UTF-8 text and was not sent\n"
    assert result.stdout.startswith("you> Hello\n") and result.stdout.count("you> ") == 1
    texts = luyen("chat", "bare", "max_new_tokens=2", cwd=models, stdin=b"/h\xe9\nThe", PYTHONUTF8="1")
    assert "this line is not UTF-8 text and was not sent\n" in texts.stderr and texts.stdout.startswith("text> The")


def test_ctrl_c_ends_a_pipe(models: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "luyen.cli.main", "chat", "assistant", "max_new_tokens=3500"], cwd=models, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdin and process.stdout
    process.stdin.write("Hello\nBye\n")
    process.stdin.flush()
    assert process.stdout.readline() == "you> Hello\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out.endswith(" [stopped]\n") and "you> Bye" not in out and err.strip() == "luyen: stopped"
