"""PPO and the policies without a critic: they find the best answers, their first step is on policy, and nothing stops them for good."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from luyen.adapters.adapt import adapt
from luyen.adapters.config import AdapterConfig
from luyen.algorithms import rollout, rollout_files
from luyen.algorithms.grpo import GRPO
from luyen.algorithms.policy_config import PPOLossConfig, RolloutConfig
from luyen.algorithms.ppo import PPO, ActorCritic
from luyen.algorithms.rollout import Policy, Rollouts
from luyen.core.config import load
from luyen.core.errors import DamagedFile, DataError, Interrupted
from luyen.engine.trainer import fit
from luyen.inference import generate as generation
from luyen.models.scored import ScoredDecoder, without_words
from tests.algorithms.policy_toys import (
    Letters,
    Score,
    algorithm,
    bandit,
    decoder,
    ends_with_nine,
    prompts,
    train_config,
)

NAMES = ("ppo", "grpo", "dr-grpo", "rloo", "reinforce++")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_best_arm_is_found(tmp_path: Path) -> None:
    fit(algorithm("rloo", tmp_path, Score(bandit)), train_config(64), tmp_path)
    found = [row["reward"] for row in rows(tmp_path)]
    assert found[0] < 0.3 and found[-1] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reward", [bandit, ends_with_nine])
@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_reaches_the_optimum(name: str, reward: Callable[..., float], seed: int, tmp_path: Path) -> None:
    loss = {"kl": {"beta": 0.005}}
    own = algorithm(name, tmp_path, Score(reward), seed=seed, loss=loss, rollout={"prompts": 16, "minibatch": 8, "samples": 16})
    fit(own, train_config(240, 3e-3), tmp_path, seed=seed)
    found = [row["reward"] for row in rows(tmp_path)]
    assert sum(found[-16:]) / 16 > 0.95, f"the best answer pays 1; {found[::24]}"


def taken(own: PPO | GRPO, count: int = 1) -> list[Any]:
    stream = own.batches(None)
    return [next(stream)[0] for _ in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_update_is_on_policy(name: str, tmp_path: Path) -> None:
    own = algorithm(name, tmp_path, Score(bandit), loss={"kl": {"beta": 0.1}})
    for batch in taken(own, 2):  # the whole first epoch, in the batches that were measured
        old_K = batch.columns["old_K"]
        passed = own._passed(batch)[0] if isinstance(own, PPO) else own.measure(batch)["old_K"]
        assert torch.equal(passed, old_K) and (passed - old_K).exp().eq(1).all()
        loss = own.loss(batch)
        assert float(loss.metrics["moved"][0]) == 0 == float(loss.metrics["clip_fraction"][0])
        assert loss.count == batch.num_targets and loss.total.requires_grad


def test_log_probabilities_are_those_of_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    choose = generation.choose

    def watched(logits_BV: Tensor, sampling: Any, *more: Any) -> Tensor:
        chosen_B = choose(logits_BV, sampling, *more)
        drawn.append((logits_BV / sampling.temperature).log_softmax(-1).gather(1, chosen_B[:, None])[:, 0])
        return chosen_B

    monkeypatch.setattr(generation, "choose", watched)
    setting = {"prompts": 1, "samples": 1, "minibatch": 1, "max_new_tokens": 8, "temperature": 0.7}
    (batch,) = taken(algorithm("ppo", tmp_path, Score(bandit), rollout=setting))
    torch.testing.assert_close(batch.columns["old_K"], torch.cat(drawn), atol=1e-5, rtol=0)
    assert len(drawn) > 2, "an answer of several tokens, whose steps came from the cache"


def weights(own: PPO | GRPO) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in own.model.named_parameters()}


class Cut(Exception):
    """What a kill is to a test in one process."""


def cut_in_reward(own: PPO | GRPO, patched: pytest.MonkeyPatch) -> None:
    asked = iter(range(100))
    score = own.rollouts.reward.score
    patched.setattr(own.rollouts.reward, "score", lambda written: fail() if next(asked) == 2 else score(written))


def cut_in_drawing(own: PPO | GRPO, patched: pytest.MonkeyPatch) -> None:
    asked, made = iter(range(100)), rollout.generate
    patched.setattr(rollout, "generate", lambda *given: fail() if next(asked) == 2 else made(*given))


def cut_in_update(own: PPO | GRPO, patched: pytest.MonkeyPatch) -> None:
    asked, loss = iter(range(100)), own.loss
    patched.setattr(own, "loss", lambda batch: fail() if next(asked) == 10 else loss(batch))


def cut_in_writing(own: PPO | GRPO, patched: pytest.MonkeyPatch) -> None:
    asked, seal = iter(range(100)), rollout_files.write_jsonl
    patched.setattr(rollout_files, "write_jsonl", lambda *given: fail() if next(asked) == 2 else seal(*given))


def fail() -> Any:
    raise Cut


LOSS: dict[str, dict[str, Any]] = {
    "ppo": {"kl": {"beta": 0.1, "target": 0.05, "horizon": 100, "stop": 0.02}}, "grpo": {"kl": {"beta": 0.1}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "cut"),
    [("ppo", cut_in_reward), ("ppo", cut_in_drawing), ("ppo", cut_in_writing), ("ppo", cut_in_update), ("grpo", cut_in_update)],
)
def test_a_run_that_was_cut_ends_in_the_same_bits(
    name: str, cut: Callable[[PPO | GRPO, pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(14, checkpoint={"every_steps": 3})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first = algorithm(name, whole, Score(bandit), loss=LOSS[name])
    fit(first, config, whole)
    with monkeypatch.context() as patched, pytest.raises(Cut):
        stopped = algorithm(name, parts, Score(bandit), loss=LOSS[name])
        cut(stopped, patched)
        fit(stopped, config, parts)
    assert len(rows(parts)) < 14
    second = algorithm(name, parts, Score(bandit), loss=LOSS[name])
    fit(second, config, parts)
    expected = weights(first)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights(second).items())
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    betas = [row["beta"] for row in rows(whole)]
    assert len(set(betas)) > 1 or name == "grpo", "the coefficient adapts"


def test_rollouts_that_no_checkpoint_needs_are_deleted(tmp_path: Path) -> None:
    fit(algorithm("grpo", tmp_path, Score(bandit)), train_config(24, checkpoint={"every_steps": 2, "keep_last": 2}), tmp_path)
    assert [path.name for path in sorted((tmp_path / "rollouts").iterdir())] == ["iteration-000004", "iteration-000005"]
    states = [json.loads(path.read_text()) for path in (tmp_path / "checkpoints").glob("step-*/state.json")]
    assert {state["done"]["stream"]["iteration"] for state in states} == {5}


def test_without_its_rollout_a_run_does_not_go_on(tmp_path: Path) -> None:
    fit(algorithm("grpo", tmp_path, Score(bandit)), train_config(6, checkpoint={"every_steps": 2}), tmp_path)
    (tmp_path / "rollouts" / "iteration-000001" / rollout_files.ANSWERS).write_text("{}\n")
    state = json.loads((tmp_path / "checkpoints" / "step-00000006" / "state.json").read_text())["done"]["stream"]
    with pytest.raises(DamagedFile, match=r"is needed to go on: .*weights that wrote its answers are gone"):
        next(algorithm("grpo", tmp_path, Score(bandit)).batches(state))
    with pytest.raises(DataError, match="the prompts, the rollout's settings or the seed changed"):
        next(algorithm("grpo", tmp_path, Score(bandit), rollout={"temperature": 0.9}).batches(state))


@pytest.mark.parametrize("name", ["ppo", "rloo"])
def test_a_reward_that_is_no_number_stops_before_the_update(name: str, tmp_path: Path) -> None:
    own = algorithm(name, tmp_path, Score(lambda ids, stopped: float("nan")))
    before = weights(own)
    with pytest.raises(DataError, match=r"the reward of an answer to p\d is not a finite number; found nan"):
        fit(own, train_config(2), tmp_path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(own).items())
    assert not list((tmp_path / "rollouts").glob("*")) and own.model.training


def test_updates_end_early_where_the_policy_moved_too_far(tmp_path: Path) -> None:
    loss = {"kl": {"beta": 0.0, "stop": 1e-9}}
    reward = Score(bandit)
    fit(algorithm("grpo", tmp_path, reward, loss=loss), train_config(6), tmp_path)
    moved = [row["moved"] for row in rows(tmp_path)]
    assert moved == [0, pytest.approx(moved[1]), 0, pytest.approx(moved[3]), 0, pytest.approx(moved[5])] and min(moved[1::2]) > 1e-9
    assert reward.asked == 3, "two updates of four that a rollout is good for"


def test_micro_batches_do_not_change_a_step(tmp_path: Path) -> None:
    ends = []
    for number, (minibatch, accumulation) in enumerate([(8, 1), (2, 4)]):
        folder = tmp_path / str(number)
        own = algorithm("ppo", folder, Score(bandit), rollout={"minibatch": minibatch, "epochs": 1})
        fit(own, train_config(1, accumulation=accumulation), folder)
        ends.append(weights(own))
    assert all(torch.allclose(tensor, ends[1][key], atol=2e-5) for key, tensor in ends[0].items())


def test_a_batch_is_cut_for_processes_without_change(tmp_path: Path) -> None:
    for name in ("ppo", "grpo"):
        own = algorithm(name, tmp_path, Score(bandit))
        (batch,) = taken(own)
        whole, parts = own.loss(batch), [own.loss(batch.share(part, 2)) for part in range(2)]
        assert sum(part.count for part in parts) == whole.count
        torch.testing.assert_close(sum(part.total for part in parts), whole.total)


def test_unfinished_answers_can_cost(tmp_path: Path) -> None:
    own = algorithm("dr-grpo", tmp_path, Score(lambda ids, stopped: 0.0), rollout={"unfinished": 1.0})
    (batch,) = taken(own)
    (folder,) = (tmp_path / "rollouts").iterdir()
    answers = [json.loads(line) for line in (folder / rollout_files.ANSWERS).read_text().splitlines()]
    assert {row["stopped"] for row in answers} == {True, False}
    assert (batch.columns["advantage_K"] > 0).any() and (batch.columns["advantage_K"] < 0).any()
    assert all(row["ids"][-1] == 1 for row in answers if row["stopped"]), "the end is learned too"


@pytest.mark.parametrize("prompt_tuning", [False, True])
def test_the_reference_is_the_policy_with_its_adapter_off(prompt_tuning: bool, tmp_path: Path) -> None:
    own = decoder()
    method = {"method": "prompt", "prompt": {"tokens": 2}} if prompt_tuning else {"method": "lora", "rank": 2}
    adapt(own, load(AdapterConfig, method))
    both, terms, config = ActorCritic(own), PPOLossConfig(), load(RolloutConfig, {"prompts": 8, "minibatch": 8, "epochs": 2})
    rollouts = Rollouts(Policy(both, own, Letters()), Score(bandit), prompts(), config, terms.kl, tmp_path, 0)
    fit(PPO(both, rollouts, terms), train_config(4, 3e-2), tmp_path)
    divergence = [row["kl"] for row in rows(tmp_path)]
    assert abs(divergence[3]) > 1e-4 and (abs(divergence[0]) < 1e-5) != prompt_tuning
    assert rollouts._shares != prompt_tuning


def test_a_critic_of_its_own_is_trained_beside_the_policy(tmp_path: Path) -> None:
    own = decoder()
    critic = ScoredDecoder(without_words(decoder(5)))
    both, terms = ActorCritic(own, critic), load(PPOLossConfig, {"value_weight": 1.0})
    config = load(RolloutConfig, {"prompts": 16, "samples": 4, "minibatch": 8, "epochs": 4, "max_new_tokens": 3})
    reference = decoder()
    rollouts = Rollouts(Policy(both, own, Letters(), reference), Score(bandit), prompts(), config, terms.kl, tmp_path, 0)
    fit(PPO(both, rollouts, terms), train_config(64, 3e-3), tmp_path)
    explained = [row["value_explained"] for row in rows(tmp_path)]
    assert abs(explained[0]) < 1e-6 and max(explained[-16:]) > 0.2


def test_settings_of_the_paper_whiten_scores(tmp_path: Path) -> None:
    own = algorithm("ppo", tmp_path, Score(lambda ids, stopped: 100.0 + len(ids)), loss={"whiten_scores": True, "kl": {"beta": 0.0}})
    (batch,) = taken(own)
    assert abs(batch.figures["shaped_reward"]) < 1e-6 and batch.figures["reward"] > 100
    plain = algorithm("ppo", tmp_path, Score(lambda ids, stopped: 100.0), loss={"whiten_rewards": True, "kl": {"beta": 0.0}})
    (batch,) = taken(plain)
    assert torch.isfinite(batch.columns["advantage_K"]).all()


def test_a_stop_while_answers_are_drawn_saves_what_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = rollout.generate, iter(range(100))

    def stopped(*given: Any) -> Any:
        if next(asked) == 1:
            raise Interrupted(15)
        return made(*given)

    monkeypatch.setattr(rollout, "generate", stopped)
    with pytest.raises(Interrupted):
        fit(algorithm("grpo", tmp_path, Score(bandit)), train_config(6, checkpoint={"every_steps": 100}), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"], "all updates of the first rollout"
    fit(algorithm("grpo", tmp_path, Score(bandit)), train_config(6, checkpoint={"every_steps": 100}), tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("target", [None, 0.5])
def test_a_divergence_in_the_loss_is_watched_and_adapted_to(target: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = {"kl": {"beta": 0.1, "target": target, "horizon": 100, "warn": 1e-6}}
    own = algorithm("grpo", tmp_path, Score(bandit), loss=loss, rollout={"minibatch": 8, "epochs": 1})
    assert isinstance(own, GRPO) and own.measures == (target is not None), "nothing is measured before that the loss has itself"
    said: list[str] = []
    monkeypatch.setattr(rollout.progress, "say", said.append)
    fit(own, train_config(4), tmp_path)
    found = rows(tmp_path)
    assert abs(found[0]["kl"]) < 1e-6 < found[3]["kl"] and any("nats from the reference" in line for line in said)
    assert [row["beta"] for row in found[:2]] == [0.1, 0.1 if target is None else pytest.approx(0.1 * (1 - 0.2 * 64 / 100))]
