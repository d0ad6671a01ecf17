"""The estimate of a run in several processes, on a GPU or in half precision is that of one process of its layout."""

import pytest
import torch

from luyen.core.config import load
from luyen.engine import cost, estimate
from luyen.engine.config import TrainConfig
from luyen.engine.cost import Batch, Layout, Training
from luyen.engine.estimate import Estimate, Speed, estimate_training, update_work
from luyen.models.presets import preset

MODEL = preset("llama-1m", 512)
HEAD = 4 * MODEL.vocab_size * MODEL.hidden_size
STEPS, ACCUMULATION, ROWS, LENGTH = 3, 4, 6, 64
SPEED = Speed(operations=1e11, bytes=1e10)


def made(**values: object) -> Estimate:
    given = {"steps": STEPS, "accumulation": ACCUMULATION, "device": "cpu", "schedule": {"warmup_steps": 0}, **values}
    return estimate_training(MODEL, load(TrainConfig, given), ROWS, LENGTH)


def counted(layout: Layout, accumulation: int, rows: int = ROWS, half: bool = False, offload: bool = False, gpu: bool = False) -> float:
    batch = Batch(rows, accumulation, LENGTH)
    return cost.memory(Training(MODEL, batch, TrainConfig().optimizer, "none", half, offload, gpu=gpu), layout).total


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun tells a process of four."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)


def test_one_process_has_all_of_it() -> None:
    found = made()
    assert found.own.seconds(SPEED) == pytest.approx(found.work.seconds(SPEED)) == found.seconds(SPEED)
    assert found.bytes == int(counted(Layout(), ACCUMULATION) - HEAD) and found.told == "" and found.rows == ROWS


@pytest.mark.usefixtures("four")
def test_groups_of_the_processes_that_were_started_share_the_rows() -> None:
    """Without any key four processes are four groups; each has whole weights and one of the four micro-batches."""
    found, alone = made(), made(parallel={"data": 1})
    update = update_work(MODEL, "adamw") * STEPS
    assert found.tokens == alone.tokens == STEPS * ACCUMULATION * ROWS * LENGTH
    assert found.layout == Layout(data=4) and alone.layout == Layout()
    assert found.work == alone.work == alone.own, "work is that of the whole run, whatever the layout"
    assert found.own.operations == pytest.approx(alone.own.operations / 4)
    assert found.own.bytes == pytest.approx((alone.own.bytes - update.bytes) / 4 + update.bytes)  # every group updates all weights
    assert found.bytes == int(counted(Layout(data=4), 1) - HEAD)
    assert found.told == "of each of 4 processes (data 4); their exchange is not counted"


@pytest.mark.usefixtures("four")
def test_a_micro_batch_that_several_processes_share_is_cut() -> None:
    found = made(accumulation=2)
    assert found.rows == ROWS // 2 and found.bytes == int(counted(Layout(data=4), 1, rows=ROWS // 2) - HEAD)


def test_a_layout_that_was_not_started_is_counted_as_it_is_asked_for() -> None:
    """`luyen plan` is asked in one process about a recipe for four."""
    alone, found = made(), made(parallel={"shard": 4})
    assert found.own.operations == pytest.approx(alone.own.operations / 4) and found.own.bytes == pytest.approx(alone.own.bytes / 4)
    assert found.bytes == int(counted(Layout(shard=4), 1) - HEAD) < alone.bytes


def test_what_splits_a_layer_splits_its_work_and_the_same_rows() -> None:
    alone, tensor, context = made(), made(parallel={"tensor": 2}), made(parallel={"context": 2})
    assert tensor.seconds(SPEED) == pytest.approx(alone.seconds(SPEED) / 2)
    assert tensor.bytes == int(counted(Layout(tensor=2), ACCUMULATION) - HEAD / 2)
    assert alone.seconds(SPEED) / 2 < context.seconds(SPEED) < alone.seconds(SPEED)  # each updates all weights
    assert context.bytes == int(counted(Layout(context=2), ACCUMULATION) - HEAD)


def test_a_pipeline_waits_and_its_last_stage_has_the_head() -> None:
    assert MODEL.num_layers % 2 == 0
    alone, two = made(), made(parallel={"pipeline": 2})
    share = alone.own.operations / 2 / (1 - 1 / (ACCUMULATION + 1))
    assert share < two.own.operations < 2 * share
    assert two.bytes <= counted(Layout(pipeline=2), ACCUMULATION)
    finer = made(parallel={"pipeline": 2, "pipeline_pieces": 3})
    assert finer.seconds(SPEED) < two.seconds(SPEED) and finer.rows == ROWS // 3 and finer.bytes < two.bytes
    assert made(parallel={"pipeline": 2, "pipeline_stages": 2}).seconds(SPEED) < two.seconds(SPEED)


def test_half_precision_keeps_half_activations_and_copies_of_weights() -> None:
    assert made(precision="bf16").bytes == int(counted(Layout(), ACCUMULATION, half=True) - HEAD) < made().bytes


def test_a_gpu_is_counted_as_the_plan_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "pick_device", lambda name: torch.device("cuda"))
    for offload in (False, True):
        found = made(precision="bf16", parallel={"offload": offload})
        assert found.bytes == int(counted(Layout(), ACCUMULATION, half=True, offload=offload, gpu=True))
        assert ("host" in found.told) == offload
