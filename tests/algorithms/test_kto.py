"""KTO: its equation on whole batches, its baseline, and what must not be cut."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from luyen.algorithms.kto import GOOD, KTO
from luyen.core.errors import ConfigError
from luyen.data.branches import Group
from luyen.data.pairs import GroupStream
from luyen.engine.trainer import fit
from luyen.objectives.preference import PreferenceLoss
from tests.algorithms.preference_toys import answer, frozen, rows
from tests.training_toys import toy_config, toy_model

LABELS = [True, False, False, True, True, False]


def stream(size: int = 3, other: bool = True, share: bool = True) -> GroupStream:
    made = rows()
    groups = []
    for place, (given, chosen, _) in enumerate(made):
        second = (answer(given, made[place - 1][1]),) if other else ()
        groups.append(Group(f"row:{place}", (answer(given, chosen), *second)))
    return GroupStream(groups, size=size, seed=0, share=share, columns={GOOD: torch.tensor(LABELS)})


def toy(name: str = "kto", size: int = 3, **weights: float) -> KTO:
    model = toy_model()
    return KTO(model, stream(size, name == "kto"), frozen(toy_model(5)), PreferenceLoss(name, **weights))  # type: ignore[arg-type]


def test_the_equation_from_the_logits() -> None:
    algorithm = toy(desirable_weight=2.0)
    policy, reference = algorithm.model, algorithm.reference.model  # type: ignore[attr-defined]
    found: list[tuple[float, float]] = []
    with torch.no_grad():
        for group in algorithm.stream.groups:
            ratios = []
            for item in group.sequences:
                ids, total = torch.from_numpy(item.tokens).long()[None], 0.0
                for sign, model in ((1, policy), (-1, reference)):
                    logits = model.logits(model(ids))[0].log_softmax(-1)
                    total += sign * sum(float(logits[place, token]) for place, token in enumerate(item.targets.tolist()) if token >= 0)
                ratios.append(total)
            found.append((ratios[0], ratios[1]))
    z = max(0.0, sum(other for _, other in found) / 6)
    expected = [
        2.0 * (1 - 1 / (1 + math.exp(-0.1 * (own - z)))) if label else 1 - 1 / (1 + math.exp(-0.1 * (z - own)))
        for (own, _), label in zip(found, LABELS, strict=True)
    ]
    loss = algorithm.loss(algorithm.stream.batch(range(6)))
    assert loss.total.item() == pytest.approx(sum(expected), abs=1e-5) and loss.count == 6
    assert float(loss.metrics["baseline"][0]) / 6 == pytest.approx(z, abs=1e-5)


def test_sharing_the_prompt_changes_nothing() -> None:
    algorithm = toy()
    apart = KTO(algorithm.model, stream(share=False), algorithm.reference, algorithm.objective)
    first, second = (one.loss(one.stream.batch(range(6))).total for one in (algorithm, apart))
    torch.testing.assert_close(first, second)


def test_without_a_baseline_no_other_answer_is_read() -> None:
    algorithm = toy("apo_zero_unpaired")
    assert all(len(group.sequences) == 1 for group in algorithm.stream.groups)
    batch = algorithm.stream.batch(range(6))
    loss = algorithm.loss(batch)
    assert loss.count == 6 and float(loss.metrics["baseline"][0]) == 0


def test_it_starts_at_one_half_and_learns(tmp_path: Path) -> None:
    model = toy_model()
    algorithm = KTO(model, stream(), frozen(model))
    fit(algorithm, toy_config(steps=20), tmp_path)
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == 0.5 and log[-1]["loss"] < 0.45
    assert log[-1]["chosen_reward"] > log[-1]["rejected_reward"]


def test_a_micro_batch_is_not_cut_as_its_baseline_is_its_own() -> None:
    batch, _ = next(toy().batches(None))
    assert batch.share(0, 1) is batch
    with pytest.raises(ConfigError, match="multiple of the processes"):
        batch.to("cpu").share(0, 2)
    plain, _ = next(toy("apo_zero_unpaired").batches(None))
    assert sum(len(plain.share(part, 2).sizes) for part in range(2)) == 3
