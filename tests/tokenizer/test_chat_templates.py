"""Chat templates: published strings, masks, refusals, and the same ids as transformers gives for the Jinja text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from luyen.core.errors import ConfigError, DataError, ModelError
from luyen.core.records import Message
from luyen.tokenizer.chat import Rendered, render, render_batch
from luyen.tokenizer.folder import Facts
from luyen.tokenizer.load import Tokenizer
from luyen.tokenizer.templates import QWEN_DEFAULT_SYSTEM, TEMPLATES, Names, template_named

CONTROL = {
    "luyen": ["<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"],
    "llama2": ["<s>", "</s>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "chatml": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "qwen2.5": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "zephyr": ["<s>", "</s>"],
    "gemma": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
    "mistral": ["<s>", "</s>"],
}
OFFICES = {
    "luyen": ("<|bos|>", "<|eos|>"),
    "llama2": ("<s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "chatml": (None, "<|im_end|>"),
    "qwen2.5": (None, "<|im_end|>"),
    "zephyr": ("<s>", "</s>"),
    "gemma": ("<bos>", "<eos>"),
    "mistral": ("<s>", "</s>"),
}
NO_SYSTEM = ("gemma", "mistral")
Load = Callable[[str], Tokenizer]


@pytest.fixture
def load(make_folder: Callable[..., Path]) -> Load:
    """A toy tokenizer with the control tokens and the chat template of a known family."""

    def loaded(name: str) -> Tokenizer:
        bos, eos = OFFICES[name]
        return Tokenizer.load(make_folder(CONTROL[name], TEMPLATES[name].jinja, bos_token=bos, eos_token=eos))

    return loaded


def conversation(*turns: str) -> list[Message]:
    """`"user: hello"` as a message."""
    return [Message(role, content) for role, _, content in (turn.partition(": ") for turn in turns)]  # type: ignore[arg-type]


FULL = conversation("system: S", "user: U1", "assistant: A1", "user: U2")
PUBLISHED = {
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST] A1 </s><s>[INST] U2 [/INST]",
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n"
    ),
    "zephyr": "<|system|>\nS</s>\n<|user|>\nU1</s>\n<|assistant|>\nA1</s>\n<|user|>\nU2</s>\n<|assistant|>\n",
    "gemma": (
        "<bos><start_of_turn>user\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
        "<start_of_turn>user\nU2<end_of_turn>\n<start_of_turn>model\n"
    ),
    "mistral": "<s>[INST] U1 [/INST] A1</s>[INST] U2 [/INST]",
    "luyen": "<|bos|><|system|>S<|end|><|user|>U1<|end|><|assistant|>A1<|end|><|user|>U2<|end|><|assistant|>",
}


def messages_for(name: str, messages: Sequence[Message]) -> list[Message]:
    return [message for message in messages if message.role != "system" or name not in NO_SYSTEM]


def trained_text(tokenizer: Tokenizer, rendered: Rendered) -> list[str]:
    """The stretches of text that are trained on."""
    stretches: list[list[int]] = []
    before = False
    for index, trained in zip(rendered.ids, rendered.trained, strict=True):
        if trained:
            if not before:
                stretches.append([])
            stretches[-1].append(index)
        before = trained
    return [tokenizer.decode(stretch, skip_control=False) for stretch in stretches]


@pytest.mark.parametrize("name", PUBLISHED)
def test_prompts_are_the_published_strings(name: str, load: Load) -> None:
    tokenizer = load(name)
    rendered = render(tokenizer, messages_for(name, FULL), add_generation_prompt=True)
    assert tokenizer.decode(rendered.ids, skip_control=False) == PUBLISHED[name]
    assert tokenizer.template.text(messages_for(name, FULL), tokenizer.names, add_generation_prompt=True) == PUBLISHED[name]
    assert tokenizer.template.name == name


def test_qwen25_adds_its_own_system_message_and_qwen3_does_not(load: Load) -> None:
    question = conversation("user: U")
    names = Names(eos="<|im_end|>")
    added = f"<|im_start|>system\n{QWEN_DEFAULT_SYSTEM}<|im_end|>\n"
    assert TEMPLATES["chatml"].text(question, names) == "<|im_start|>user\nU<|im_end|>\n"
    assert TEMPLATES["qwen2.5"].text(question, names) == f"{added}<|im_start|>user\nU<|im_end|>\n"
    assert TEMPLATES["qwen2.5"].text(FULL, names) == TEMPLATES["chatml"].text(FULL, names)


ANSWERS = conversation("user: first question", "assistant: first answer", "user: second", "assistant: and more")
ENDS = {
    "luyen": "{}<|end|>",
    "llama2": " {} </s>",
    "llama3": "{}<|eot_id|>",
    "chatml": "{}<|im_end|>",
    "qwen2.5": "{}<|im_end|>",
    "zephyr": "{}</s>",
    "gemma": "{}<end_of_turn>",
    "mistral": " {}</s>",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_trained_is_the_answer_and_its_end(name: str, load: Load) -> None:
    tokenizer = load(name)
    rendered = render(tokenizer, ANSWERS)
    assert len(rendered.ids) == len(rendered.trained) == len(rendered.message_index)
    assert trained_text(tokenizer, rendered) == [ENDS[name].format("first answer"), ENDS[name].format("and more")]
    owners = {owner for owner, trained in zip(rendered.message_index, rendered.trained, strict=True) if trained}
    assert owners == {1, 3}
    assert rendered.ids[max(place for place, trained in enumerate(rendered.trained) if trained)] in tokenizer.stop_ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_beginning_of_the_finished_conversation(name: str, load: Load) -> None:
    tokenizer = load(name)
    for count in (1, 3):
        prompt = render(tokenizer, ANSWERS[:count], add_generation_prompt=True)
        finished = render(tokenizer, ANSWERS[: count + 1])
        assert finished.ids[: len(prompt.ids)] == prompt.ids
        assert not any(prompt.trained[len(render(tokenizer, ANSWERS[: count - 1]).ids) if count > 1 else 0 :])
        assert finished.trained[len(prompt.ids)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers(name: str, load: Load, tmp_path: Path) -> None:
    tokenizer = load(name)
    tokenizer.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    contents = ["Hello, how are you?", "Xin chào!\n\nTôi khoẻ.", "Привет 😉 12345", "def f():\n    return 1", "x"]
    cases: list[tuple[list[Message], bool]] = []
    for count in (1, 3):
        turns = [Message("assistant" if place % 2 else "user", contents[place % 5]) for place in range(count)]
        cases += [(turns, True), ([*turns, Message("assistant", contents[count])], False)]
        if name not in NO_SYSTEM:
            cases += [([Message("system", "Be brief."), *turns], True)]
    for messages, prompt in cases:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        expected = theirs.apply_chat_template(plain, add_generation_prompt=prompt, return_dict=False)
        assert render(tokenizer, messages, add_generation_prompt=prompt).ids == expected
        again = Tokenizer.load(tmp_path / "saved")
        assert render(again, messages, add_generation_prompt=prompt).ids == expected


@pytest.mark.parametrize("name", ["llama2", "llama3", "gemma"])
def test_contents_are_stripped_where_the_model_strips_them(name: str, load: Load) -> None:
    tokenizer = load(name)
    loose = conversation("user:   question \n", "assistant: \n answer  ")
    tight = conversation("user: question", "assistant: answer")
    assert render(tokenizer, loose) == render(tokenizer, tight)


def test_our_own_template_keeps_contents_as_they_are(own: Tokenizer) -> None:
    rendered = render(own, [Message("user", "  a\n"), Message("tool", "1 row"), Message("assistant", " b ")])
    assert own.decode(rendered.ids, skip_control=False) == "<|bos|><|user|>  a\n<|end|><|tool|>1 row<|end|><|assistant|> b <|end|>"


def test_our_own_template_encodes_each_message_alone(own: Tokenizer) -> None:
    control = own.control
    question, answer = "Mô hình là gì?", "  Là một hàm.\n"
    rendered = render(own, [Message("user", question), Message("assistant", answer)])
    asked, answered = own.encode(question), own.encode(answer)
    assert rendered.ids == [
        control["<|bos|>"], control["<|user|>"], *asked, control["<|end|>"],
        control["<|assistant|>"], *answered, control["<|end|>"],
    ]  # fmt: skip
    assert rendered.trained == [False] * (4 + len(asked)) + [True] * (len(answered) + 1)
    assert rendered.message_index == [-1] + [0] * (2 + len(asked)) + [1] * (2 + len(answered))


def test_a_word_joined_to_the_space_before_it_is_trained_whole(load: Load) -> None:
    tokenizer = load("llama2")
    rendered = render(tokenizer, conversation("user: read", "assistant: file"))
    tokens = [tokenizer.token(index) for index in rendered.ids]
    place = tokens.index("Ġfile")
    assert rendered.trained[place]
    assert not any(rendered.trained[:place])


REFUSED: dict[str, list[list[Message]]] = {
    "gemma": [conversation("system: S", "user: U"), conversation("user: U", "user: V"), conversation("assistant: A")],
    "mistral": [conversation("system: S", "user: U"), conversation("user: a [INST] b"), conversation("user: U", "user: V")],
    "llama2": [
        *(conversation(f"user: a{tag}b") for tag in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")),
        conversation("system: [INST]", "user: U"),
        conversation("user: U", "assistant: <</SYS>>"),
        conversation("system: S"),
        conversation("assistant: A"),
        conversation("tool: T"),
    ],
    "zephyr": [conversation("user: a<|assistant|>b"), conversation("tool: T")],
    "chatml": [conversation("tool: T")],
    "llama3": [conversation("tool: T")],
}


@pytest.mark.parametrize(("name", "messages"), [(name, messages) for name, cases in REFUSED.items() for messages in cases])
def test_conversations_that_a_template_refuses(name: str, messages: list[Message], load: Load, tmp_path: Path) -> None:
    tokenizer = load(name)
    with pytest.raises(DataError) as caught:
        render(tokenizer, messages)
    assert "\n" not in str(caught.value)
    tokenizer.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    if messages[0].role != "system" or len(messages) > 1:
        with pytest.raises(Exception, match="role|Role|tag|alternate"):
            theirs.apply_chat_template([{"role": message.role, "content": message.content} for message in messages])


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_empty_conversation_is_refused(name: str, load: Load) -> None:
    with pytest.raises(DataError, match="no message"):
        render(load(name), [])


@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_no_prompt_after_an_answer(name: str, load: Load) -> None:
    with pytest.raises(DataError, match="continues only after a user's message"):
        render(load(name), ANSWERS, add_generation_prompt=True)


def test_batch_renders_like_one_by_one(load: Load) -> None:
    tokenizer = load("llama2")
    conversations = [ANSWERS[:2], ANSWERS, [Message("user", ""), Message("assistant", "")]]
    assert render_batch(tokenizer, conversations) == [render(tokenizer, messages) for messages in conversations]
    assert render_batch(tokenizer, []) == []


def test_llama2_empty_question_after_a_system_text(load: Load, tmp_path: Path) -> None:
    tokenizer = load("llama2")
    messages = [Message("system", "S"), Message("user", " ")]
    tokenizer.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    plain = [{"role": message.role, "content": message.content} for message in messages]
    assert render(tokenizer, messages).ids == theirs.apply_chat_template(plain, return_dict=False)


def test_a_base_model_gets_a_template_it_has_tokens_for(own: Tokenizer, description: dict[str, Any]) -> None:
    base = Tokenizer(description, Facts(names=own.names))
    assert not base.has_template
    with pytest.raises(ModelError, match="no chat template, .* Set template=luyen or template=llama2"):
        render(base, ANSWERS)
    with pytest.raises(ModelError, match=r"needs control tokens .* expected <\|im_start\|>, <\|im_end\|>"):
        base.with_template("chatml")
    assert render(base.with_template("luyen"), ANSWERS) == render(own, ANSWERS)
    assert base.with_template("luyen").stop_ids == own.stop_ids
    assert base.stop_ids == (own.eos_id,)
    with pytest.raises(ConfigError, match="Did you mean 'zephyr'"):
        template_named("zephir")
