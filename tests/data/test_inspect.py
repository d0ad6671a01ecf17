"""What a person sees before training: trained, context and cut tokens, and rows that would teach nothing."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from luyen.core.errors import DataError
from luyen.core.records import Completion, Conversation, Feedback, Message, Plain, Preference, Record, Tagged
from luyen.data.formats import Dataset, ReadAccount
from luyen.data.inspect import inspect, record_text, token_texts, visible
from luyen.tokenizer.load import Tokenizer


def dataset(*records: Record) -> Dataset:
    return Dataset(list(records), "toy", ReadAccount(), [f"toy.jsonl:{index + 1}" for index in range(len(records))])


def conversation(*turns: str) -> Conversation:
    return Conversation(tuple(Message("assistant" if index % 2 else "user", turn) for index, turn in enumerate(turns)))


def plain(text: object) -> str:
    out = io.StringIO()
    Console(file=out, width=10_000, no_color=True, highlight=False).print(text)
    return out.getvalue()


def test_marks_tell_the_states_apart_without_colour(tokenizer: Tokenizer) -> None:
    shown = inspect(dataset(conversation("What?", "Two.", "And?", "Three.")), tokenizer, 200)
    text = plain(shown.rows[0].text())
    assert "What?<|end|>" in text and "{+Two.<|end|>+}" in text and "{+Three.<|end|>+}" in text and "[-" not in text
    assert text.startswith("toy.jsonl:1: ") and shown.ok and shown.account.trained == shown.account.answer > 4


def test_states_agree_with_the_account(tokenizer: Tokenizer) -> None:
    shown = inspect(dataset(conversation("What?", "функция " * 30)), tokenizer, 30, "truncate")
    tokens = shown.rows[0].tokens
    assert sum(token.state == "trained" for token in tokens) == shown.account.trained
    assert sum(token.state == "cut" for token in tokens) == shown.account.cut == shown.account.lost
    text = plain(shown.rows[0].text())
    assert text.rstrip().endswith("-]") and "(cut)" in text.splitlines()[0]
    assert shown.problems == ("toy.jsonl:1: never trains the end of turn: the row is cut before it",)


def test_a_dropped_row_is_all_cut_and_says_why(tokenizer: Tokenizer) -> None:
    shown = inspect(dataset(conversation("What?", "функция " * 30)), tokenizer, 30, "drop")
    assert {token.state for token in shown.rows[0].tokens} == {"cut"}
    assert shown.rows[0].fate == "dropped: longer than the limit" and shown.ok


def test_rows_that_train_on_nothing_are_problems(tokenizer: Tokenizer) -> None:
    rows = dataset(Conversation((Message("user", "What?"),)), conversation("функция " * 30, "Two."), conversation("What?", "Two."))
    shown = inspect(rows, tokenizer, 30, "truncate")
    assert not shown.ok and len(shown.problems) == 2
    assert shown.problems[0] == "toy.jsonl:1: trains on nothing: it has no answer"
    assert shown.problems[1].startswith("toy.jsonl:2: trains on nothing: its answer lies behind the limit")
    assert any(line.startswith("problem: toy.jsonl:1") for line in shown.summary())


def test_a_template_that_never_ends_a_turn_is_a_problem(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "stop_ids", (tokenizer.pad_id,))
    shown = inspect(dataset(conversation("What?", "Two.", "And?", "Three.")), tokenizer, 200)
    assert shown.problems == ("toy.jsonl:1: never trains the end of turn of message 2",)


def test_summary_of_lengths(tokenizer: Tokenizer) -> None:
    shown = inspect(dataset(*[conversation("What?", "Two.")] * 9, conversation("What?", "функция " * 30)), tokenizer, 30)
    lines = shown.summary()
    assert lines[0] == "rows 10: 9 used, 1 dropped, 0 cut" and lines[1] == "dropped 1: longer than the limit"
    assert f"longest {max(shown.lengths)}, limit 30" in lines[2] and len(shown.lengths) == 10
    assert "full" in lines[-1] and 0 < shown.packing <= 1


def test_plain_text_is_split_not_cut(tokenizer: Tokenizer) -> None:
    shown = inspect(dataset(Plain("Привет, мир! " * 30)), tokenizer, 16)
    assert shown.ok and shown.account.cut == 0 and shown.account.samples > 1
    assert shown.lengths == (shown.account.longest,) == (shown.account.trained,)
    assert {token.state for token in shown.rows[0].tokens[1:]} == {"trained"}


def test_token_texts_join_to_the_text(tokenizer: Tokenizer) -> None:
    text = "Xin chào 🎉 Привет ∂ мир\n"
    ids = tokenizer.encode(text)
    texts = token_texts(ids, tokenizer)
    assert "".join(texts) == text and len(texts) == len(ids)


def test_nothing_that_a_terminal_obeys_is_shown() -> None:
    assert visible("a\x1b[31m\x9b\n\tb") == "a\\x1b[31m\\x9b\n\tb"


def test_records_without_a_tokenizer() -> None:
    turn = (Message("user", "Hi"),)
    both = plain(record_text(Preference(turn, (Message("assistant", "good"),), (Message("assistant", "bad"),)), "a.jsonl:1"))
    assert both.split() == ["a.jsonl:1", "user:", "Hi", "chosen:", "assistant:", "good", "rejected:", "assistant:", "bad"]
    assert "Anna/B-PER" in plain(record_text(Tagged(("Anna",), ("B-PER",))))
    assert "prompt: a" in plain(record_text(Completion("a", "b"))) and "user: Hi" in plain(record_text(Conversation(turn)))


def test_long_rows_are_shown_in_part(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shown = inspect(dataset(conversation("What?", "функция " * 300)), tokenizer, 10_000)
    assert "more tokens" in plain(shown.rows[0].text(50)) and "more tokens" not in plain(shown.rows[0].text(10_000))


def test_a_row_as_large_as_a_file_is_cut_for_the_eye_and_counted_whole(tokenizer: Tokenizer) -> None:
    long = Plain("word\x1b " * 20_000)
    told = plain(record_text(long, "huge.txt:1"))
    assert told.startswith("huge.txt:1\ntext: word\\x1b word") and len(told) < 8_000
    assert "... and 116,006 more characters" in told
    for shown in (inspect(dataset(long), tokenizer, 64), inspect(dataset(conversation("What?", long.text)), tokenizer, 10**6)):
        text = plain(shown.rows[0].text(10**6))
        whole = shown.account.rendered + 1
        assert len(text) < 5_000 and f"{whole:,} tokens" in text and shown.account.trained > 20_000
        assert len(shown.rows[0].tokens) <= 4_000
        more = int(text.rpartition("... and ")[2].partition(" more tokens")[0].replace(",", ""))
        assert 0 < whole - more < 4_000


def test_of_a_long_row_every_short_part_stays_whole() -> None:
    turns = (Message("user", "a" * 5_000), Message("assistant", "b" * 50_000), Message("user", "the end"))
    told = plain(record_text(Conversation(turns))).splitlines()
    assert told[2] == "user: the end" and len("".join(told)) < 4_100 and all("more characters" in line for line in told[:2])
    many = plain(record_text(Conversation((Message("user", "x"),) * 250)))
    assert many.endswith("user: x\n... and 150 more parts\n")
    pair = plain(record_text(Preference((Message("user", "p" * 9_000),), (Message("assistant", "good"),), (Message("assistant", "bad"),))))
    assert "assistant: good\nrejected:\nassistant: bad" in pair and "p" * 3_900 in pair


def test_of_a_preference_both_answers_are_rows_and_earlier_answers_are_context(tokenizer: Tokenizer) -> None:
    before = (Message("user", "What?"), Message("assistant", "One."), Message("user", "And?"))
    pair = Preference(before, (Message("assistant", "Two."),), (Message("assistant", "Three."),))
    shown = inspect(dataset(pair, Feedback(before, (Message("assistant", "Four."),), False)), tokenizer, 200)
    texts = [plain(row.text()) for row in shown.rows]
    assert [text.partition(":")[2].partition(":")[0] for text in texts] == ["1 chosen", "1 rejected", "2 bad"]
    for text, answer in zip(texts, ("Two.", "Three.", "Four."), strict=True):
        assert f"{{+{answer}<|end|>+}}" in text and "{+One." not in text and "One.<|end|>" in text
    assert shown.ok and shown.account.rows == 3


def test_a_side_that_teaches_nothing_is_a_problem(tokenizer: Tokenizer) -> None:
    pair = Preference((Message("user", "What?"),), (Message("assistant", "Two."),), (Message("assistant", "функция " * 30),))
    shown = inspect(dataset(pair), tokenizer, 30, "truncate")
    assert shown.problems == ("toy.jsonl:1 rejected: never trains the end of turn: the row is cut before it",)


def test_raise_names_the_row(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="row toy.jsonl:2 is too long; found .* expected at most 30"):
        inspect(dataset(conversation("What?", "Two."), conversation("What?", "функция " * 30)), tokenizer, 30, "raise")
