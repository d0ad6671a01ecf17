"""A whole run that is killed again and again ends in the bits of one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipe"))

from toy import write_recipe  # noqa: E402

from luyen.core import manifest  # noqa: E402

STEPS = 12


def start(folder: Path, run: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "luyen.cli.main", "run", "toy.yaml", "--out", run]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(random.randrange(1000))}
    return subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def fingerprint(run: Path) -> dict[str, str]:
    """sha256 of everything that must come out the same: results, loss logs, and the last checkpoints' whole state."""
    found = {}
    for stage in ("corpus", "tokenizer", "base", "questions", "chat", "before_after"):
        for name in manifest.verify(run / stage)["files"]:
            if not name.endswith("luyen.json"):
                found[f"{stage}/{name}"] = manifest.sha256_file(run / stage / name)
        for folder in sorted((run / stage / "checkpoints").glob("step-*"))[-1:]:
            for path in sorted([*folder.glob("*.safetensors"), folder / "state.json"]):
                found[f"{stage}/{folder.name}/{path.name}"] = manifest.sha256_file(path)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], float]:
    folder = tmp_path_factory.mktemp("killed")
    write_recipe(folder, steps=STEPS, every=3)
    started = time.monotonic()
    process = start(folder, "calm")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return folder, fingerprint(folder / "calm"), time.monotonic() - started


def disturb(folder: Path, run: str, seconds: float, number: signal.Signals, stops: int, seed: int) -> None:
    """Stop the run `stops` times at random moments, then let it finish."""
    chance = random.Random(seed)
    stopped = 0
    while True:
        process = start(folder, run)
        if stopped < stops:
            time.sleep(chance.uniform(1.0, max(seconds * 0.8, 2.0)))
            if process.poll() is None:
                process.send_signal(number)
                stopped += 1
                process.communicate(timeout=100)
                assert process.returncode in (-number, 128 + number, 0), process.returncode
                continue
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
        return


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_a_run_stopped_at_random_moments_ends_in_the_same_bits(
    undisturbed: tuple[Path, dict[str, str], float], number: signal.Signals
) -> None:
    folder, wanted, seconds = undisturbed
    disturb(folder, number.name, seconds, number, stops=3, seed=int(number))
    found = fingerprint(folder / number.name)
    assert {key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)} == set()
    assert any("metrics.jsonl" in key for key in wanted) and any("optimizer.safetensors" in key for key in wanted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_forty_kills_end_in_the_same_bits(undisturbed: tuple[Path, dict[str, str], float]) -> None:
    folder, wanted, seconds = undisturbed
    for round_number in range(10):
        disturb(folder, f"storm-{round_number}", seconds, signal.SIGKILL, stops=4, seed=100 + round_number)
        assert fingerprint(folder / f"storm-{round_number}") == wanted


def test_the_log_of_a_stopped_run_tells_what_happened(undisturbed: tuple[Path, dict[str, str], float]) -> None:
    folder, _, seconds = undisturbed
    process = start(folder, "told")
    while process.poll() is None and not (folder / "told" / "base" / "timings.jsonl").is_file():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 143, output
    assert "Go on with: luyen run toy.yaml --out told" in output and "Traceback" not in output
    rows = [json.loads(line) for line in (folder / "told" / "events.jsonl").read_text().splitlines()]
    assert rows[-1]["event"] == "interrupted"
    assert (folder / "told" / "report.html").is_file(), "also a run that stopped has a report"
