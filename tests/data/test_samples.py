"""Targets by construction, pieces of documents, and an account in which every token is found again."""

import subprocess
import sys

import numpy as np
import pytest

from luyen.core.errors import DataError
from luyen.core.records import Completion, Conversation, Document, Extractive, Labelled, Message, Plain, Record
from luyen.data.samples import ANSWER_CUT_AWAY, NOT_TRAINED, NOTHING_TRAINED, TOO_LONG, Account, Sample, chat_samples, text_samples
from luyen.tokenizer.chat import render
from luyen.tokenizer.load import Tokenizer


def conversation(*turns: str) -> Conversation:
    return Conversation(tuple(Message("assistant" if index % 2 else "user", turn) for index, turn in enumerate(turns)))


def trained_text(sample: Sample, tokenizer: Tokenizer) -> str:
    return tokenizer.decode([int(token) for token in sample.targets if token != NOT_TRAINED], skip_control=False)


def adds_up(account: Account, samples: list[Sample]) -> None:
    assert account.rows == account.samples + account.num_dropped
    assert account.rendered == account.tokens + account.cut
    assert account.answer == account.trained + account.lost
    assert account.tokens == sum(len(sample.tokens) for sample in samples)
    assert account.trained == sum(sample.num_targets for sample in samples)


def test_only_answers_and_their_ends_are_trained(tokenizer: Tokenizer) -> None:
    row = conversation("What is 2?", "Two.", "And Привет?", "Xin chào <|end|>")
    (sample,), account = chat_samples([row], tokenizer, 200, name="toy")
    assert trained_text(sample, tokenizer) == "Two.<|end|>Xin chào <|end|><|end|>"
    assert sample.id == "toy:0" and sample.tokens.dtype == sample.targets.dtype == np.int32
    ids = render(tokenizer, row.messages).ids
    assert sample.tokens.tolist() == ids[:-1]
    assert all(target in (NOT_TRAINED, following) for target, following in zip(sample.targets.tolist(), ids[1:], strict=True))
    end = tokenizer.control["<|end|>"]
    assert sample.targets.tolist().count(end) == 2  # the one that the user wrote is text, not a control token
    adds_up(account, [sample])
    assert account == Account(1, 1, {}, 0, len(ids) - 1, len(ids) - 1, 0, sample.num_targets, sample.num_targets, 0, len(ids) - 1)


def test_a_document_is_split_into_pieces_that_train_every_token_once(tokenizer: Tokenizer) -> None:
    document = Document("page", "Привет, мир! " * 20)
    samples, account = text_samples([document, Plain("What?")], tokenizer, 16)
    ids = [tokenizer.bos_id, *tokenizer.encode(document.text), tokenizer.eos_id]
    pieces = [sample for sample in samples if sample.id.startswith("page#")]
    assert [sample.id for sample in pieces] == [f"page#{index}" for index in range(len(pieces))]
    assert {len(sample.tokens) for sample in pieces[:-1]} == {16} and 1 <= len(pieces[-1].tokens) <= 16
    assert np.concatenate([sample.tokens for sample in pieces]).tolist() == ids[:-1]
    assert np.concatenate([sample.targets for sample in pieces]).tolist() == ids[1:]
    assert samples[-1].id == "text:1#0"
    assert (account.rows, account.samples, account.longest) == (2, len(samples), len(ids) - 1)
    assert account.tokens == account.trained == account.rendered == sum(len(sample.tokens) for sample in samples)


def test_an_empty_document_is_counted(tokenizer: Tokenizer) -> None:
    samples, account = text_samples([Plain(""), Plain("What")], tokenizer, 8)
    assert len(samples) == 1 and account.dropped == {"empty": 1} and account.rows == 2
    adds_up(account, samples)


def test_truncation_policies_count_every_lost_answer_token(tokenizer: Tokenizer) -> None:
    rows: list[Record] = [conversation("What?", "Two."), conversation("What?", "функция " * 30), conversation("функция " * 30, "Two.")]
    limit = 40
    kept, dropped = chat_samples(rows, tokenizer, limit, "drop")
    cut, truncated = chat_samples(rows, tokenizer, limit, "truncate")
    whole, everything = chat_samples(rows, tokenizer, 10_000, "raise")
    assert [sample.id for sample in kept] == ["row:0"] and dropped.dropped == {TOO_LONG: 2}
    assert [sample.id for sample in cut] == ["row:0", "row:1"] and truncated.dropped == {ANSWER_CUT_AWAY: 1} and truncated.truncated == 1
    assert cut[1].tokens.tolist() == whole[1].tokens[:limit].tolist() and len(cut[1].tokens) == limit
    for samples, account in ((kept, dropped), (cut, truncated), (whole, everything)):
        adds_up(account, samples)
        assert (account.answer, account.rendered, account.longest) == (everything.answer, everything.rendered, everything.longest)
    assert dropped.lost == everything.answer - kept[0].num_targets
    with pytest.raises(DataError, match=r"row row:1 is too long; found \d+ tokens; expected at most 40"):
        chat_samples(rows, tokenizer, limit, "raise")


def test_a_row_without_an_answer_is_dropped_and_counted(tokenizer: Tokenizer) -> None:
    samples, account = chat_samples([Conversation((Message("user", "What?"),)), Extractive("Who?", "A text.", ())], tokenizer, 100)
    assert samples == [] and account.dropped == {NOTHING_TRAINED: 2}
    adds_up(account, samples)


def test_raw_completions_plain_text_and_squad_rows(tokenizer: Tokenizer) -> None:
    rows: list[Record] = [Completion("What is ", "two"), Plain("Xin chào"), Extractive("Who?", "Anna came.", ("Anna", "she"))]
    samples, account = chat_samples(rows, tokenizer, 100)
    assert [trained_text(sample, tokenizer) for sample in samples] == ["two<|eos|>", "Xin chào<|eos|>", "Anna<|end|>"]
    assert samples[0].tokens.tolist() == [tokenizer.bos_id, *tokenizer.encode("What is "), *tokenizer.encode("two")]
    assert "Anna came.\n\nWho?" in tokenizer.decode(samples[2].tokens.tolist())
    adds_up(account, samples)
    with pytest.raises(DataError, match="cannot fine-tune on these rows; found labelled"):
        chat_samples([Labelled("good", "1")], tokenizer, 100)


def test_accounts_of_sources_add(tokenizer: Tokenizer) -> None:
    first = chat_samples([conversation("What?", "Two.")], tokenizer, 100)[1]
    second = chat_samples([conversation("What?", "функция " * 30)], tokenizer, 20)[1]
    both = first + second
    assert both.rows == 2 and both.dropped == second.dropped and both.longest == second.longest
    assert both.as_dict()["rendered"] == first.rendered + second.rendered


def test_reading_and_packing_need_no_torch() -> None:
    modules = "formats, samples, packing, mixture, inspect"
    code = f"import sys\nfrom luyen.data import {modules}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
