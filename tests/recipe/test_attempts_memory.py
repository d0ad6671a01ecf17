"""Memory of a stage that took several processes: the greatest peak stands beside the greatest prediction."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy import write_recipe  # noqa: E402

from luyen.core import host_memory, manifest  # noqa: E402
from luyen.core.errors import Interrupted  # noqa: E402
from luyen.recipe import run as running  # noqa: E402
from luyen.recipe.graph import Plan, plan  # noqa: E402
from luyen.recipe.stage import Stage  # noqa: E402


def one_stage(folder: Path) -> Plan:
    whole = plan(write_recipe(folder), {})
    return Plan(**{**vars(whole), "stages": whole.stages[:1]})


def attempt(monkeypatch: pytest.MonkeyPatch, made: Plan, folder: Path, peak: int, expected: int | None, stops: bool, gpu: int = 0) -> None:
    """A process that holds at most `peak` bytes, or `gpu` on a GPU, where `expected` were foretold."""

    def verb(config: object, stage: Stage) -> None:
        if gpu:
            stage.facts["peak_bytes"] = gpu
        (stage.folder / "part").write_text("x")
        if stops:
            raise Interrupted(2)

    monkeypatch.setattr(host_memory, "peak", lambda: peak)
    monkeypatch.setattr(running, "load_verb", lambda name: SimpleNamespace(run=verb))
    running.run(made, folder, {"corpus": {"seconds": 1.0, "bytes": expected, "counted": "x"}})


@pytest.mark.parametrize(("first", "second"), [((900, 840), (750, 660)), ((750, 660), (900, 840))])
def test_the_fullest_process_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: tuple[int, int], second: tuple[int, int]
) -> None:
    made = one_stage(tmp_path)
    with pytest.raises(Interrupted):
        attempt(monkeypatch, made, tmp_path / "run", *first, stops=True)
    attempt(monkeypatch, made, tmp_path / "run", *second, stops=False)
    found = manifest.read(tmp_path / "run/corpus")
    assert (found["peak_bytes"], found["estimate"]["bytes"]) == (900, 840)
    assert found["estimate"]["counted"] == "x" and found["seconds"] >= 0


def test_a_gpus_peak_is_kept_and_what_was_not_foretold_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = one_stage(tmp_path)
    with pytest.raises(Interrupted):
        attempt(monkeypatch, made, tmp_path / "run", 5000, None, stops=True, gpu=70)
    attempt(monkeypatch, made, tmp_path / "run", 5000, None, stops=False, gpu=60)
    found = manifest.read(tmp_path / "run/corpus")
    assert found["peak_bytes"] == 70 and found["estimate"]["bytes"] is None
