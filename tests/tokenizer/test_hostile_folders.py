"""Tokenizer folders made to hang, to fill the memory or to end in a traceback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luyen.core.errors import DataError, LuyenError, ModelError
from luyen.core.records import Message
from luyen.tokenizer import sandbox
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.sandbox import render_jinja

MakeFolder = Callable[..., Path]
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "loops": LOOPS,
    "loops with loop.length": LOOPS.replace("{% endfor %}", "{% if loop.length %}{% endif %}{% endfor %}", 1),
    "filtered loops": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
    "calls": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
}


def render(jinja: str) -> str:
    messages = [Message("user", "U"), Message("assistant", "A")]
    return render_jinja(jinja, messages, {"bos_token": "<s>"}, add_generation_prompt=False)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_output_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "loops":
        monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    started = time.process_time()
    with pytest.raises(ModelError, match="does not come to an end"):
        render(ENDLESS[name])
    assert time.process_time() - started < 4


def test_a_template_is_stopped_outside_the_main_thread_and_while_loading(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    errors: list[LuyenError] = []

    def load() -> None:
        try:
            Tokenizer.load(folder)
        except LuyenError as error:
            errors.append(error)

    folder = make_folder(["<s>"], LOOPS)
    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(30)
    assert [type(error) for error in errors] == [ModelError]


HUGE = {
    "power": "{{ 10 ** 100000000 }}",
    "product": "{{ 'x' * 10 ** 10 }}",
    "product of a list": "{{ (10 ** 9 * [1]) | length }}",
    "product of a constant": "{{ 'x' * 9999999999 }}",
    "doubled": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "joined": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "squared": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "centred": "{{ 'x' | center(9999999999) }}",
    "centred often": "{{ range(99999) | map('center', 999999) | list | length }}",
    "indented": "{{ 'x\ny' | indent(9999999999) }}",
    "sliced": "{{ [1] | slice(9999999999) | list | length }}",
    "formatted": "{{ '%9999999999d' % 1 }}",
    "formatted with a star": "{{ '%*d' % (9999999999, 1) }}",
    "formatted by name": "{{ '%(a)9999999999d' % {'a': 1} }}",
    "a precise number": "{{ '%.9999999999f' % 1 }}",
    "filtered format": "{{ '%9999999999d' | format(1) }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "format with an argument": "{{ '{:>{}}'.format(1, 9999999999) }}",
    "format with two arguments": "{{ '{:{}{}}'.format(1, 99999, 99999) }}",
    "format with both": "{{ '{:{}9999999}'.format(1, 999) }}",
    "justified": "{{ 'x'.ljust(9999999999) }}",
    "justified by name": "{{ 'x'.expandtabs(tabsize=9999999999) }}",
}


@pytest.mark.parametrize("name", HUGE)
def test_a_template_that_builds_a_huge_value_is_stopped(name: str) -> None:
    started = time.process_time()
    with pytest.raises(ModelError, match="too large a value|does not come to an end"):
        render(HUGE[name])
    assert time.process_time() - started < 4


def test_memory_that_cannot_be_had_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> str:
        raise MemoryError

    monkeypatch.setattr("luyen.tokenizer.sandbox.json.dumps", full)
    with pytest.raises(ModelError, match="too large a value"):
        render("{{ messages | tojson }}")


def test_stars_and_long_numbers_around_a_value_are_text() -> None:
    assert (
        render("{{ '**%s** 12345678' % 'a' }} {{ '12345678 * {}*'.format('b') }} {{ '9 * 9%%' % () }}")
        == "**a** 12345678 12345678 * b* 9 * 9%"
    )


def test_doubled_braces_are_text() -> None:
    assert render("{{ '{{a {}}}'.format(1) }}") == "{a 1}"


def test_usual_arithmetic_stays_as_it_is() -> None:
    jinja = (
        "{{ 2 ** 10 }} {{ 'ab' * 3 }} {{ [1] + [2] }} {{ 'a' + 'b' }} {{ 'a' ~ 1 ~ none ~ missing }} {{ 7 % 4 }} {{ '%-5s|' % 'a' }}"
        "{{ '%s' | format('x') }} {{ 'x' | center(5) }} {{ '{:>3}'.format(1) }} {{ 2 * 1.5 }} {{ 2 ** 0.5 > 1 }} {{ 2 ** -1 }}"
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ m.role }}{% endfor %}"
        "{% for x in missing %}no{% else %} else{% endfor %}{% for k, v in {'k': 'v'}.items() recursive %}{{ k + v }}{% endfor %}"
    )
    expected = "1024 ababab [1, 2] ab a1None 3 a    |x   x     1 3.0 True 0.51/2Falseuser2/2Trueassistant elsekv"
    assert render(jinja) == expected


@pytest.mark.parametrize("jinja", ["{{ " + "9" * 5000 + " }}", "{% if 1 %}" * 300 + "{% endif %}" * 300, "{{ " + "(" * 5000])
def test_a_template_that_python_cannot_compile_is_named(jinja: str) -> None:
    with pytest.raises((ModelError, DataError)) as caught:
        render(jinja)
    assert "\n" not in str(caught.value)


def unigram(**changes: Any) -> str:
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False, **changes}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unk_id": 2}, "unk_id"), ({"unk_id": 10**9}, "unk_id"), ({"unk_id": -1}, "unk_id"), ({"unk_id": "a"}, "unk_id"),
        ({"unk_id": True}, "unk_id"), ({"vocab": [5]}, "cannot be read|vocabulary"),
    ],
)  # fmt: skip
def test_an_unknown_token_outside_the_vocabulary_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(unigram())
    assert Tokenizer.load(tmp_path).unknown_id == 0
    (tmp_path / "tokenizer.json").write_text(unigram(unk_id=None))
    assert Tokenizer.load(tmp_path).unknown_id is None
    (tmp_path / "tokenizer.json").write_text(unigram(**changes))
    with pytest.raises(ModelError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("value", [5, "text", {"id": 1}, True])
def test_added_tokens_that_are_no_list_are_named(make_folder: MakeFolder, value: object) -> None:
    path = make_folder(["<s>"]) / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens": value}))
    with pytest.raises(ModelError, match="added_tokens"):
        Tokenizer.load(path.parent)
