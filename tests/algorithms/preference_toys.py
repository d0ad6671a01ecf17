"""Pairs and judged answers small enough to train on in milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from luyen.algorithms.dpo import DPO
from luyen.algorithms.reference import FrozenModel, Reference
from luyen.data.branches import Group
from luyen.data.pairs import GroupStream
from luyen.data.samples import NOT_TRAINED, Sample
from luyen.models.transformer import Transformer
from luyen.objectives.preference import PreferenceLoss
from tests.training_toys import toy_model

Ids = Sequence[int]


def answer(prompt: Ids, ids: Ids, name: str = "s") -> Sample:
    """The ids of an answer after those of its prompt; the answer is trained."""
    whole = [*prompt, *ids]
    targets = [NOT_TRAINED] * (len(prompt) - 1) + list(ids)
    return Sample(name, np.array(whole[:-1], np.int32), np.array(targets, np.int32))


def rows(count: int = 6, seed: int = 0, prompt: int | None = None) -> list[tuple[list[int], list[int], list[int]]]:
    """Random prompts (of `prompt` ids), chosen and rejected answers of different lengths, below 48."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, 8, (count, 3))
    made = []
    for first, second, third in sizes.tolist():
        lengths = (prompt or first, second, third)
        made.append(tuple(generator.integers(1, 48, length).tolist() for length in lengths))
    return made  # type: ignore[return-value]


def pairs(count: int = 6, seed: int = 0, prompt: int | None = None) -> list[Group]:
    """The rows as groups."""
    return [
        Group(f"pair:{place}", (answer(given, chosen), answer(given, rejected)))
        for place, (given, chosen, rejected) in enumerate(rows(count, seed, prompt))
    ]


def toy_dpo(objective: PreferenceLoss = PreferenceLoss(), size: int = 2, seed: int = 0) -> DPO:  # noqa: B008 (frozen)
    """DPO of the toy decoder from a copy of itself."""
    model = toy_model(seed)
    return DPO(model, GroupStream(pairs(), size=size, seed=seed), frozen(model), objective)


def frozen(model: Transformer) -> Reference:
    """A copy as the reference."""
    return FrozenModel(copy.deepcopy(model))


def gradients(algorithm: DPO, indices: Sequence[int]) -> dict[str, torch.Tensor]:
    """Of the mean loss of these groups."""
    algorithm.model.zero_grad()
    loss = algorithm.loss(algorithm.stream.batch(indices))
    (loss.total / loss.count).backward()
    return {name: parameter.grad.clone() for name, parameter in algorithm.model.named_parameters() if parameter.grad is not None}
