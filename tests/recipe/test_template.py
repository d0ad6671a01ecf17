"""A base model without a chat template becomes an assistant by the template that `template` names."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from alone import LOOP, lines, verb  # noqa: E402

from luyen.core import storage  # noqa: E402
from luyen.core.errors import ConfigError, ModelError, UserError  # noqa: E402
from luyen.core.records import Message  # noqa: E402
from luyen.models import hf  # noqa: E402
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.tokenizer.chat import render  # noqa: E402
from luyen.tokenizer.load import Tokenizer  # noqa: E402
from luyen.tokenizer.templates import TEMPLATES  # noqa: E402
from luyen.tokenizer.train import TokenizerConfig, train  # noqa: E402

TALK = [{"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]} for n in range(8)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines(tmp_path_factory.mktemp("data") / "talk.jsonl", TALK)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as base models on the hub are: <s> and </s>, and no template."""
    folder = tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    train(["What is one? It is one."] * 3, TokenizerConfig(vocab_size=290)).save(folder)
    (folder / "chat_template.jinja").unlink()
    text = (folder / "tokenizer.json").read_text()
    settings = (folder / "tokenizer_config.json").read_text()
    for name, sign in (("<|bos|>", "<s>"), ("<|eos|>", "</s>"), ("<|system|>", "<|a|>"), ("<|user|>", "<|b|>"), ("<|assistant|>", "<|c|>"),
                       ("<|end|>", "<|d|>")):  # fmt: skip
        text, settings = text.replace(name, sign), settings.replace(name, sign)
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text(settings)
    torch.manual_seed(0)
    size = TransformerConfig(vocab_size=290, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, context_length=96)
    hf.save(Transformer(size), folder)
    return folder


def test_the_missing_template_is_told_with_the_names_that_fit(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as told:
        verb("sft", tmp_path / "run", f"model={base}", f"data={data}", *LOOP)
    line = str(told.value)
    assert "has no chat template" in line and "Set template=llama2 or template=zephyr or template=mistral" in line
    assert "template=FILE.jinja" in line and "chatml" not in line


@pytest.mark.parametrize("name", ["llama2", "zephyr", "mistral"])
def test_the_template_is_trained_with_and_written_beside_the_model(name: str, base: Path, data: Path, tmp_path: Path) -> None:
    done = verb("sft", tmp_path / "run", f"model={base}", f"data={data}", f"template={name}", *LOOP, "prompts=[Hello]") / "model"
    assert (done / "chat_template.jinja").read_text() == TEMPLATES[name].jinja
    tokenizer = Tokenizer.load(done)
    assert tokenizer.template.name == name
    assert json.loads((done / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eos_id
    from transformers import AutoTokenizer

    talk = [Message("user", "What is 1?"), Message("assistant", "It is 1.")]
    text = AutoTokenizer.from_pretrained(done).apply_chat_template(
        [{"role": message.role, "content": message.content} for message in talk], tokenize=False
    )
    assert tokenizer.decode(render(tokenizer, talk).ids, skip_control=False) == text


def test_a_file_of_the_users_is_a_template_and_decides_what_is_up_to_date(base: Path, data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mẫu.jinja"
    mine.write_text("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|d|>{% endfor %}"
                    "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    settings = (f"model={base}", f"data={data}", f"template={mine}", *LOOP)
    done = verb("sft", tmp_path / "run", *settings)
    assert (done / "model" / "chat_template.jinja").read_text() == mine.read_text()
    tokenizer = Tokenizer.load(done / "model")
    assert tokenizer.control["<|d|>"] in tokenizer.stop_ids, "what ends an answer in the template stops one"
    before = storage.read_json(done / "luyen.json")["fingerprint"]
    shutil.move(mine, tmp_path / "moved.jinja")
    verb("sft", tmp_path / "run", f"model={base}", f"data={data}", f"template={tmp_path / 'moved.jinja'}", *LOOP)
    assert storage.read_json(done / "luyen.json")["fingerprint"] == before, "the same text under another name"
    (tmp_path / "moved.jinja").write_text((tmp_path / "moved.jinja").read_text().replace(": ", "> "))
    verb("sft", tmp_path / "run", f"model={base}", f"data={data}", f"template={tmp_path / 'moved.jinja'}", *LOOP)
    assert storage.read_json(done / "luyen.json")["fingerprint"] != before


def test_a_template_that_does_not_fit_names_the_tokens_that_are_missing(base: Path, data: Path, tmp_path: Path) -> None:
    chatml = tmp_path / "chatml.jinja"
    chatml.write_text(TEMPLATES["chatml"].jinja)
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|over|>{% endfor %}")
    endless = tmp_path / "endless.jinja"
    endless.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    for template, missing in (("chatml", "<|im_start|>, <|im_end|>"), (chatml, "<|im_start|>, <|im_end|>"), (own, "<|over|>"),
                              (endless, "one after every answer")):  # fmt: skip
        with pytest.raises(ModelError) as told:
            verb("sft", tmp_path / "run", f"model={base}", f"data={data}", f"template={template}", *LOOP)
        line = str(told.value)
        assert f"expected {missing}." in line and "Templates whose tokens it has: llama2, zephyr, mistral." in line
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}")
    with pytest.raises(ModelError, match="template"):
        verb("sft", tmp_path / "run", f"model={base}", f"data={data}", f"template={broken}", *LOOP)


def test_a_wrong_name_or_path_is_told_before_any_work(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'zephyr'"):
        verb("sft", tmp_path / "run", f"model={base}", f"data={data}", "template=zepyhr")
    with pytest.raises(UserError, match="sft: no template file 'gone.jinja'"):
        verb("sft", tmp_path / "run", f"model={base}", f"data={data}", "template=gone.jinja")
    assert not (tmp_path / "run").exists()
