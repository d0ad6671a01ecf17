"""Losses and gradients of every step beside TRL's trainers on the same decoder, rows and learning rate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luyen.algorithms.dpo import DPO
from luyen.algorithms.kto import GOOD, KTO
from luyen.algorithms.reference import FrozenModel
from luyen.data.branches import Group
from luyen.data.pairs import GroupStream
from luyen.models.transformer import Transformer
from luyen.objectives.preference import PreferenceLoss
from tests.algorithms.preference_toys import answer, rows
from tests.models.toys import toy, twin

trl = pytest.importorskip("trl", reason="TRL is installed where we are compared with it")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(240)]

STEPS, RATE, PAD = 4, 0.05, 0
SIZE = {"vocab_size": 48, "num_heads": 2}
PAIR, JUDGED = {"prompt": "3", "chosen": "4", "rejected": "5"}, {"prompt": "3", "completion": "4", "label": True}
"""What a trainer wants to be started with."""


def ours() -> tuple[Transformer, Transformer]:
    """The policy and its reference, which is another model: a drift from the first step on."""
    return toy(0, **SIZE), toy(1, **SIZE)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({str(number): number for number in range(48)}, unk_token="1"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="0", eos_token="2", unk_token="1")


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def descend(model: nn.Module, rate: float) -> None:
    """One step of plain gradient descent."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad
                parameter.grad = None


def same_steps(algorithm: DPO | KTO, rows_each: int, theirs: nn.Module, loss_of: Callable[[list[int]], Tensor]) -> list[float]:
    """Take steps side by side on the first `rows_each` rows, the next ones and so on; the losses."""
    found = []
    for step in range(STEPS):
        indices = [(step * rows_each + place) % len(algorithm.stream.groups) for place in range(rows_each)]
        loss = algorithm.loss(algorithm.stream.batch(indices))
        (loss.total / loss.count).backward()
        other = loss_of(indices)
        other.backward()
        torch.testing.assert_close((loss.total / loss.count).detach(), other.detach().float(), atol=1e-6, rtol=1e-6)
        own, their = named(algorithm.model), named(theirs)
        assert own.keys() == their.keys()
        for name, gradient in own.items():
            size = max(1.0, float(their[name].abs().max()))  # IPO's squares make slopes of hundreds
            torch.testing.assert_close(
                gradient / size, their[name] / size, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
        rate = RATE / 100 if algorithm.objective.name == "ipo" else RATE  # larger steps along such slopes make rounding grow
        descend(algorithm.model, rate)
        descend(theirs, rate)
        found.append(float(other.detach()))
    assert len(set(found)) == STEPS, "each step is another"
    return found


def step_of(trainer: Any, given: list[dict[str, Any]]) -> Callable[[list[int]], Tensor]:
    """The loss of rows by a trainer's own collator and loss."""
    return lambda indices: trainer._compute_loss(trainer.model, trainer.data_collator([given[place] for place in indices]), False)


def arguments(folder: Path, size: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": size, "report_to": [], "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False,
    }  # fmt: skip


PAIRED = {
    "sigmoid": (PreferenceLoss(beta=0.3), {"loss_type": "sigmoid", "beta": 0.3}),
    "length_normalised": (PreferenceLoss(beta=0.3, length_normalised=True), {"loss_type": "sigmoid_norm", "beta": 0.3}),
    "hinge": (PreferenceLoss("hinge", beta=0.2), {"loss_type": "hinge", "beta": 0.2}),
    "ipo": (PreferenceLoss("ipo", beta=0.2), {"loss_type": "ipo", "beta": 0.2}),
    "robust": (PreferenceLoss("robust", label_smoothing=0.2), {"loss_type": "robust", "label_smoothing": 0.2}),
}


@pytest.mark.parametrize("name", PAIRED)
def test_dpo_and_its_kin(name: str, tmp_path: Path) -> None:
    from datasets import Dataset

    objective, settings = PAIRED[name]
    policy, reference = ours()
    made = rows(6)
    groups = [Group(str(place), (answer(given, good), answer(given, bad))) for place, (given, good, bad) in enumerate(made)]
    algorithm = DPO(policy, GroupStream(groups, size=2, seed=0), FrozenModel(reference), objective)
    given = [{"prompt_ids": prompt, "chosen_ids": good, "rejected_ids": bad} for prompt, good, bad in made]
    trainer = trl.DPOTrainer(
        twin(policy), twin(reference), args=trl.DPOConfig(**arguments(tmp_path, 2), **settings), train_dataset=Dataset.from_list([PAIR]),
        processing_class=tokenizer(),
    )  # fmt: skip
    same_steps(
        algorithm,
        2,
        trainer.model,
        lambda indices: trainer._compute_loss(trainer.model, trainer.data_collator([given[i] for i in indices]), False),
    )


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_kto(name: str, tmp_path: Path) -> None:
    from datasets import Dataset

    policy, reference = ours()
    made, labels, size = rows(6), [True, False, True, False, False, True], 3
    other = [made[start + (place - 1) % size][1] for start in (0, 3) for place in range(size)]  # rotated within batches, as TRL does
    groups = [
        Group(str(place), (answer(given, own), *([answer(given, other[place])] if name == "kto" else [])))
        for place, (given, own, _) in enumerate(made)
    ]
    stream = GroupStream(groups, size=size, seed=0, columns={GOOD: torch.tensor(labels)})
    objective = PreferenceLoss(name, beta=0.2, desirable_weight=1.5, undesirable_weight=0.75)
    algorithm = KTO(policy, stream, FrozenModel(reference), objective)
    given = [
        {"prompt_ids": prompt, "completion_ids": own, "KL_completion_ids": other[place], "label": labels[place]}
        for place, (prompt, own, _) in enumerate(made)
    ]
    settings = {"loss_type": name, "beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.75}
    trainer = trl.KTOTrainer(
        twin(policy), twin(reference), args=trl.KTOConfig(**arguments(tmp_path, size), **settings),
        train_dataset=Dataset.from_list([JUDGED] * size),
        processing_class=tokenizer(),
    )  # fmt: skip
    same_steps(
        algorithm,
        size,
        trainer.model,
        lambda indices: trainer._compute_loss(trainer.model, trainer.data_collator([given[i] for i in indices]), False),
    )


def padded(row: tuple[list[int], list[int], list[int]]) -> dict[str, Tensor]:
    """One pair as ORPO's and CPO's trainers collate it."""
    prompt, good, bad = row
    batch = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for side, ids in (("chosen", good), ("rejected", bad)):
        batch |= {f"{side}_input_ids": prompt + ids, f"{side}_attention_mask": [1] * len(prompt + ids)}
        batch[f"{side}_labels"] = [-100] * len(prompt) + ids
    return {name: torch.tensor([value]) for name, value in batch.items()}


def bare(kind: str, model: nn.Module, **settings: Any) -> Any:
    """A trainer with what its loss reads. Its own start would tokenize text, which these rows are not."""
    from types import SimpleNamespace

    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    made = object.__new__({"orpo": ORPOTrainer, "simpo": CPOTrainer}[kind])
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda value: value)
    known = {"is_encoder_decoder": False, "aux_loss_enabled": False, "padding_value": PAD, "pad_token_id": PAD, "accelerator": accelerator}
    made.__dict__.update(
        {**known, "model": model, "args": SimpleNamespace(max_length=64), "label_smoothing": 0.0, "alpha": 0.0, **settings}
    )
    return made


@pytest.mark.parametrize("name", ["orpo", "simpo", "simpo_with_sft"])
def test_losses_without_a_reference(name: str) -> None:
    """One pair a step: TRL's fine-tuning term is a mean over all tokens of a batch, ours of each answer by itself.

    ORPO's is there also over the prompt, which here is one token and so predicts nothing of itself.
    """
    policy, _ = ours()
    made = rows(6, prompt=1)
    groups = [Group(str(place), (answer(given, good), answer(given, bad))) for place, (given, good, bad) in enumerate(made)]
    theirs = twin(policy)
    if name == "orpo":
        objective, trainer = PreferenceLoss("orpo", beta=0.4), bare("orpo", theirs, beta=0.4)
    else:
        alpha = 0.3 if name == "simpo_with_sft" else 0.0
        objective = PreferenceLoss("simpo", beta=2.0, gamma=0.5, sft_weight=alpha)
        trainer = bare("simpo", theirs, beta=2.0, simpo_gamma=0.5, loss_type="simpo", cpo_alpha=alpha)
    algorithm = DPO(policy, GroupStream(groups, size=1, seed=0), None, objective)
    same_steps(algorithm, 1, theirs, lambda indices: trainer.get_batch_loss_metrics(theirs, padded(made[indices[0]]))[0])


def test_the_difference_would_be_seen() -> None:
    policy, reference = ours()
    given, good, bad = rows(1)[0]
    stream = GroupStream([Group("0", (answer(given, good), answer(given, bad)))], size=1, seed=0)
    one, two = (DPO(copy.deepcopy(policy), stream, FrozenModel(reference), PreferenceLoss(beta=beta)) for beta in (0.3, 0.301))
    with pytest.raises(AssertionError):
        same_steps(one, 1, two.model, lambda indices: two.loss(stream.batch(indices)).total)
