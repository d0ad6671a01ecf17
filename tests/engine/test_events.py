"""TensorBoard's files: the bytes of the format, what its own reader makes of them, and no step twice after a kill."""

import json

import pytest
from event_files import files, records, scalars_of
from training_toys import toy_algorithm, toy_config

from luyen.core import progress
from luyen.core.errors import StorageError
from luyen.engine.events import EventLog, crc32c, event, record
from luyen.engine.trainer import Hooks, fit


def test_the_checksum_is_the_one_of_rfc_3720():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43


def test_a_record_is_byte_for_byte_what_tensorboard_writes():
    """From tensorboard 2.21: RecordWriter over Event(wall_time=1.5, step=300, summary=[train/loss 2.5])."""
    message = event(1.5, 300, values={"train/loss": 2.5})
    assert message.hex() == "09000000000000f83f10ac022a130a110a0a747261696e2f6c6f73731500002040"
    assert record(message).hex() == "2100000000000000017becf6" + message.hex() + "b4ca3a3b"


def test_a_figure_beyond_fp32_is_infinite_and_ends_nothing():
    assert event(1.5, 1, values={"x": 1e39})[-4:].hex() == "0000807f" and event(1.5, 1, values={"x": -1e300})[-4:].hex() == "000080ff"
    assert event(1.5, 1, values={"x": float("nan")})[-4:].hex() == "0000c07f"


def test_every_figure_of_a_run_is_there_once(tmp_path):
    hooks = Hooks(evaluate=lambda: {"heldout_bits_per_byte": 2.5})
    fit(toy_algorithm(), toy_config(evaluate_every=4), tmp_path, hooks=hooks)
    (path,) = files(tmp_path)
    assert path.name == "events.out.tfevents.000001.luyen" and records(path)[0]["version"] == "brain.Event:2"
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for tag, name in [
        ("train/loss", "loss"),
        ("train/gradient_norm", "gradient_norm"),
        ("evaluation/heldout_bits_per_byte", "heldout_bits_per_byte"),
    ]:
        expected = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in logged if name in row]
        assert [(found["step"], found[tag]) for found in scalars_of(tmp_path) if tag in found] == expected and expected
    assert sum("time/forward" in found for found in scalars_of(tmp_path)) == 8
    assert [found["step"] for found in scalars_of(tmp_path) if "time/save" in found] == [8]


def broken(algorithm, after):
    plain = algorithm.batches

    def batches(state):
        for number, item in enumerate(plain(state)):
            if number == after:
                raise RuntimeError("power cut")
            yield item

    algorithm.batches = batches
    return algorithm


def test_after_kills_no_step_is_there_twice_and_none_is_missing(tmp_path):
    config = toy_config(steps=12, checkpoint={"every_steps": 4})
    for after in (3, 6, 3, 2):  # dies in step 4, 7, 8, 7
        with pytest.raises(RuntimeError):
            fit(broken(toy_algorithm(), after), config, tmp_path)
        (tmp_path / "tensorboard" / "mine.txt").write_text("stays")
    fit(toy_algorithm(), config, tmp_path)
    (tmp_path / "tensorboard" / "mine.txt").unlink()
    assert [found["step"] for found in scalars_of(tmp_path) if "train/loss" in found] == list(range(1, 13))
    assert [path.name for path in files(tmp_path)] == [f"events.out.tfevents.{number:06d}.luyen" for number in (2, 5)]
    assert [found for found in records(files(tmp_path)[1])[:2]] == [{"step": 0, "version": "brain.Event:2"}, {"step": 5, "restarts": True}]


def test_a_missing_file_is_said_and_nothing_is_written_before_the_first_figure(tmp_path, capsys):
    progress.use(progress.Plain())
    log = EventLog(tmp_path / "events", 4, {"file": 3, "bytes": 100})
    assert "has 0 bytes, the checkpoint was made when it had 100: earlier scalars are lost" in capsys.readouterr().out
    assert not (tmp_path / "events").exists() and log.position() == {"file": 3, "bytes": 100}
    log.add(5, {"x": 1.0})
    log.close()
    assert [path.name for path in (tmp_path / "events").iterdir()] == ["events.out.tfevents.000004.luyen"]


def test_a_full_disk_is_said(tmp_path):
    log = EventLog(tmp_path)
    log._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 (closed by close)
    with pytest.raises(StorageError, match="No space left"):
        log.add(1, {"x": 1.0})
    log.close()


def test_tensorboard_reads_it(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = toy_config(steps=6, checkpoint={"every_steps": 2})
    with pytest.raises(RuntimeError):
        fit(broken(toy_algorithm(), 3), config, tmp_path)
    fit(toy_algorithm(), config, tmp_path)
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(item.step, pytest.approx(item.value)) for item in found.Scalars("train/loss")] == [
        (row["step"], row["loss"]) for row in logged
    ]
