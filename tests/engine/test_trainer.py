"""The loop: what it logs, that splitting a step or stopping it changes nothing, and what it refuses."""

import inspect
import json
import random

import numpy
import pytest
import torch
from torch.nn import functional
from training_toys import toy_algorithm, toy_config, toy_model

from luyen.algorithms.pretrain import Pretrain
from luyen.core import interrupt, progress
from luyen.core.errors import ConfigError, DataError, Interrupted
from luyen.data.loader import Batch
from luyen.engine import checkpoint, trainer
from luyen.engine.trainer import Hooks, fit
from luyen.objectives.loss import Loss


def rows(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def weights(algorithm):
    return {name: parameter.detach().clone() for name, parameter in algorithm.model.named_parameters()}


def largest_difference(left, right):
    return max((left[name] - right[name]).abs().max().item() for name in left)


def test_the_loop_is_short_and_names_no_algorithm():
    text = inspect.getsource(trainer)
    assert len(text.splitlines()) < 100
    assert "algorithms" not in text and "pretrain" not in text.lower()


def test_the_log_has_a_row_for_every_step_and_no_times(tmp_path):
    hooks = Hooks(evaluate=lambda: {"heldout_bits_per_byte": 2.5}, samples=lambda: [{"prompt": "a", "answer": "b"}])
    result = fit(toy_algorithm(), toy_config(evaluate_every=4), tmp_path, hooks=hooks)
    steps = [row for row in rows(tmp_path) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert set(steps[0]) == {"step", "loss", "learning_rate", "gradient_norm", "tokens", "targets"}
    assert [row["step"] for row in rows(tmp_path) if "heldout_bits_per_byte" in row] == [0, 4, 8]
    assert rows(tmp_path, "samples") == [{"step": step, "prompt": "a", "answer": "b"} for step in (0, 4, 8)]
    timed = [row for row in rows(tmp_path, "timings") if "seconds" in row]
    assert [row["step"] for row in timed] == list(range(1, 9))
    assert (result.steps, result.tokens, result.loss) == (8, steps[-1]["tokens"], steps[-1]["loss"])
    assert result.evaluation == {"heldout_bits_per_byte": 2.5} and 0 < result.targets < result.tokens
    assert result.seconds > 0 and result.peak_bytes > 1e6


def test_the_first_update_is_the_mean_gradient_of_all_targets(tmp_path):
    """Against torch's own cross entropy with mean reduction and plain AdamW over one sequence at a time."""
    algorithm = toy_algorithm(rows=3)
    reference = toy_model()
    batch = next(algorithm.batches(None))[0]
    hidden = torch.cat([reference(piece[None])[0] for piece in batch.tokens_T.split(batch.lengths)])
    loss = functional.cross_entropy(reference.logits(hidden), batch.targets_T)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
    matrices = [p for name, p in reference.named_parameters() if "proj" in name]
    others = [p for name, p in reference.named_parameters() if "proj" not in name]
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], **settings).step()
    fit(algorithm, toy_config(steps=1, optimizer={"learning_rate": 1e-2, "clip_norm": 0.1}), tmp_path)
    row = rows(tmp_path)[0]
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert row["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert largest_difference(weights(algorithm), {name: p.detach() for name, p in reference.named_parameters()}) < 2e-5


@pytest.mark.parametrize("rows_per_batch, accumulation", [(4, 2), (1, 8)])
def test_accumulation_does_not_change_the_gradient(tmp_path, rows_per_batch, accumulation):
    """1 x 8 = 8 x 1 (transformers once averaged micro-batches instead: PR #34191)."""
    whole, split = toy_algorithm(rows=8), toy_algorithm(rows=rows_per_batch)
    fit(whole, toy_config(steps=12), tmp_path / "whole", seed=1)
    fit(split, toy_config(steps=12, accumulation=accumulation), tmp_path / "split", seed=1)
    for one, many in zip(rows(tmp_path / "whole"), rows(tmp_path / "split"), strict=True):
        assert (one["tokens"], one["targets"]) == (many["tokens"], many["targets"])
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-5 if one["step"] > 1 else 1e-6)


def test_stopping_and_continuing_ends_in_the_same_bits(tmp_path):
    def run(folder, stops):
        for stop in [*stops, None]:
            algorithm = toy_algorithm()
            hooks = Hooks(evaluate=lambda: {"x": torch.rand(()).item()})  # random numbers of a hook must not reach the run

            def batches(state, algorithm=algorithm, stop=stop):
                for number, item in enumerate(algorithm.stream.batches(state)):
                    if number == stop:
                        raise RuntimeError("power cut")
                    yield item

            algorithm.batches = batches
            config = toy_config(steps=20, evaluate_every=6, checkpoint={"every_steps": 4}, optimizer={"name": "muon"})
            if stop is None:
                return weights(algorithm), fit(algorithm, config, folder, hooks=hooks)
            with pytest.raises(RuntimeError, match="power cut"):
                fit(algorithm, config, folder, hooks=hooks)
        return None

    plain, result = run(tmp_path / "plain", [])
    broken, resumed = run(tmp_path / "broken", [3, 6, 9, 0])
    assert largest_difference(plain, {name: p for name, p in broken.items()}) == 0
    for name in ("metrics", "samples"):
        assert (tmp_path / "plain" / f"{name}.jsonl").read_bytes() == (tmp_path / "broken" / f"{name}.jsonl").read_bytes()
    assert (result.tokens, result.loss, result.evaluation) == (resumed.tokens, resumed.loss, resumed.evaluation)


def test_an_evaluation_leaves_no_trace_in_the_random_numbers(tmp_path):
    def draw():
        return {"x": torch.rand(()).item() + random.random() + numpy.random.random()}

    def noisy():
        algorithm = toy_algorithm()
        algorithm.loss = lambda batch: Loss(Pretrain.loss(algorithm, batch).total * (1 + torch.rand(())), batch.num_targets)
        return algorithm

    losses = []
    for name, hooks in [("with", Hooks(evaluate=draw)), ("without", Hooks())]:
        fit(noisy(), toy_config(evaluate_every=2), tmp_path / name, hooks=hooks)
        losses.append([row["loss"] for row in rows(tmp_path / name) if "loss" in row])
    assert losses[0] == losses[1]


def test_a_finished_run_is_not_done_again(tmp_path, monkeypatch):
    first = fit(toy_algorithm(), toy_config(), tmp_path)
    algorithm = toy_algorithm(seed=3)
    algorithm.loss = None
    monkeypatch.setattr(checkpoint, "save", None)  # a checkpoint that is there is not written again
    second = fit(algorithm, toy_config(), tmp_path)
    assert (first.steps, first.tokens, first.loss) == (second.steps, second.tokens, second.loss)
    assert second.seconds >= 0


def test_a_signal_stops_at_the_end_of_the_step_with_a_checkpoint(tmp_path):
    with interrupt.listening():
        algorithm = toy_algorithm()
        plain_loss = algorithm.loss

        def loss(batch):
            if len(calls := algorithm.__dict__.setdefault("calls", [])) == 2:
                interrupt._handle(15, None)
            calls.append(1)
            return plain_loss(batch)

        algorithm.loss = loss
        with pytest.raises(Interrupted) as caught:
            fit(algorithm, toy_config(), tmp_path)
    assert caught.value.exit_code == 143
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    fit(toy_algorithm(), toy_config(), tmp_path)
    fit(toy_algorithm(), toy_config(), tmp_path / "plain")
    assert (tmp_path / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()


def test_a_signal_during_an_evaluation_saves_before_it(tmp_path):
    def evaluate(stop):
        if stop and len(rows(tmp_path)) > 3:
            interrupt._handle(2, None)
            interrupt.check()
        return {"x": 1.0}

    config = toy_config(evaluate_every=4)
    with interrupt.listening(), pytest.raises(Interrupted):
        fit(toy_algorithm(), config, tmp_path, hooks=Hooks(evaluate=lambda: evaluate(True)))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    fit(toy_algorithm(), config, tmp_path, hooks=Hooks(evaluate=lambda: evaluate(False)))
    assert [row["step"] for row in rows(tmp_path) if "x" in row] == [0, 4, 8]


def test_another_config_or_thread_count_is_noticed(tmp_path, capsys):
    progress.use(progress.Plain())
    fit(toy_algorithm(), toy_config(), tmp_path)
    with pytest.raises(ConfigError, match=r"another config: optimizer\.learning_rate; found 0\.01 there; expected 0\.02"):
        fit(toy_algorithm(), toy_config(optimizer={"learning_rate": 2e-2}), tmp_path)
    with pytest.raises(ConfigError, match="seed"):
        fit(toy_algorithm(), toy_config(), tmp_path, seed=1)
    fit(toy_algorithm(), toy_config(checkpoint={"every_steps": 3}), tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        fit(toy_algorithm(), toy_config(), tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert f"made with threads {threads} (now {threads + 1})" in capsys.readouterr().out


def test_a_step_without_targets_is_an_error(tmp_path):
    algorithm = toy_algorithm()
    empty = Batch(torch.zeros(3, dtype=torch.int64), torch.full((3,), -100), (3,), ("empty-1",), 0)
    algorithm.batches = lambda state: iter([(empty, {})])
    with pytest.raises(DataError, match="step 1 trains on nothing; found no targets in empty-1"):
        fit(algorithm, toy_config(), tmp_path)


def test_a_loss_that_miscounts_is_caught(tmp_path):
    algorithm = toy_algorithm()
    algorithm.loss = lambda batch: Loss(Pretrain.loss(algorithm, batch).total, batch.num_targets + 1)
    with pytest.raises(AssertionError, match="the loss counts"):
        fit(algorithm, toy_config(), tmp_path)


def test_further_means_are_sums_over_all_micro_batches(tmp_path):
    algorithm = toy_algorithm(rows=1)
    algorithm.loss = lambda batch: Loss(
        Pretrain.loss(algorithm, batch).total, batch.num_targets, {"length": (torch.tensor(float(sum(batch.lengths))), len(batch.lengths))}
    )
    fit(algorithm, toy_config(steps=1, accumulation=3), tmp_path)
    batches = [batch for batch, _ in zip(toy_algorithm(rows=1).batches(None), range(3), strict=False)]
    lengths = [length for batch, _ in batches for length in batch.lengths]
    assert rows(tmp_path)[0]["length"] == pytest.approx(sum(lengths) / len(lengths))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_the_same_within_its_rounding(tmp_path, precision):
    exact = fit(toy_algorithm(), toy_config(steps=6), tmp_path / "fp32")
    rough = fit(toy_algorithm(), toy_config(steps=6, precision=precision), tmp_path / precision)
    assert rough.loss != exact.loss and rough.loss == pytest.approx(exact.loss, rel=2e-2)


def test_fp16_overflow_skips_the_update_and_lowers_the_scale(tmp_path):
    algorithm = toy_algorithm()
    before = weights(algorithm)
    algorithm.loss = lambda batch: (lambda loss: Loss(loss.total * 1e34, loss.count))(Pretrain.loss(algorithm, batch))
    fit(algorithm, toy_config(steps=2, precision="fp16"), tmp_path)
    assert [row["loss_scale"] for row in rows(tmp_path)] == [32768.0, 16384.0]
    assert largest_difference(before, weights(algorithm)) == 0
