"""Preferences as groups: what is trained, what is cut, where every row and token went, and a stream that goes on anywhere."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from luyen.core.errors import DataError
from luyen.core.records import Feedback, Message, Plain, Preference
from luyen.data import pairs
from luyen.data.branches import BranchedBatch
from luyen.data.formats import read
from luyen.data.pairs import Groups, GroupStream, PairRules, feedback_groups, mismatched, preference_groups
from luyen.data.samples import ANSWER_CUT_AWAY, NOT_TRAINED, TOO_LONG, Sample
from luyen.tokenizer.load import Tokenizer


def turns(*texts: str, first: str = "user") -> tuple[Message, ...]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return tuple(Message(roles[place % 2], text) for place, text in enumerate(texts))  # type: ignore[arg-type]


def pair(chosen: str = "It turns an object into a string.", rejected: str = "No.", prompt: str = "What does dumps do?") -> Preference:
    return Preference(turns(prompt), turns(chosen, first="assistant"), turns(rejected, first="assistant"))


BRANCH = Preference(
    turns("Hi", "Hello", "What is 2?"),
    turns("Two.", "Sure?", "Yes, two.", first="assistant"),
    turns("Three.", "Sure?", "No.", first="assistant"),
)


def trained(sample: Sample, tokenizer: Tokenizer) -> str:
    return tokenizer.decode([int(token) for token in sample.targets if token != NOT_TRAINED], skip_control=False)


def adds_up(made: Groups) -> None:
    account, samples = made.account, [sample for group in made.groups for sample in group.sequences]
    assert account.rows == account.samples + account.num_dropped and account.samples == len(made.groups) == len(made.records)
    assert account.rendered == account.tokens + account.cut and account.answer == account.trained + account.lost
    assert account.tokens == sum(len(sample.tokens) for sample in samples)
    assert account.trained == sum(sample.num_targets for sample in samples)


def test_answers_alone_are_trained_and_the_chosen_stands_first(tokenizer: Tokenizer) -> None:
    made = preference_groups([pair()], tokenizer, PairRules(200))
    (group,) = made.groups
    assert [trained(sample, tokenizer) for sample in group.sequences] == ["It turns an object into a string.<|end|>", "No.<|end|>"]
    assert group.id == "pair:0" and group.shared > 5
    adds_up(made)


@pytest.mark.parametrize(("which", "told"), [("last", "Yes, two.<|end|>"), ("all", "Two.<|end|>Yes, two.<|end|>")])
def test_one_turn_or_all_of_the_branch_and_none_of_the_prompt(which: pairs.Turns, told: str, tokenizer: Tokenizer) -> None:
    (group,) = preference_groups([BRANCH], tokenizer, PairRules(300, turns=which)).groups
    assert trained(group.sequences[0], tokenizer) == told


def test_branches_of_several_turns_are_read(tmp_path: Path) -> None:
    row = {
        name: [{"role": turn.role, "content": turn.content} for turn in getattr(BRANCH, name)] for name in ("prompt", "chosen", "rejected")
    }
    (tmp_path / "branches.jsonl").write_text(json.dumps(row) + "\n")
    assert read(tmp_path / "branches.jsonl").records == [BRANCH]


FAULTS = [
    (pair(rejected=" "), pairs.EMPTY_ANSWER),
    (pair(chosen="No."), pairs.SAME),
    (Preference(turns("a"), turns("b", first="assistant"), turns("c", first="assistant"), margin=-0.5), f"{pairs.NEGATIVE} (-0.5)"),
    (Preference(turns("a"), turns("b", "c", first="assistant"), turns("c", first="assistant")), pairs.NOT_AN_ANSWER),
]


@pytest.mark.parametrize(("row", "reason"), FAULTS)
def test_a_fault_is_named_by_file_and_line(row: Preference, reason: str, tokenizer: Tokenizer) -> None:
    rows, origins = [pair(), row], ["a.jsonl:1", "a.jsonl:2"]
    made = preference_groups(rows, tokenizer, PairRules(200), origins)
    assert made.faults == [f"a.jsonl:2: {reason}"] and made.account.dropped == {reason.partition(" (")[0]: 1}
    assert made.account.lost > 0 or reason == pairs.NOT_AN_ANSWER
    adds_up(made)
    with pytest.raises(DataError, match=r"a\.jsonl:2: "):
        preference_groups(rows, tokenizer, PairRules(200, strict=True), origins)


def test_a_template_that_writes_two_prompts_is_seen(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pairs.render_batch

    def other(own: Tokenizer, conversations: list[list[Message]]) -> list[object]:
        changed = [[Message("user", f"{len(each[-1].content)} {each[0].content}"), *each[1:]] for each in conversations]
        return list(real(own, changed))

    monkeypatch.setattr(pairs, "render_batch", other)
    made = preference_groups([pair()], tokenizer, PairRules(200))
    assert made.account.dropped == {pairs.OTHER_PROMPT: 1}


def test_what_is_too_long_is_dropped_cut_or_refused(tokenizer: Tokenizer) -> None:
    row = pair(chosen="One two three. " * 4, rejected="One two three. " * 3, prompt="Please say it. " * 4)
    (whole,) = preference_groups([row], tokenizer, PairRules(500)).groups
    long, short = (len(sample.tokens) for sample in whole.sequences)
    made = preference_groups([row], tokenizer, PairRules(long - 1))
    assert made.account.dropped == {TOO_LONG: 1} and not made.faults
    adds_up(made)
    with pytest.raises(DataError, match=r"b:7 is too long.*found"):
        preference_groups([row], tokenizer, PairRules(long - 1, "raise"), ["b:7"])
    start = preference_groups([row], tokenizer, PairRules(long - 2, "keep_start"))
    assert [len(sample.tokens) for sample in start.groups[0].sequences] == [long - 2, min(short, long - 2)]
    assert start.account.truncated == 1 and start.account.lost == 2
    adds_up(start)
    end = preference_groups([row], tokenizer, PairRules(long - 3, "keep_end"))
    assert [len(sample.tokens) for sample in end.groups[0].sequences] == [long - 3, short - 3]
    assert end.account.lost == 0 and end.groups[0].shared == whole.shared - 3
    adds_up(end)
    answers = preference_groups([row], tokenizer, PairRules(8, "keep_end"))
    assert answers.account.dropped == {TOO_LONG: 1}
    nothing = preference_groups([row], tokenizer, PairRules(8, "keep_start"))
    assert nothing.account.dropped == {ANSWER_CUT_AWAY: 1}


def test_two_answers_that_differ_behind_the_cut_alone_are_the_same(tokenizer: Tokenizer) -> None:
    row = pair(chosen="One two three four.", rejected="One two three five.")
    (whole,) = preference_groups([row], tokenizer, PairRules(500)).groups
    length = int(np.flatnonzero(whole.sequences[0].targets != whole.sequences[1].targets)[0])
    made = preference_groups([row], tokenizer, PairRules(length, "keep_start"))
    assert made.account.dropped == {pairs.SAME_AFTER_CUT: 1} and "after the cut" in made.faults[0]


def test_other_rows_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no preferences"):
        preference_groups([Plain("x")], tokenizer, PairRules(9))
    with pytest.raises(DataError, match="no judged answers"):
        feedback_groups([Plain("x")], tokenizer, PairRules(9))


def test_a_preference_is_a_good_answer_and_a_bad_one(tokenizer: Tokenizer) -> None:
    judged = Feedback(turns("Who?"), turns("Me.", first="assistant"), False)
    made = feedback_groups([pair(), judged], tokenizer, PairRules(200), ["f:1", "f:2"])
    assert [record.label for record in made.records if isinstance(record, Feedback)] == [True, False, False]
    assert [group.id for group in made.groups] == ["row:0", "row:1", "row:2"]
    assert all(len(group.sequences) == 1 for group in made.groups)
    adds_up(made)


def test_every_answer_stands_once_at_another_prompt(tokenizer: Tokenizer) -> None:
    rows = [Feedback(turns(f"Q{n}?"), turns(f"A{n}", first="assistant"), True) for n in range(6)]
    made = feedback_groups(rows, tokenizer, PairRules(200))
    both = mismatched(made, tokenizer, PairRules(200), seed=3)
    own = [trained(group.sequences[0], tokenizer) for group in both]
    other = [trained(group.sequences[1], tokenizer) for group in both]
    assert sorted(own) == sorted(other) and all(first != second for first, second in zip(own, other, strict=True))
    assert all(group.shared >= 5 for group in both)
    again = mismatched(made, tokenizer, PairRules(200), seed=3)
    assert [trained(group.sequences[1], tokenizer) for group in again] == other


@pytest.fixture
def made(tokenizer: Tokenizer) -> Groups:
    return preference_groups([pair(prompt=f"What is {n}?", chosen=f"It is {n}.") for n in range(7)], tokenizer, PairRules(100))


def same(first: BranchedBatch, second: BranchedBatch) -> bool:
    return torch.equal(first.tokens_T, second.tokens_T) and first.sample_ids == second.sample_ids


def test_the_stream_goes_on_anywhere(made: Groups) -> None:
    stream = GroupStream(made.groups, size=3, seed=1)
    first = list(islice(stream.batches(), 9))
    assert sorted(name for batch, _ in first[:7] for name in batch.sample_ids) == sorted([group.id for group in made.groups] * 3)
    for place in range(8):
        following, _ = next(GroupStream(made.groups, size=3, seed=1).batches(first[place][1]))
        assert same(following, first[place + 1][0])
    ones = [batch.sample_ids[0] for batch, _ in islice(GroupStream(made.groups, size=1, seed=1).batches(), 9)]
    assert ones == [name for batch, _ in first[:3] for name in batch.sample_ids]


def test_a_state_of_other_data_is_refused(made: Groups) -> None:
    _, state = next(GroupStream(made.groups, size=3, seed=1).batches())
    for other in (
        GroupStream(made.groups[:-1], size=3, seed=1),
        GroupStream(made.groups, size=3, seed=2),
        GroupStream(made.groups, size=3, seed=1, columns={"margins_G": torch.ones(7)}),
    ):
        with pytest.raises(DataError, match="cannot continue"):
            next(other.batches(state))
    with pytest.raises(DataError, match="no groups"):
        GroupStream([], size=1, seed=0)


def test_columns_follow_their_groups(made: Groups) -> None:
    stream = GroupStream(made.groups, size=3, seed=1, columns={"margins_G": torch.arange(7.0)})
    stream.add("reference_S", torch.arange(14.0).view(7, 2))
    with pytest.raises(DataError, match="one for each of 7"):
        stream.add("other_G", torch.zeros(3))
    batch, _ = next(stream.batches())
    numbers = [int(name.partition(":")[2]) for name in batch.sample_ids]
    assert batch.columns["margins_G"].tolist() == numbers
    assert batch.columns["reference_S"].tolist() == [float(2 * n + side) for n in numbers for side in (0, 1)]
