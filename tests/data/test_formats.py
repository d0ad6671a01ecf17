"""Every known form, in every container, becomes the right record, and the detection says which."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from luyen.core.errors import ConfigError, DamagedFile, DataError
from luyen.core.files import write_lines
from luyen.core.manifest import seal
from luyen.core.records import Completion, Conversation, Extractive, Feedback, Labelled, Message, Plain, Preference, Tagged
from luyen.data.config import ReadConfig
from luyen.data.formats import read

HUMAN, ANSWER = Message("user", "Hi"), Message("assistant", "Hello")
CHAT = Conversation((HUMAN, ANSWER))
OPENAI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
HH = "\n\nHuman: Hi\n\nAssistant: "
PAIR = Preference((HUMAN,), (ANSWER,), (Message("assistant", "No"),))

FORMS: list[tuple[dict[str, Any], object, str]] = [
    ({"text": "Xin chào"}, Plain("Xin chào"), "text: text -> text"),
    ({"id": 1, "content": "Привет", "url": "u"}, Plain("Привет"), "text: content -> text"),
    ({"text": "### Human: Hi\n### Assistant: Hello"}, CHAT, "guanaco: text -> conversation"),
    ({"text": "### Human: Hi### Assistant: Hello"}, CHAT, "guanaco"),
    ({"messages": OPENAI}, CHAT, "messages: messages -> conversation"),
    ({"conversations": SHAREGPT}, CHAT, "ShareGPT: conversations -> conversation"),
    ({"conversations": SHAREGPT, "system": "Be kind"}, Conversation((Message("system", "Be kind"), HUMAN, ANSWER)), "ShareGPT"),
    ({"instruction": "Hi", "input": "", "output": "Hello"}, CHAT, "alpaca: instruction/input/output -> conversation"),
    ({"instruction": "Add", "input": "1 2", "output": "3"},
     Conversation((Message("user", "Add\n\n1 2"), Message("assistant", "3"))), "alpaca"),
    ({"instruction": "Hi", "response": "Hello"}, CHAT, "alpaca: instruction/response -> conversation"),
    ({"instruction": "Hi", "output": "Hello", "history": [["a", "b"]]},
     Conversation((Message("user", "a"), Message("assistant", "b"), HUMAN, ANSWER)), "alpaca"),
    ({"question": "Hi", "answer": "Hello"}, CHAT, "question and answer: question/answer -> conversation"),
    ({"prompt": "Hi", "response": "Hello"}, CHAT, "question and answer: prompt/response -> conversation"),
    ({"prompt": "Hi ", "completion": "there"}, Completion("Hi ", "there"), "prompt and completion: prompt/completion -> raw text"),
    ({"prompt": OPENAI[:1], "completion": OPENAI[1:]}, CHAT, "prompt and completion"),
    ({"question": "Who?", "context": "Anna.", "answers": {"text": ["Anna"], "answer_start": [0]}},
     Extractive("Who?", "Anna.", ("Anna",)), "SQuAD: question/context/answers"),
    ({"question": "Who?", "context": "Anna.", "answers": [{"text": "Anna"}]}, Extractive("Who?", "Anna.", ("Anna",)), "SQuAD"),
    ({"question": "Who?", "context": "Anna.", "answers": []}, Extractive("Who?", "Anna.", ()), "SQuAD"),
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, PAIR, "preference: chosen/rejected with prompt -> preference"),
    ({"prompt": OPENAI[:1], "chosen": OPENAI[1:], "rejected": [{"role": "assistant", "content": "No"}]}, PAIR, "preference"),
    ({"chosen": OPENAI, "rejected": [OPENAI[0], {"role": "assistant", "content": "No"}]}, PAIR, "preference"),
    ({"prompt": "Hi", "chosen": OPENAI, "rejected": [OPENAI[0], {"role": "assistant", "content": "No"}]}, PAIR, "preference"),
    ({"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": "No"}}, PAIR, "preference"),
    ({"chosen": HH + "Hello", "rejected": HH + "No"}, PAIR, "Anthropic HH: chosen/rejected -> preference"),
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "No", "margin": 0.5},
     Preference(PAIR.prompt, PAIR.chosen, PAIR.rejected, 0.5), "preference"),
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "No", "grade": "Slightly better"},
     Preference(PAIR.prompt, PAIR.chosen, PAIR.rejected, None, "slightly_better"), "preference"),
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "No", "safety": "both safe"},
     Preference(PAIR.prompt, PAIR.chosen, PAIR.rejected, safety="both_safe"), "preference"),
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "No", "score_chosen": 8, "score_rejected": 5.5},
     Preference(PAIR.prompt, PAIR.chosen, PAIR.rejected, 2.5), "preference"),
    ({"prompt": "Hi", "completion": "Hello", "label": True}, Feedback((HUMAN,), (ANSWER,), True), "feedback: prompt/completion/label"),
    ({"messages": OPENAI, "label": False}, Feedback((HUMAN,), (ANSWER,), False), "feedback: messages/label -> feedback"),
    ({"text": "good", "label": 1}, Labelled("good", "1"), "labelled text: text/label"),
    ({"text": "good", "label": 1, "label_name": "positive"}, Labelled("good", "positive"), "labelled text: text/label_name"),
    ({"premise": "a", "hypothesis": "b", "label": "neutral"}, Labelled("a", "neutral", "b"), "labelled pair: premise/hypothesis/label"),
    ({"sentence1": "a", "sentence2": "b", "label": 0}, Labelled("a", "0", "b"), "labelled pair"),
    ({"tokens": ["Anna", "came"], "ner_tags": ["B-PER", "O"]}, Tagged(("Anna", "came"), ("B-PER", "O")), "token tags: tokens/ner_tags"),
]  # fmt: skip


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("row", "record", "sentence"), FORMS, ids=map(str, range(len(FORMS))))
def test_every_form_is_detected_and_read(tmp_path: Path, row: dict[str, Any], record: object, sentence: str) -> None:
    dataset = read(write_jsonl(tmp_path / "a.jsonl", row, row))
    assert dataset.records == [record, record] and dataset.format.startswith(sentence)
    assert dataset.origins == ["a.jsonl:1", "a.jsonl:2"]
    assert (dataset.account.rows, dataset.account.accepted, dataset.account.rejected) == (2, 2, 0)


@pytest.mark.parametrize(("row", "record", "sentence"), FORMS, ids=map(str, range(len(FORMS))))
def test_every_form_reads_the_same_from_json_and_parquet(tmp_path: Path, row: dict[str, Any], record: object, sentence: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps([row, row], indent=1), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row]), tmp_path / "a.parquet")
    for name in ("a.json", "a.parquet"):
        dataset = read(tmp_path / name)
        assert dataset.records == [record, record] and dataset.format.startswith(sentence)


def test_tables_with_quotes_line_breaks_and_semicolons(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('instruction,output\r\n"Say ""hi"",\nplease",Hello\r\nHi,Hello\r\n', encoding="utf-8")
    dataset = read(tmp_path / "a.csv")
    assert dataset.records == [Conversation((Message("user", 'Say "hi",\nplease'), ANSWER)), CHAT]
    assert dataset.origins == ["a.csv:2", "a.csv:4"]
    (tmp_path / "b.csv").write_text("Question;Answer\nHi;Hello\n", encoding="utf-8-sig")
    assert read(tmp_path / "b.csv").records == [CHAT]
    (tmp_path / "c.tsv").write_text('text\tlabel\n"half a quote\tbad\n', encoding="utf-8")
    assert read(tmp_path / "c.tsv").records == [Labelled('"half a quote', "bad")]


def test_a_table_row_of_the_wrong_width_is_rejected_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"x\ny",1\nonly\n\nz,0\n', encoding="utf-8")
    account = read(tmp_path / "a.csv").account
    assert (account.accepted, account.rejected) == (2, 2)
    assert [(problem.line, problem.reason) for problem in account.problems] == [(4, "1 fields where the header has 2"), (5, "a blank line")]


def test_messages_inside_a_table_are_json_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(f"messages\n{json.dumps(OPENAI)}\n", encoding="utf-8")
    assert read(tmp_path / "a.tsv").records == [CHAT]


def test_columns_names_what_we_do_not_know(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"dialogue": "Hi", "summary": "Hello", "prompt": "unused"})
    dataset = read(path, ReadConfig(columns={"prompt": "dialogue", "response": "summary"}))
    assert dataset.records == [CHAT]
    assert "prompt from column dialogue, response from column summary" in dataset.format
    with pytest.raises(DataError, match="no column 'summry' for 'response'. Did you mean 'summary'"):
        read(path, ReadConfig(columns={"prompt": "dialogue", "response": "summry"}))
    with pytest.raises(ConfigError, match="unknown name 'promt'. Did you mean 'prompt'"):
        read(path, ReadConfig(columns={"promt": "dialogue"}))
    (tmp_path / "b.tsv").write_text("Hi\tHello\nHi\tHello\n", encoding="utf-8")
    assert read(tmp_path / "b.tsv", ReadConfig(columns={"question": 1, "answer": 2})).records == [CHAT, CHAT]


def test_an_unknown_form_names_the_nearest(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"instruction": "Hi", "reponse": "Hello", "topic": "x"})
    expected = r"found columns instruction, reponse, topic; expected the nearest form instruction/response .*\('reponse' is close\)"
    with pytest.raises(DataError, match=expected):
        read(path)
    with pytest.raises(DataError, match="expected one of text; messages"):
        read(write_jsonl(tmp_path / "b.jsonl", {"x": 1}))


def test_unused_columns_are_told(tmp_path: Path) -> None:
    dataset = read(write_jsonl(tmp_path / "a.jsonl", {"text": "a", "label": "x", "topic": "t", "id": 3}))
    assert dataset.format.endswith("(not used: topic)") and dataset.report()[0] == f"detected {dataset.format}"


def test_roles_of_every_dialect_and_tool_calls(tmp_path: Path) -> None:
    turns = [("human", "a"), ("function_call", "f()"), ("observation", "1"), ("gpt", "b"), ("prompter", "c"), ("model", "d")]
    calls = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
             {"role": "tool", "content": [{"type": "text", "text": "1"}]}, {"role": "assistant", "content": "b"}]  # fmt: skip
    path = write_jsonl(tmp_path / "a.jsonl", {"conversations": [{"from": role, "value": text} for role, text in turns], "tools": "[f]"})
    (record,) = read(path).records
    assert isinstance(record, Conversation)
    assert [message.role for message in record.messages] == ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    (called,) = read(write_jsonl(tmp_path / "b.jsonl", {"messages": calls})).records
    assert isinstance(called, Conversation) and called.messages[1] == Message("assistant", '[{"name": "f"}]')
    assert called.messages[2] == Message("tool", "1")


def test_self_instruct_rows_hold_several_conversations(tmp_path: Path) -> None:
    row = {"instruction": "Add", "instances": [{"input": "1 1", "output": "2"}, {"input": "", "output": "3"}]}
    dataset = read(write_jsonl(tmp_path / "a.jsonl", row))
    assert (dataset.account.accepted, len(dataset.records)) == (1, 2) and dataset.origins == ["a.jsonl:1"] * 2


SQUAD = {
    "version": "1.1",
    "data": [
        {"title": "t", "paragraphs": [
            {"context": "Anna came.", "qas": [
                {"id": "1", "question": "Who?", "answers": [{"text": "Anna", "answer_start": 0}]},
                {"id": "2", "question": "When?", "answers": [{"text": "", "answer_start": 0}]}, "broken"]}]},
        {"title": "u", "paragraphs": [{"context": "Ivan ăn.", "qas": [{"question": "Who?", "answers": [{"text": "Ivan"}]}]}]},
    ],
    "end": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize("indent", [None, 2])
def test_nested_squad_counts_questions_and_keeps_bad_ones_exactly(tmp_path: Path, indent: int | None) -> None:
    text = json.dumps(SQUAD, indent=indent, ensure_ascii=False)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    dataset = read(tmp_path / "a.json", rejected=tmp_path / "rejected.jsonl")
    assert dataset.records == [Extractive("Who?", "Anna came.", ("Anna",)), Extractive("Who?", "Ivan ăn.", ("Ivan",))]
    assert dataset.account.rejected == 2
    kept = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["reason"] for row in kept] == ["an empty answer", "paragraphs[0].qas[2] is a text, not an object"]
    assert all(row["text"] in text for row in kept) and kept[1]["text"] == '"broken"'
    assert json.loads(kept[0]["text"])["id"] == "2"


CONLL = "-DOCSTART- O\n\nAnna B-PER\ncame O\n\nbad\n\nMoscow B-LOC\n"
CONLL_U = (
    "# text = vámonos al\n1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_\n1\tvamos\tir\tVERB\t_\t_\t0\t_\t_\t_\n"
    "2\tnos\tnosotros\tPRON\t_\t_\t1\t_\t_\t_\n2.1\tx\tx\tX\t_\t_\t_\t_\t_\t_\n"
)


def test_conll_columns_and_universal_dependencies(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(CONLL, encoding="utf-8")
    dataset = read(tmp_path / "a.conll")
    assert dataset.records == [Tagged(("Anna", "came"), ("B-PER", "O")), Tagged(("Moscow",), ("B-LOC",))]
    assert [str(problem) for problem in dataset.account.problems] == ["a.conll:6: 1 columns where the sentence's first word has 2"]
    (tmp_path / "b.conllu").write_text(CONLL_U, encoding="utf-8")
    assert read(tmp_path / "b.conllu").records == [Tagged(("vamos", "nos"), ("VERB", "PRON"))]
    (tmp_path / "c.txt").write_text("Anna B-PER\ncame O\nhere O\n\nMoscow B-LOC\n", encoding="utf-8")
    assert len(read(tmp_path / "c.txt").records) == 2


def test_text_files_by_file_paragraph_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("một\nhai\n\nba\n", encoding="utf-8")
    assert read(tmp_path / "a.txt").records == [Plain("một\nhai\n\nba\n")]
    assert read(tmp_path / "a.txt", ReadConfig(text_unit="paragraph")).records == [Plain("một\nhai"), Plain("ba")]
    assert read(tmp_path / "a.txt", ReadConfig(text_unit="line")).records == [Plain("một"), Plain("hai"), Plain("ba")]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.conll", "a.parquet"])
def test_everything_may_be_compressed(tmp_path: Path, name: str, suffix: str) -> None:
    contents = {"a.jsonl": b'{"text": "x"}', "a.json": b'[{"text": "x"}]', "a.csv": b"text\nx", "a.txt": b"x", "a.conll": b"x O\ny O"}
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "x"}]), tmp_path / name)
        data = (tmp_path / name).read_bytes()
        compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(suffix)
        packed = compress(data) if compress else bytes(pyarrow.compress(data, codec="zstd", asbytes=True))
        (tmp_path / (name + suffix)).write_bytes(packed)
    else:
        write_lines(tmp_path / (name + suffix), contents[name].split(b"\n"))
    assert len(read(tmp_path / (name + suffix)).records) == 1


def test_json_lines_named_json_and_one_object(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.json", {"text": "x"}, {"text": "y"})
    assert read(tmp_path / "a.json").records == [Plain("x"), Plain("y")]
    (tmp_path / "b.json").write_text(json.dumps({"messages": OPENAI}, indent=2))
    assert read(tmp_path / "b.json").records == [CHAT]
    (tmp_path / "c.json").write_text(json.dumps({"rows": [{"text": "x"}]}))
    assert read(tmp_path / "c.json").records == [Plain("x")]


def test_a_list_longer_than_one_read_is_streamed(tmp_path: Path) -> None:
    rows = [{"text": f"{index} " + "ă" * (index * 3001 % 90_000)} for index in range(60)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    dataset = read(tmp_path / "a.json")
    assert [record.text for record in dataset.records if isinstance(record, Plain)] == [row["text"] for row in rows]
    assert dataset.origins[7] == "a.json:23"  # "[", then three lines for each object


def test_a_folder_is_read_in_order_and_says_what_it_skips(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write_jsonl(tmp_path / "train" / "b.jsonl", {"text": "x"})
    write_jsonl(tmp_path / "train" / "a.jsonl", {"messages": OPENAI})
    write_jsonl(tmp_path / "test-00.jsonl", {"text": "y"})
    write_jsonl(tmp_path / "rejected.jsonl", {"text": "z"})
    (tmp_path / "picture.png").write_bytes(b"1")
    dataset = read(tmp_path)
    assert dataset.records == [Plain("y"), CHAT, Plain("x")]
    assert dataset.origins == ["test-00.jsonl:1", "train/a.jsonl:1", "train/b.jsonl:1"]
    assert dataset.format == "text: text -> text; messages: messages -> conversation"
    assert set(dataset.account.skipped) == {"picture.png", "rejected.jsonl"}
    assert read(tmp_path, ReadConfig(split="test")).records == [Plain("y")]
    with pytest.raises(DataError, match="no files of the split 'dev'"):
        read(tmp_path, ReadConfig(split="dev"))


def test_a_broken_archive_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl.gz", [json.dumps({"text": str(number) * 50}).encode() for number in range(3000)])
    write_jsonl(tmp_path / "b.jsonl", {"text": "x"})
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 16
    for broken in (whole[: len(whole) // 2], whole[:-1], bytes(flipped), b"no archive"):
        (tmp_path / "a.jsonl.gz").write_bytes(broken)
        with pytest.raises(DamagedFile, match="a.jsonl.gz"):
            read(tmp_path / "a.jsonl.gz")
        dataset = read(tmp_path)
        assert not dataset.account.complete and list(dataset.account.damaged) == ["a.jsonl.gz"]
        assert Plain("x") in dataset.records and any(line.startswith("damaged: a.jsonl.gz") for line in dataset.report())
        with pytest.raises(DamagedFile):
            read(tmp_path, ReadConfig(strict=True))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DamagedFile, match="c.parquet"):
        read(tmp_path / "c.parquet")


def test_nothing_to_read_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        read(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty: it holds no rows"):
        read(tmp_path / "empty.jsonl")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no data files; found an empty folder"):
        read(tmp_path / "none")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(DataError, match="found the ending '.docx'"):
        read(tmp_path / "a.docx")
    with pytest.raises(DataError, match="none of its rows .1. can be used; the first: bad.jsonl:1: not JSON"):
        (tmp_path / "bad.jsonl").write_text("{")
        read(tmp_path / "bad.jsonl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="not in the cache, and the hub is switched off"):
        read("nobody/no-such-dataset")


def test_a_path_with_letters_and_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "dữ liệu мои данные"
    folder.mkdir()
    assert read(write_jsonl(folder / "tập tin.jsonl", {"text": "x"})).origins == ["tập tin.jsonl:1"]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.zst", "train.csv", "train.txt", "train.parquet"])
def test_a_file_of_a_sealed_folder_is_checked(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), path)
    elif name.endswith("csv"):
        path.write_text("text\none\ntwo\n")
    else:
        write_lines(path, [b'{"text": "one"}', b'{"text": "two"}'])
    seal(tmp_path, "questions")
    assert read(path).records
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "owt"]}), path)
    elif name.endswith("zst"):
        write_lines(path, [b'{"text": "one"}', b'{"text": "owt"}'])
    else:
        path.write_bytes(path.read_bytes().replace(b"two", b"owt"))
    with pytest.raises(DamagedFile, match=name):
        read(path)
