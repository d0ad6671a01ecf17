"""Reward models: what TRL computes on the same rows, planted rewards found again, and a stopped run that ends in the same bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from luyen.algorithms.reward_model import MARGIN, SAFE, RewardLoss, RewardModel, columns, ended
from luyen.core import progress
from luyen.core.errors import DataError, Interrupted
from luyen.core.records import Message, Preference
from luyen.data.branches import Group, collate_groups
from luyen.data.pairs import GroupStream
from luyen.data.samples import NOT_TRAINED, Sample
from luyen.engine.run import Run
from luyen.engine.trainer import fit
from luyen.models import scored_files
from luyen.models.scored import ScoredDecoder, without_words
from luyen.tokenizer.train import TokenizerConfig, train
from tests.training_toys import VOCABULARY, toy_config, toy_model

WORDS = 24
"""Ids in the pairs; the others, the last of which pads, occur in none."""


def answer(prompt: list[int], ids: list[int], behind: int = 0) -> Sample:
    """A sequence as it learns to write its answer; the last `behind` ids are the template's and not trained."""
    whole = [*prompt, *ids]
    targets = [NOT_TRAINED] * (len(prompt) - 1) + [NOT_TRAINED if place >= len(ids) - behind else item for place, item in enumerate(ids)]
    return Sample("s", np.array(whole[:-1], np.int32), np.array(targets, np.int32))


def pairs(count: int, seed: int, values: np.ndarray | None = None) -> list[Group]:
    """Random answers to random prompts; with `values` the first is the better one by Bradley and Terry's law of their sums."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt = generator.integers(WORDS, size=generator.integers(2, 6)).tolist()
        both = [generator.integers(WORDS, size=generator.integers(3, 8)).tolist() for _ in range(2)]
        if values is not None:
            difference = values[both[0]].sum() - values[both[1]].sum()
            if generator.random() > 1 / (1 + math.exp(-3 * difference)):
                both.reverse()
        made.append(ended(Group(f"pair:{number}", tuple(answer(prompt, ids) for ids in both))))
    return made


def model(seed: int = 0, outputs: int = 1, random: bool = False) -> ScoredDecoder:
    made = ScoredDecoder(without_words(toy_model(seed, tied=False)), outputs)
    if random:
        torch.nn.init.normal_(made.score.weight)
    return made


def test_a_sequence_ends_with_the_token_that_ends_the_answer() -> None:
    (sequence,) = ended(Group("g", (answer([1, 2, 3], [7, 8, 9, 40], behind=1),))).sequences
    assert sequence.tokens.tolist() == [1, 2, 3, 7, 8, 9] and not sequence.num_targets
    with pytest.raises(DataError, match="no answer"):
        ended(Group("g", (Sample("s", np.array([1, 2], np.int32), np.array([-100, -100], np.int32)),)))


def test_the_first_loss_is_ln_2_and_the_prompt_may_be_shared_or_not() -> None:
    groups = pairs(6, 0)
    algorithm = RewardModel(model(), GroupStream(groups, size=6, seed=0))
    loss = algorithm.loss(collate_groups(groups))
    assert loss.count == 6 and loss.total.item() == pytest.approx(6 * math.log(2), abs=1e-6)
    assert loss.metrics["accuracy"][0] == 3  # ties count half
    algorithm = RewardModel(model(random=True).double(), algorithm.stream, RewardLoss(centring=0.1))
    shared, whole = (algorithm.loss(collate_groups(groups, share)).total for share in (True, False))
    torch.testing.assert_close(shared, whole)


def test_shares_of_a_batch_add_up_with_their_margins_and_labels() -> None:
    stated = {MARGIN: torch.rand(6).double(), SAFE: torch.tensor([[1, 0], [1, 1], [0, 0], [-1, -1], [1, 0], [0, 0]])}
    stream = GroupStream(pairs(6, 0), size=6, seed=0, columns=stated)
    algorithm = RewardModel(model(random=True).double(), stream, RewardLoss(0.1, 0.5))
    batch = stream.batch([3, 1, 0, 5, 2, 4])
    parts = [algorithm.loss(batch.share(part, 3)) for part in range(3)]
    assert sum(part.count for part in parts) == 6
    torch.testing.assert_close(sum(part.total for part in parts), algorithm.loss(batch).total)


def test_micro_batches_add_up() -> None:
    groups = pairs(6, 0)
    algorithm = RewardModel(model(random=True).double(), GroupStream(groups, size=6, seed=0), RewardLoss(centring=0.1))
    parts = [algorithm.loss(collate_groups(groups[start : start + 2])).total for start in (0, 2, 4)]
    torch.testing.assert_close(algorithm.loss(collate_groups(groups)).total, sum(parts))


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_safety_label_teaches_the_reward_or_its_own_output(outputs: int) -> None:
    groups = pairs(2, 0)
    labels = {SAFE: torch.tensor([1, 0, -1, -1])}
    algorithm = RewardModel(model(outputs=outputs, random=True).double(), GroupStream(groups, size=2, seed=0), RewardLoss(safety=0.5))
    plain = RewardModel(algorithm.model, algorithm.stream).loss(collate_groups(groups)).total
    batch = collate_groups(groups, columns=labels)
    scores = [algorithm.model.scores(algorithm.model(torch.from_numpy(s.tokens.astype(np.int64))[None])[0, -1])[-1]
              for s in groups[0].sequences]  # fmt: skip
    expected = plain + 0.5 * (-torch.nn.functional.logsigmoid(scores[0]) - torch.nn.functional.logsigmoid(-scores[1]))
    torch.testing.assert_close(algorithm.loss(batch).total, expected)


def preference(**facts: Any) -> Preference:
    return Preference((Message("user", "q"),), (Message("assistant", "a"),), (Message("assistant", "b"),), **facts)


def test_margins_and_labels_come_from_the_rows() -> None:
    rows = [preference(grade="better", margin=0.5), preference(grade="negligibly_better", safety="chosen_safe"), preference()]
    assert columns(rows, "small", False)[MARGIN].tolist() == pytest.approx([2 / 3, 0, 0])
    assert columns(rows, "large", False)[MARGIN].tolist() == [2, 0, 0]
    assert columns(rows, "row", False)[MARGIN].tolist() == [0.5, 0, 0]
    assert columns(rows, "none", True)[SAFE].tolist() == [[-1, -1], [1, 0], [-1, -1]]
    assert not columns(rows, "none", False)
    for margins, safety, told in (("small", False, "no pair has a grade"), ("row", False, "a margin"), ("none", True, "a safety label")):
        with pytest.raises(DataError, match=told):
            columns([preference()], margins, safety)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_planted_rewards_are_found_again(seed: int, tmp_path: Path) -> None:
    values = np.random.default_rng(100 + seed).normal(size=WORDS)
    stream = GroupStream(pairs(8000, seed, values), size=32, seed=seed)
    algorithm = RewardModel(model(seed), stream, RewardLoss(centring=0.01))
    fit(algorithm, toy_config(steps=250, evaluate_every=0, checkpoint={"every_steps": 250}), tmp_path, seed=seed)
    held_out = pairs(300, 50 + seed)
    right = 0
    with torch.no_grad():
        for group in held_out:
            scores = [float(algorithm.model.scores(algorithm.model(torch.from_numpy(s.tokens.astype(np.int64))[None])[0, -1])[0])
                      for s in group.sequences]  # fmt: skip
            # The common prompt adds the same to both.
            right += (scores[0] > scores[1]) == (values[group.sequences[0].tokens].sum() > values[group.sequences[1].tokens].sum())
    assert right / 300 > 0.9


def test_a_stopped_run_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(steps=6, checkpoint={"every_steps": 2})

    def made() -> RewardModel:
        return RewardModel(model(), GroupStream(pairs(20, 0), size=8, seed=3), RewardLoss(centring=0.01))

    fit(made(), config, tmp_path / "whole")
    real = Run.requested_stop
    monkeypatch.setattr(Run, "requested_stop", lambda self: 15 if self.done.step == 3 else real(self))
    with pytest.raises(Interrupted):
        fit(made(), config, tmp_path / "cut")
    monkeypatch.setattr(Run, "requested_stop", real)
    fit(made(), config, tmp_path / "cut")
    whole, cut = (load_file(max((tmp_path / name / "checkpoints").glob("step-*")) / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "cut" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("margin", [True, False])
def test_losses_and_gradients_of_every_step_are_trls(margin: bool, tmp_path: Path) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    groups, margins = pairs(12, 1), torch.rand(12, generator=torch.Generator().manual_seed(0))
    ours = model(random=True)
    scored_files.save(ours, tmp_path, pad_id=VOCABULARY - 1)
    train(["some text"] * 3, TokenizerConfig(vocab_size=290)).save(tmp_path)
    rows = [
        {"chosen_ids": good.tokens.tolist(), "rejected_ids": bad.tokens.tolist(), **({"margin": float(margins[place])} if margin else {})}
        for place, (good, bad) in enumerate(group.sequences for group in groups)
    ]
    arguments = trl.RewardConfig(
        str(tmp_path / "out"), use_cpu=True, report_to=[], center_rewards_coefficient=0.05, disable_dropout=True, bf16=False,
        activation_checkpointing=False, dataloader_pin_memory=False,
    )  # fmt: skip
    twin = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    trainer = trl.RewardTrainer(
        twin, arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(tmp_path)
    )
    twin.config.pad_token_id = trainer.data_collator.pad_token_id = VOCABULARY - 1
    algorithm = RewardModel(ours, GroupStream(groups, size=4, seed=0, columns={MARGIN: margins} if margin else {}), RewardLoss(0.05))
    for step in range(3):
        places = list(range(4 * step, 4 * step + 4))
        theirs = trainer.compute_loss(trainer.model.train(), trainer.data_collator([rows[place] for place in places]))
        loss = algorithm.loss(algorithm.stream.batch(places))
        mean = loss.total / loss.count
        torch.testing.assert_close(mean, theirs)
        theirs.backward()
        mean.backward()
        others = dict(trainer.model.named_parameters())
        for name, parameter in ours.named_parameters():
            other = others[name.removeprefix("decoder.")]
            assert parameter.grad is not None
            assert (parameter.grad - other.grad).norm() <= 1e-4 * other.grad.norm()
            with torch.no_grad():
                parameter -= 0.1 * parameter.grad
                other -= 0.1 * other.grad
            parameter.grad = other.grad = None


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "say", lambda *_: None)
