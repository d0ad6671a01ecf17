"""`luyen chat` with several adapters on one base: who answers, all at once, and what is refused in one line."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from terminal import CTRL_D, Terminal
from toy_models import write_model

from luyen.adapters import files
from luyen.adapters.adapt import adapt
from luyen.adapters.config import AdapterConfig
from luyen.cli import chat
from luyen.core.config import load
from luyen.core.errors import ConfigError, ModelError, UserError

NAMED = ("adapters.law=law", "adapters.style=style")


def write_adapter(base: Path, folder: Path, seed: int, digest: str | None = None, **values: object) -> None:
    model = files.open_model(base)
    config = load(AdapterConfig, {"method": "lora", **values})
    torch.manual_seed(seed)
    adapt(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    files.save(model, config, folder, base=str(base), digest=digest or files.weights_digest(base))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    base = write_model(folder / "base", context=512)
    write_model(folder / "bare", context=512, template=False)
    write_adapter(base, folder / "law", 1, rank=4)
    write_adapter(base, folder / "style", 2, method="dora", rank=2)
    write_adapter(base, folder / "prefixed", 3, method="prefix", prompt={"tokens": 2})
    write_adapter(base, folder / "foreign", 4, "another base", rank=2)
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def talk(typed: str, *words: str) -> Result:
    return CliRunner().invoke(chat.command("chat"), [*words, "max_new_tokens=8"], input=typed)


def said(done: Result) -> list[tuple[str, str]]:
    """What was typed, with the prompt before it, and what came."""
    assert done.exit_code == 0, done.exception
    parts = done.stdout.split("you")[1:]
    return [(line.strip(), answer.strip("\n")) for line, _, answer in (part.partition("\n") for part in parts)]


def test_each_turn_has_its_adapter_and_all_can_be_asked_at_once(here: Path) -> None:
    alone = {name: said(talk("Hello\n", name))[0][1] for name in ("law", "style", "base")}
    assert len(set(alone.values())) == 3
    typed = "/all Hello\nHello\n/clear\n/adapter style\nHello\n/clear\n/adapter none\nHello\n/adapter\n"
    turns = said(talk(typed, "base", *NAMED))
    assert [line for line, _ in turns] == [
        "[law]> /all Hello", "[law]> Hello", "[law]> /clear", "[law]> /adapter style", "[style]> Hello", "[style]> /clear",
        "[style]> /adapter none", "> Hello", "> /adapter",
    ]  # fmt: skip
    answers = [answer for _, answer in turns]
    assert (answers[1], answers[4], answers[7]) == (alone["law"], alone["style"], alone["base"])
    beside = {name: answer.replace("\n", "\n    ") for name, answer in alone.items()}
    assert answers[0] == f"none> {beside['base']}\nlaw> {beside['law']}\nstyle> {beside['style']}"
    assert (answers[3], answers[6]) == ("with the adapter style", "the model itself, without an adapter")
    assert answers[8] == "  * none\n    law\n    style"


def test_their_own_base_is_taken_where_none_is_named_and_texts_are_continued_too(here: Path) -> None:
    alone = {name: talk("The function\n", "--continue", name).stdout.removeprefix("text> ") for name in ("law", "style")}
    assert alone["law"] != alone["style"] and alone["law"].startswith("The function")
    done = talk("The function\n/all The function\n//all of it\n", "--continue", *NAMED)
    assert done.exit_code == 0 and done.stdout.startswith(f"text [law]> {alone['law']}text [law]> /all The function\nnone> The function")
    for name, text in alone.items():
        assert f"\n{name}> " + text.rstrip("\n").replace("\n", "\n    ") + "\n" in done.stdout
    assert "\ntext [law]> /all of it" in done.stdout


def test_asking_all_reads_the_conversation_and_leaves_it_as_it_was(here: Path) -> None:
    turns = said(talk("Hello\n/all Bye\nBye\n/adapter style\n", "base", *NAMED, "temperature=1", "top_p=0.9", "seed=5"))
    answer = turns[2][1].replace("\n", "\n    ")
    assert turns[2][0] == "[law]> Bye" and f"\nlaw> {answer}\nstyle> " in turns[1][1]


def test_what_cannot_be_is_told_in_one_line(here: Path) -> None:
    done = talk("/adapter lew\n/all\n/adapter\n", "base", *NAMED)
    assert done.stderr == "luyen: no adapter 'lew'. Did you mean 'law'?\nluyen: /all without a text. Write it behind, in the same line.\n"
    assert done.exit_code == 0 and "* law" in done.stdout
    for words, kind, told in (
        (("base", "adapters.a=prefixed"), ModelError, "cannot be used beside others; found the method prefix; .* Open it alone"),
        (("base", "adapters.a=law", "adapters.b=foreign"), ModelError, "foreign was trained on other weights .* Give the base that"),
        (("base", "adapters.a=base"), ModelError, "base is not an adapter; .* A whole model is opened alone"),
        (("base", "adapters.a=nowhere"), UserError, "no run or model 'nowhere'"),
        (("base", "adapters.none=law"), ConfigError, "names without spaces; none is the model itself"),
    ):
        error = talk("", *words).exception
        assert isinstance(error, kind) and "\n" not in str(error)
        with pytest.raises(kind, match=told):
            raise error


def test_without_adapters_several_words_are_a_text(here: Path) -> None:
    turns = said(talk("/all of it\n/adapter\n", "base"))
    assert turns[0][0] == "> /all of it" and turns[1][1].startswith("no command /adapter. Commands:")


def test_in_a_terminal(here: Path) -> None:
    with Terminal("chat", "base", *NAMED, "max_new_tokens=3", cwd=here) as terminal:
        assert "base. Adapters: law, style; /adapter NAME, /all TEXT. Ctrl-C" in terminal.expect("you [law]> ")
        terminal.type(b"/help\n")
        assert "/adapter [NAME] go on with this adapter" in terminal.expect("you [law]> ")
        terminal.type(b"/adapter style\n")
        terminal.expect("with the adapter style\nyou [style]> ")
        terminal.type(b"/all Hello\n")
        for name in ("none", "law", "style"):
            terminal.expect(f"\n{name}> ")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
