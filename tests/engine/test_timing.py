"""Where a step's time goes: parts that add up, and operations that agree with a count by hand and with the estimate's."""

import json
import time

import pytest
import torch
from torch import nn
from training_toys import CONTEXT, VOCABULARY, toy_algorithm, toy_config, toy_model

from luyen.engine.timing import PARTS, Clock, OperationCount, row
from luyen.engine.trainer import Hooks, fit


def timings(folder):
    return [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]


def test_the_parts_of_a_step_add_up_to_it(tmp_path):
    fit(toy_algorithm(), toy_config(accumulation=2, evaluate_every=4), tmp_path, hooks=Hooks(rate=1e9))
    steps = [row for row in timings(tmp_path) if "seconds" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    for row_ in steps:
        assert set(row_) == {"step", "seconds", *PARTS, "tokens_per_second", "mfu", "peak_bytes"}
        assert sum(row_[part] for part in PARTS) == pytest.approx(row_["seconds"], abs=1e-5)
        assert min(row_["forward"], row_["backward"], row_["update"], row_["data"]) > 0
        assert row_["communication"] < 1e-3  # one process
        assert row_["other"] < 0.5 * row_["seconds"]
    apart = [row for row in timings(tmp_path) if "seconds" not in row]
    assert [(row["step"], *(set(row) - {"step"})) for row in apart] == [
        (0, "evaluate"), (4, "evaluate"), (8, "evaluate"), (8, "save"),
    ]  # fmt: skip


def test_time_goes_to_the_part_that_took_it():
    clock = Clock(torch.device("cpu"))
    clock.start()
    for part, seconds in [("data", 0.02), ("backward", 0.01), ("data", 0.02)]:
        with clock.part(part):
            time.sleep(seconds)
    time.sleep(0.01)
    found = clock.stop()
    assert found["data"] == pytest.approx(0.04, abs=0.015) and found["other"] == pytest.approx(0.01, abs=0.008)
    assert found["data"] > found["backward"] >= 0.01 and found["forward"] == 0
    clock.start()
    assert clock.stop()["data"] == 0


def test_operations_of_a_decoder_by_hand():
    """Two layers, width 16, 2 heads of 8, 1 key-value head, inner width 40, 48 tokens, tied or not."""
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 40
    for tied in (True, False):
        algorithm = toy_algorithm(tied=tied)
        count = OperationCount(algorithm.model)
        assert (count.token, count.target) == (6 * 2 * layer, 6 * 16 * VOCABULARY)
        assert count.pairs(3) == 6 * 2 * 2 * 8 * 9  # both products, forward and twice backward, over half of the square
        batch = next(algorithm.batches(None))[0]
        by_hand = 6 * 2 * layer * sum(batch.lengths) + 6 * 16 * VOCABULARY * batch.num_targets + 192 * sum(n * n for n in batch.lengths)
        assert count.of([batch]) == by_hand


def test_a_frozen_weight_costs_a_third_less_and_other_models_have_no_attention():
    model = toy_model()
    whole = OperationCount(model).token
    for parameter in model.parameters():
        parameter.requires_grad = False
    assert OperationCount(model).token == whole * 2 // 3
    plain = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 5))
    assert (OperationCount(plain).token, OperationCount(plain).target, OperationCount(plain).pairs(9)) == (120, 0, 0)


def test_a_token_costs_the_experts_it_goes_to_and_what_it_sees():
    """Four experts of width 12, two of them for a token, a router of 4 and a shared expert of 8 with its gate; a window in one layer."""
    variant = {"experts": {"count": 4, "per_token": 2, "intermediate_size": 12, "shared_size": 8}, "window": 4, "window_layers": [1]}
    count = OperationCount(toy_model(variant=variant))
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * (2 * 12 + 8) + 16 * 4 + 16
    assert count.token == 6 * 2 * layer
    # Of ten tokens each layer's half square is 50; behind a window of 4 lie 6 * 6 / 2 = 18 of it.
    assert count.pairs(10) == 12 * 16 * (50 + 32) and count.pairs(4) == 12 * 16 * (8 + 8)


def test_a_row_says_tokens_and_the_share_of_the_rate():
    found = row({"seconds": 2.0, "forward": 1.23456789}, tokens=CONTEXT, operations=6e9, rate=1e10, peak_bytes=7)
    assert found == {"seconds": 2.0, "forward": 1.234568, "tokens_per_second": 16.0, "mfu": 0.3, "peak_bytes": 7}
    assert "mfu" not in row({"seconds": 2.0}, tokens=1, operations=1.0, rate=None, peak_bytes=7)
