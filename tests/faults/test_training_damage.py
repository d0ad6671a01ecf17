"""A damaged checkpoint is named and never loaded; the one before it is used, and the run still ends in the same bits."""

import random
import shutil

import pytest
from training_faults import newest, outcome
from training_toys import toy_algorithm, toy_config

from luyen.core import progress
from luyen.core.errors import DamagedFile
from luyen.engine.checkpoint import FILES, open_checkpoint
from luyen.engine.trainer import fit

ALL = sorted(FILES | {"luyen.json"})
CONFIG = {"steps": 6, "checkpoint": {"every_steps": 2, "keep_last": 3}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run with checkpoints 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    fit(toy_algorithm(), toy_config(**CONFIG), folder)
    return folder


def cuts(size):
    """Lengths that a file may be cut to: nothing, one byte, half, all but two bytes (the last of a JSON file is a mere newline)."""
    return sorted({0, 1, size // 2, size - 2})


@pytest.mark.parametrize("name", ALL)
def test_every_cut_and_a_missing_file_are_found(finished, tmp_path, name):
    folder = tmp_path / "checkpoint"
    shutil.copytree(newest(finished), folder)
    content = (folder / name).read_bytes()
    for length in cuts(len(content)):
        (folder / name).write_bytes(content[:length])
        with pytest.raises(DamagedFile, match=name.replace(".", r"\.")):
            open_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(DamagedFile, match=f"{name}: is missing"):
        open_checkpoint(folder)
    (folder / name).write_bytes(content)
    open_checkpoint(folder)


def flip_bits(finished, folder, name, bits):
    """Flip single bits of a file; every one is found, and nothing outside the folder is looked at."""
    shutil.copytree(newest(finished), folder)
    content = (folder / name).read_bytes()
    for bit in bits(len(content) * 8):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(broken)
        with pytest.raises(DamagedFile, match=f"{folder}/"):
            open_checkpoint(folder)


@pytest.mark.parametrize("name", ALL)
def test_a_hundred_flipped_bits_are_found(finished, tmp_path, name):
    flip_bits(finished, tmp_path / "checkpoint", name, lambda size: random.Random(name).sample(range(size), 100))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["luyen.json", "state.json", "timing.json"])
def test_every_single_bit_of_the_small_files(finished, tmp_path, name):
    flip_bits(finished, tmp_path / "checkpoint", name, range)


def test_files_of_two_checkpoints_do_not_mix(finished, tmp_path):
    folder = tmp_path / "checkpoint"
    for name in FILES - {"timing.json", "random.safetensors"}:  # two that may be equal
        shutil.copytree(newest(finished), folder)
        shutil.copy(finished / "checkpoints" / "step-00000004" / name, folder / name)
        with pytest.raises(DamagedFile, match=name.replace(".", r"\.")):
            open_checkpoint(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "luyen.json"])
def test_the_run_goes_on_from_the_one_before(finished, tmp_path, name, capsys):
    progress.use(progress.Plain())
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for step in (4, 6):
        path = folder / "checkpoints" / f"step-{step:08d}" / name
        path.write_bytes(path.read_bytes()[:-20])
    fit(toy_algorithm(), toy_config(**CONFIG), folder)
    assert outcome(folder) == outcome(finished)
    said = capsys.readouterr().out
    assert f"step-00000006/{name}" in said and f"step-00000004/{name}" in said and "continuing after step 2" in said


def test_when_none_is_good_the_run_starts_again_and_says_so(finished, tmp_path, capsys):
    progress.use(progress.Plain())
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in folder.glob("checkpoints/*/optimizer.safetensors"):
        path.write_bytes(b"")
    fit(toy_algorithm(), toy_config(**CONFIG), folder)
    assert outcome(folder) == outcome(finished)
    assert capsys.readouterr().out.count("damaged file") == 3
