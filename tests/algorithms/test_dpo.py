"""DPO: its first step, invariances, references that agree, a stop and a kill that change no bit, and what it says when it drifts."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import pytest
import torch

from luyen.adapters.adapt import adapt
from luyen.adapters.config import AdapterConfig
from luyen.algorithms import reference as references
from luyen.algorithms.dpo import DPO
from luyen.algorithms.preference_watch import PreferenceWatch
from luyen.algorithms.reference import AdapterOff, FrozenModel, Known, precompute
from luyen.core import interrupt
from luyen.core.config import load
from luyen.core.errors import Interrupted, NonFinite
from luyen.data.pairs import GroupStream
from luyen.engine.algorithm import Hooks
from luyen.engine.trainer import fit
from luyen.objectives.preference import PreferenceLoss
from tests.algorithms.preference_toys import frozen, gradients, pairs, toy_dpo
from tests.training_toys import toy_config, toy_model

LN2 = 0.6931471824645996


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_first_loss_is_exactly_ln_2(tmp_path: Path) -> None:
    fit(toy_dpo(), toy_config(steps=2, accumulation=2), tmp_path)
    first = log(tmp_path)[0]
    assert first["loss"] == LN2 and first["margin"] == first["kl"] == first["chosen_drift"] == 0.0


def test_with_an_adapter_off_as_well(tmp_path: Path) -> None:
    model = toy_model()
    adapt(model, load(AdapterConfig, {"method": "lora", "rank": 2}))
    algorithm = DPO(model, GroupStream(pairs(), size=2, seed=0), AdapterOff(model))
    fit(algorithm, toy_config(steps=6), tmp_path)
    found = log(tmp_path)
    assert found[0]["loss"] == LN2 and found[-1]["margin"] != 0
    plain, batch = FrozenModel(toy_model()), algorithm.stream.batch([0, 1])
    assert torch.equal(algorithm.reference(batch), plain(batch))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "orpo", "simpo"])
def test_sharing_the_prompt_equals_written_out(name: str) -> None:
    model = toy_model().double()
    reference = frozen(toy_model(5).double())
    shared, whole = (
        DPO(model, GroupStream(pairs(prompt=7), size=2, seed=0, share=share), reference, PreferenceLoss(name)) for share in (True, False)
    )
    assert len(shared.stream.batch([0, 1]).tokens_T) < len(whole.stream.batch([0, 1]).tokens_T)
    ours, theirs = gradients(shared, range(6)), gradients(whole, range(6))
    for key, own in ours.items():
        torch.testing.assert_close(own, theirs[key])


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "orpo"])
def test_the_split_into_micro_batches_changes_nothing(name: str) -> None:
    algorithm = toy_dpo(PreferenceLoss(name))
    algorithm.reference = frozen(toy_model(5)) if algorithm.reference else None
    whole = gradients(algorithm, range(6))
    parts = [gradients(algorithm, [place, place + 1]) for place in (0, 2, 4)]
    for key, own in whole.items():
        torch.testing.assert_close(own, sum(part[key] for part in parts) / 3, atol=1e-6, rtol=1e-4)


def test_a_reference_computed_before_is_that_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "PART", 4)
    model = FrozenModel(toy_model(3))
    asked: list[str] = []

    def of(batch: object) -> torch.Tensor:
        asked.extend(batch.sample_ids)  # type: ignore[attr-defined]
        return model(batch)  # type: ignore[arg-type]

    streams = [GroupStream(pairs(10), size=3, seed=0) for _ in range(4)]
    precompute(of, streams[0], tmp_path, "key")
    assert sorted(asked) == sorted(group.id for group in streams[0].groups)
    batch, _ = next(streams[0].batches())
    torch.testing.assert_close(Known()(batch), model(batch), atol=1e-5, rtol=0)
    asked.clear()
    precompute(of, streams[1], tmp_path, "key")  # what was stopped goes on: here nothing is left to do
    assert not asked and torch.equal(streams[1].columns[references.COLUMN], streams[0].columns[references.COLUMN])
    (tmp_path / "part-00001.safetensors").write_bytes(b"cut")
    precompute(of, streams[2], tmp_path, "key")
    assert asked == [f"pair:{place}" for place in range(4, 8)]
    asked.clear()
    precompute(of, streams[3], tmp_path, "other weights")
    assert len(asked) == 10


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(steps=9, accumulation=2, checkpoint={"every_steps": 2})
    whole = toy_dpo()
    fit(whole, config, tmp_path / "whole")
    count, asked = iter(range(1000)), interrupt.requested
    with monkeypatch.context() as patched:
        patched.setattr(interrupt, "requested", lambda: 15 if next(count) == 5 else asked())
        with pytest.raises(Interrupted):
            fit(toy_dpo(), config, tmp_path / "cut")
    again = toy_dpo()
    fit(again, config, tmp_path / "cut")
    for own, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(own, other)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "cut" / "metrics.jsonl").read_bytes()


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    algorithm = toy_dpo()
    before = [parameter.clone() for parameter in algorithm.model.parameters()]
    algorithm.reference = lambda batch: torch.full((batch.num_sequences,), math.nan)
    with pytest.raises(NonFinite, match="pair:"):
        fit(algorithm, toy_config(), tmp_path)
    assert all(torch.equal(own, other) for own, other in zip(before, algorithm.model.parameters(), strict=True))


def test_a_loss_that_compares_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="reference"):
        DPO(toy_model(), GroupStream(pairs(), size=2, seed=0))


def test_held_out_pairs_are_measured_whole() -> None:
    algorithm, other = toy_dpo(), GroupStream(pairs(5, seed=9), size=2, seed=0)
    algorithm.reference = frozen(toy_model(5))
    found = algorithm.measure(other)
    loss = algorithm.loss(other.batch(range(5)))
    assert found["loss"] == pytest.approx(loss.total.item() / 5, abs=1e-6)
    assert found["accuracy"] == pytest.approx(float(loss.metrics["accuracy"][0]) / 5)


def test_drift_is_told_with_the_knob_to_turn(tmp_path: Path) -> None:
    said: list[str] = []
    watch = PreferenceWatch(PreferenceLoss(), said.append)
    fit(toy_dpo(), toy_config(steps=60, optimizer={"learning_rate": 0.1}), tmp_path, hooks=Hooks(stepped=watch))
    assert any("loss.beta" in line and "learning_rate" in line for line in said)
    assert len(said) <= 2, "each is told once"


def row(step: int, **figures: float) -> dict[str, float]:
    return {"step": step, **figures}


def test_what_is_told_and_when() -> None:
    said: list[str] = []
    watch = PreferenceWatch(PreferenceLoss(), said.append)
    for step in range(1, 40):
        watch(row(step, chosen_drift=-0.1, kl=1.0, chosen_log_probability=-40.0))
    assert not said
    for step in range(40, 60):
        watch(row(step, chosen_drift=-0.8, kl=1.0, chosen_log_probability=-40.0))
    assert len(said) == 1 and "loss.sft_weight" in said[0] and "chosen" in said[0]
    for step in range(60, 80):
        watch(row(step, chosen_drift=-0.8, kl=60.0, chosen_log_probability=-40.0))
    assert len(said) == 2 and "nats less likely" in said[1] and "loss.beta" in said[1]
    free: list[str] = []
    watch = PreferenceWatch(PreferenceLoss("simpo"), free.append)
    for step in range(1, 41):
        watch(row(step, chosen_token_log_probability=-1.0 if step < 20 else -1.7))
    assert len(free) == 1 and "less likely" in free[0]


def test_batches_go_on_after_a_state() -> None:
    algorithm = toy_dpo()
    seen = list(islice(algorithm.batches(None), 4))
    following, _ = next(algorithm.batches(seen[1][1]))
    assert following.sample_ids == seen[2][0].sample_ids
