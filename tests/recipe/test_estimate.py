"""What is said before a run: every stage has a line, amounts are counted where they exist, what is not known is said to be so."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy import write_recipe  # noqa: E402

from luyen.cli.verb import command  # noqa: E402
from luyen.core import manifest  # noqa: E402
from luyen.core.config import load, parse_overrides  # noqa: E402
from luyen.engine.algorithm import Hooks, TrainResult  # noqa: E402
from luyen.engine.config import TrainConfig  # noqa: E402
from luyen.engine.estimate import (  # noqa: E402
    ATTENTION_SHARE,
    FIRST_STEP_BYTES,
    HEAD_SHARE,
    LIBRARIES_BYTES,
    MATRIX_SHARE,
    MOVED_BYTES,
    UPDATE_BYTES,
    UPDATE_SHARE,
    Speed,
    estimate_training,
    evaluations,
    token_work,
    update_work,
)
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.presets import count_parameters, preset  # noqa: E402
from luyen.recipe import estimate, training  # noqa: E402
from luyen.recipe.configs import PretrainConfig  # noqa: E402
from luyen.recipe.estimate import (  # noqa: E402
    ANSWER_SHARE,
    CURATION_BYTES,
    TRAINING_BYTES,
    Outlook,
    Prediction,
    lines,
    of_stage,
    predict,
)
from luyen.recipe.graph import Plan, find_recipe, plan  # noqa: E402
from luyen.recipe.run import run, up_to_date  # noqa: E402
from luyen.recipe.stage import Stage  # noqa: E402

QUICK = Speed(operations=207e9, bytes=40e9)
"""The machine of the quickstart's measured run: two cores of an AMD EPYC (Milan)."""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not this machine's speed, so that every figure here is fixed."""
    monkeypatch.setattr(estimate, "measure_speed", lambda device, dtype: QUICK)
    monkeypatch.setattr(estimate, "measure_pace", lambda *_: 1.0)
    monkeypatch.setattr(estimate, "pace", lambda: 1.0)


def train(**values: object) -> TrainConfig:
    return load(TrainConfig, {"schedule": {"warmup_steps": 0}, **values})


def tiny() -> TransformerConfig:
    sizes = {"hidden_size": 4, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 8}
    return load(TransformerConfig, {"vocab_size": 10, "context_length": 8, "tied": True, **sizes})


def test_work_of_a_token_is_the_sum_of_its_parts() -> None:
    # q and o 4x4, k and v 2x4, three 8x4 and three norms of 4; the head is 10x4.
    layers, head, attention = 16 + 16 + 8 + 8 + 96 + 12, 40, 1 * 4 * 8
    whole, third = token_work(tiny(), 8), token_work(tiny(), 8, 0.25)
    assert whole.operations == pytest.approx(6 * (layers / MATRIX_SHARE + head / HEAD_SHARE + attention / ATTENTION_SHARE))
    assert whole.bytes == MOVED_BYTES * 4
    assert whole.operations - third.operations == pytest.approx(6 * 0.75 * head / HEAD_SHARE)  # only the head is spared


def test_muon_pays_for_its_iterations_and_every_update_for_its_bytes() -> None:
    square, narrow, tall = 4 * 4**3 + 2 * 4**3, 4 * 2**2 * 4 + 2 * 2**3, 4 * 4**2 * 8 + 2 * 4**3
    assert update_work(tiny(), "muon").operations == pytest.approx(5 * (2 * square + 2 * narrow + 3 * tall) / UPDATE_SHARE)
    assert update_work(tiny(), "adamw").operations == 0
    assert {update_work(tiny(), name).bytes for name in ("adamw", "muon")} == {UPDATE_BYTES * count_parameters(tiny())}


@pytest.mark.parametrize(("steps", "every", "times"), [(150, 75, 3), (300, 100, 4), (10, 4, 4), (10, 0, 2), (10, 20, 2)])
def test_evaluations_are_counted_as_the_loop_does_them(steps: int, every: int, times: int) -> None:
    due = {0, steps} | {step for step in range(steps + 1) if every and step % every == 0}
    assert evaluations(train(steps=steps, evaluate_every=every)) == times == len(due)


def test_the_measured_runs_are_met() -> None:
    """Seconds of the loop and peak bytes: the quickstart's two stages, and bench/pretrain.py's 2.65 s for a step of 4,096 tokens."""
    small = preset("llama-2m", 2048, context_length=256)
    base = estimate_training(small, train(steps=150, optimizer={"name": "muon"}), 12, 256)
    chat = estimate_training(small, train(steps=300, optimizer={"name": "muon"}), 12, 256, ANSWER_SHARE)
    assert base.seconds(QUICK) == pytest.approx(59.8, rel=0.1)
    assert chat.seconds(QUICK) == pytest.approx(105.8, rel=0.1)
    assert base.bytes + LIBRARIES_BYTES + FIRST_STEP_BYTES == pytest.approx(
        663e6, rel=0.1
    )  # the stage alone, without what curation leaves in the process
    larger = estimate_training(preset("llama-15m", 8192), train(steps=1), 8, 512)
    assert larger.seconds(Speed(185e9, 37e9)) == pytest.approx(2.65, rel=0.1)


def test_recomputed_activations_cost_another_forward() -> None:
    model = preset("llama-1m", 512)
    kept, again = (estimate_training(model, train(activations=mode), 4, 64) for mode in ("none", "full"))
    updates = (update_work(model, "adamw") * TrainConfig().steps).seconds(QUICK)  # are done once either way
    assert again.seconds(QUICK) - updates == pytest.approx(4 / 3 * (kept.seconds(QUICK) - updates))
    assert again.bytes < kept.bytes


def quickstart(*overrides: str) -> Plan:
    return plan(find_recipe("quickstart"), parse_overrides(overrides))


def test_every_stage_of_the_quickstart_has_a_time_near_the_measured() -> None:
    found = predict(quickstart())
    measured = {"pages": 0.31, "corpus": 1.27, "tokenizer": 0.12, "base": 62.5, "questions": 0.38, "chat": 108.96, "before_after": 27.27}
    assert list(found) == list(measured)
    for name, seconds in measured.items():
        assert found[name].seconds == pytest.approx(seconds, rel=0.25, abs=0.05), name
    peaks = {
        "pages": 0.39e9,
        "corpus": 0.58e9,
        "tokenizer": 0.57e9,
        "base": 0.91e9,
        "questions": 0.62e9,
        "chat": 0.89e9,
        "before_after": 0.90e9,
    }
    for name, peak in peaks.items():
        assert found[name].bytes == pytest.approx(peak, rel=0.1), name


def test_a_gpus_memory_holds_no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = predict(quickstart())["base"].bytes
    monkeypatch.setattr(estimate, "counts_gpu", lambda train: True)
    process = LIBRARIES_BYTES + CURATION_BYTES + FIRST_STEP_BYTES + TRAINING_BYTES
    assert usual is not None and predict(quickstart())["base"].bytes == usual - process


def test_a_stage_that_was_not_foretold_expects_the_same_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage by itself, in a process where nothing was curated before."""
    made = quickstart()
    config = {stage.name: stage for stage in made.stages}["base"].config
    assert isinstance(config, PretrainConfig)
    model = Outlook({stage.name: stage for stage in made.stages}, {}).model(config)
    assert model is not None
    stage, result = Stage("base", tmp_path, 0), TrainResult(1, 1, 1, 1.0, {}, 1.0, 1, None)
    monkeypatch.setattr(training, "fit", lambda *_, **__: result)
    training.train_stage(None, config.train, stage, Hooks(), of_stage(config, model))  # type: ignore[arg-type]
    foretold = predict(made)["base"].bytes
    assert foretold is not None and stage.facts["estimate"]["bytes"] == foretold - CURATION_BYTES


def test_a_crawl_of_the_web_takes_its_pauses() -> None:
    found = predict(quickstart("pages.start=[https://a.example/x,https://b.example/]", "pages.max_pages=100", "pages.delay_seconds=2"))
    assert found["pages"].seconds == 100 * 2 / 2  # two hosts wait at the same time
    assert "servers" in found["pages"].told and "at most 100" in found["pages"].told


def test_a_model_of_unknown_size_is_not_known_before(tmp_path: Path) -> None:
    told = lines(predict(quickstart("chat.model=some/model")))
    assert any(line.startswith("  chat: not known before (the model's size") for line in told)
    assert any(line.startswith("  before_after: not known before") for line in told)
    assert "without chat, before_after" in told[-1]


def test_the_total_sums_what_is_known() -> None:
    told = lines({"a": Prediction(60.0, 2 * 10**9, "x"), "b": Prediction(60.0, 10**9, "y"), "c": Prediction(None, None, "why")}, ("d",))
    assert told[1:4] == ["  a: about 60 s, 2.0 GB (x)", "  b: about 60 s, 1.0 GB (y)", "  c: not known before (why)"]
    assert told[4] == "  together: about 2.0 min, at most 2.0 GB at a time, without c; up to date and not counted: d"
    assert lines({}, ("d",)) == []


def test_stages_that_are_up_to_date_are_not_counted_and_give_their_amounts(tmp_path: Path) -> None:
    made = plan(write_recipe(tmp_path), parse_overrides(["base.train.steps=1", "chat.train.steps=1"]))
    first = predict(made)
    assert list(first) == [stage.name for stage in made.stages]
    run(made, tmp_path / "run", {name: item.as_dict() for name, item in first.items()})
    manifests = {name: json.loads((tmp_path / "run" / name / "luyen.json").read_text()) for name in first}
    for name, item in first.items():
        assert manifests[name]["estimate"] == item.as_dict(), name
        assert manifests[name]["peak_bytes"] > 1e7, name
    assert list(up_to_date(made, tmp_path / "run")) == list(first)
    assert predict(made, up_to_date(made, tmp_path / "run")) == {}
    changed = plan(tmp_path / "toy.yaml", parse_overrides(["base.train.steps=1", "chat.train.steps=2"]))
    done = up_to_date(changed, tmp_path / "run")
    assert list(done) == ["corpus", "tokenizer", "base", "questions"]
    again = predict(changed, done)
    assert list(again) == ["chat", "before_after"]
    asked = {json.loads(line)["set"]: 0 for line in (tmp_path / "run/questions/evaluation.jsonl").read_text().splitlines()}
    for line in (tmp_path / "run/questions/evaluation.jsonl").read_text().splitlines():
        asked[json.loads(line)["set"]] += 1
    assert again["before_after"].told.startswith(f"{sum(min(4, count) for count in asked.values())} questions")


def test_a_stage_alone_still_records_its_estimate(tmp_path: Path) -> None:
    made = plan(write_recipe(tmp_path), parse_overrides(["base.train.steps=1", "chat.train.steps=1"]))
    run(dataclasses.replace(made, stages=made.stages[:3]), tmp_path / "run")
    said = json.loads((tmp_path / "run/base/luyen.json").read_text())["estimate"]
    assert said["seconds"] > 0 and said["bytes"] > 1e8


def test_a_training_verb_says_its_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    made = plan(write_recipe(tmp_path), {})
    run(dataclasses.replace(made, stages=made.stages[:2]), tmp_path / "run")
    words = [f"data={tmp_path}/run/corpus", f"tokenizer={tmp_path}/run/tokenizer", "model.preset=llama-1m", "model.num_layers=1"]
    words += ["train.steps=1", "batch.rows=1", "batch.length=64", "train.device=cpu"]
    capsys.readouterr()
    command("pretrain").main(words, standalone_mode=False)
    out = capsys.readouterr().out
    assert out.index("estimate for this machine") < out.index("  pretrain: about ") < out.index("training: 1/1")
    assert "together" not in out, "one stage needs no sum"
    said = json.loads((tmp_path / "runs/pretrain/pretrain/luyen.json").read_text())["estimate"]
    assert said["counted"] in out


def test_what_goes_on_is_told_by_what_is_left_and_kept_whole() -> None:
    whole = predict(quickstart())["base"]
    later = predict(quickstart(), {}, {"base": 75})["base"]
    assert later.as_dict()["seconds"] == whole.as_dict()["seconds"] and later.left == 0.5
    (line,) = [line for line in lines({"base": later}) if line.startswith("  base")]
    assert "continues after step 75 of 150" in line and f"about {whole.seconds / 2:.0f} s" in line  # type: ignore[operator]


def test_several_processes_are_told_as_each_of_them() -> None:
    alone, shared = (
        predict(quickstart("base.train.optimizer.name=adamw", f"base.train.parallel.shard={count}"))["base"] for count in (1, 4)
    )
    assert alone.seconds and shared.seconds and alone.bytes and shared.bytes
    assert shared.seconds < alone.seconds / 2 and shared.bytes < alone.bytes
    apart = "each is taken to have a machine of this one's speed and memory to itself"
    assert shared.told == f"{alone.told}; of each of 4 processes (shard 4); their exchange is not counted; {apart}"


def test_memory_of_a_run_that_goes_on_is_near_the_measured(tmp_path: Path) -> None:
    """The quickstart stopped in its first training, and run again: curation's libraries are not in the new process, the loop's are."""
    done = {name: tmp_path / name for name in ("pages", "corpus", "tokenizer")}
    for folder in done.values():
        folder.mkdir()
        manifest.seal(folder, "data", metrics={"train": {"bytes": 175_000}})
    found = predict(quickstart(), done, {"base": 75})
    for name, peak in {"base": 0.74e9, "questions": 0.44e9, "chat": 0.705e9}.items():
        assert found[name].bytes == pytest.approx(peak, rel=0.06), name
