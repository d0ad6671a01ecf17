"""Sections on reward models, on aligned models as they learned, and on what alignment changed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from luyen.core.files import write_jsonl
from luyen.core.manifest import seal
from luyen.core.storage import write_json
from luyen.report.alignment_changes import alignment_changed, changes, compared, told
from luyen.report.alignment_policies import hacked, outline, policies, rewards_of
from luyen.report.alignment_rewards import reward_models, warnings
from luyen.report.blocks import Charts, Facts, Limits, Note, Section, Table
from luyen.report.model_card import model_card
from luyen.report.next_steps import suggestions
from luyen.report.page import render
from luyen.report.reading import Run, open_run
from luyen.report.run_sections import outcome

REWARD = {"model": "scorer"}
STAGES: dict[str, dict[str, Any]] = {
    "chat": {"do": "sft", "model": "base"},
    "scorer": {"do": "reward", "model": "chat"},
    "best": {"do": "reject", "model": "chat", "reward": REWARD},
    "paid": {"do": "ppo", "model": "best", "reward": REWARD, "train": {"steps": 4}},
    "liked": {"do": "dpo", "model": "chat"},
    "after": {"do": "evaluate", "models": {"before": "chat", "best": "best", "paid": "paid", "liked": "liked"}},
}
RIGHT = {"before": 0.3, "best": 0.35, "paid": 0.8, "liked": 0.1}
EVALUATION: dict[str, Any] = {
    "pairs": 400, "accuracy": 0.62, "interval": 0.047, "count": 400, "falls_with_the_grade": False,
    "by_grade": {"better": {"accuracy": 0.6, "interval": 0.07, "count": 180},
                 "slightly_better": {"accuracy": 0.64, "interval": 0.06, "count": 220}},
    "by_data_set": {"<b>hh</b>": {"accuracy": 0.62, "interval": 0.047, "count": 400}},
    "calibration": {"ece": 0.08, "bins": [{"expected": 0.2, "found": 0.3, "pairs": 200}, {"expected": 0.8, "found": 0.7, "pairs": 200}]},
    "length": {"longer_wins": 0.4, "longer_was_chosen": 0.42, "correlation": -0.2}, "longer_answer": {"accuracy": 0.41},
    "word_counts": {"accuracy": 0.63}, "beside": {"agree": 0.7, "second_accuracy": 0.6},
    "judges": {"elder": {"accuracy": 0.7, "verdicts": 90, "unusable": 3, "reward_model": 0.65}},
}  # fmt: skip


def write_run(folder: Path, score: tuple[float, ...] = (0.3, 0.5, 0.2)) -> Path:
    folder.mkdir()
    (folder / "recipe.resolved.yaml").write_text(yaml.safe_dump({"version": 1, "name": "aligned", "stages": STAGES}, sort_keys=False))
    kinds = {"reward": "reward", "evaluate": "evaluation"}
    for name, stage in STAGES.items():
        (folder / name).mkdir()
        fill(folder / name, str(stage["do"]), score)
        config = {key: value for key, value in stage.items() if key != "do"}
        seal(folder / name, kinds.get(str(stage["do"]), "model"), config=config, verb=stage["do"], state="done", metrics={})
    return folder


def fill(folder: Path, verb: str, score: tuple[float, ...]) -> None:
    if verb == "reward":
        write_json(folder / "evaluation.json", EVALUATION)
    elif verb == "reject":
        write_jsonl(folder / "drawn.jsonl", [{"id": "a", "number": n, "answer": "x", "reward": n / 10} for n in range(10)])
        write_json(folder / "curve.json", {"rows": [{"answers": k, "max": k / 10, "median": 0.4} for k in range(1, 5)]})
    elif verb == "ppo":
        rows: list[dict[str, Any]] = [
            {"step": n, "loss": 1.0, "reward": n / 2, "kl": 0.1 * n, "length": 20 + n, "entropy": 2 - 0.1 * n} for n in range(1, 5)
        ]
        write_jsonl(folder / "metrics.jsonl", [*rows, *({"step": 2 * n, "heldout_reward": n, "score": s} for n, s in enumerate(score))])
        write_jsonl(folder / "samples.jsonl", [{"step": n, "prompt": "Hi?", "answer": f"said <i>at</i> {n}"} for n in (0, 2, 4)])
        (folder / "rollouts" / "iteration-000003").mkdir(parents=True)
        rollout = [{"prompt": 0, "answer": "x", "score": 0.5 + n / 10} for n in range(10)]
        write_jsonl(folder / "rollouts" / "iteration-000003" / "answers.jsonl", rollout)
    elif verb == "dpo":
        write_jsonl(folder / "metrics.jsonl", [{"step": n, "margin": n, "heldout_accuracy": 0.5 + n / 10} for n in range(3)])
    elif verb == "evaluate":
        rows = [{"model": model, "set": "taught", "exact_match": right} for model, right in RIGHT.items()]
        bits = [{"model": model, "heldout_bits_per_byte": 2.0 + right} for model, right in RIGHT.items()]
        write_json(folder / "results.json", {"rows": rows, "forgetting": bits})
        answers = [{"model": model, "set": "taught", "id": str(n), "exact_match": float((7 * n) % 20 < 20 * right)}
                   for model, right in RIGHT.items() for n in range(20)]  # fmt: skip
        write_jsonl(folder / "answers.jsonl", answers)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(write_run(tmp_path_factory.mktemp("aligned") / "run"))


def notes(section: Section) -> str:
    return " ".join(block.text for block in section.blocks if isinstance(block, Note))


def test_only_what_the_interval_shows_is_claimed(run: Run) -> None:
    stage = run.finished("evaluation")[0]
    pairs = compared(run, stage)
    assert sorted(pairs) == [("before", "best"), ("before", "liked"), ("before", "paid")], "an aligned ancestor is not the model before"
    found = {change.after: change for change in changes(run, stage, pairs)}
    assert {name: change.verdict for name, change in found.items()} == {"best": "", "paid": "better", "liked": "worse"}
    assert found["paid"].interval is not None and found["paid"].interval[0] > 0 and found["paid"].difference == pytest.approx(0.5)
    said = told(list(found.values()))
    assert len(said) == 3 and "No improvement of best over before" in " ".join(said)
    assert any("paid is better on" in line for line in said) and any("liked is worse on" in line for line in said)
    tables = [block for block in alignment_changed(run, Limits()).blocks if isinstance(block, Table)]
    assert "+0.500" in {tables[1].cells(row)[4][1].text for row in tables[1].rows}


def test_an_aligned_model_is_told_as_one_that_chats(run: Run) -> None:
    stage = next(stage for stage in run.stages if stage.name == "liked")
    assert outcome(run, replace(stage, manifest={**stage.manifest, "metrics": {"parameters": 12}})) == "a chat model of 12 parameters"


def test_without_answers_nothing_is_claimed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "after" / "answers.jsonl").unlink()
    said = notes(alignment_changed(open_run(folder), Limits()))
    assert said.count("No improvement") == 3 and "better on" not in said


def test_an_invented_share_that_falls_is_better(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows = [{"model": model, "set": "invented", "invented": 1.0 if model == "before" else 0.2} for model in ("before", "paid")]
    write_json(folder / "after" / "results.json", {"rows": rows})
    answers = [{**row, "id": str(n), "invented": float(row["model"] == "before" or n < 4)} for row in rows for n in range(20)]
    write_jsonl(folder / "after" / "answers.jsonl", answers)
    opened = open_run(folder)
    stage = opened.finished("evaluation")[0]
    (change,) = changes(opened, stage, [("before", "paid")])
    assert change.difference < 0 and change.verdict == "better"


def test_a_reward_model_is_told_with_what_is_suspicious(run: Run) -> None:
    section = reward_models(run, Limits())
    said = notes(section)
    assert "does not fall with the grade" in said and "the shorter answer wins (59.0" in said and "better than guessing" not in said
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert [table.cells(row)[0][1].text for row in table.rows] == ["better", "slightly better", "<b>hh</b>", "elder", "all pairs"]
    assert any(isinstance(block, Charts) and "expected 20" in block.items[0][2] for block in section.blocks)
    assert warnings({**EVALUATION, "falls_with_the_grade": True, "accuracy": 0.9}) == []
    assert len(warnings({**EVALUATION, "accuracy": 0.52})) == 3


def test_policies_show_curves_answers_and_rewards(run: Run) -> None:
    section = policies(run, Limits())
    charts = [item for block in section.blocks if isinstance(block, Charts) for item in block.items]
    assert len(charts) == 1 + 5 + 2 + 1, "best of K; four curves and the true score; two of the preferences; the distributions"
    assert all(said and "<svg" in svg for svg, _, said in charts)
    assert "please what scores it" in notes(section)
    tables = {block.caption: block for block in section.blocks if isinstance(block, Table)}
    assert tables["The same prompts at each evaluation"].columns == ("Prompt", "Step 0", "Step 2", "Step 4")
    versions = tables["Numbers are those in the drawing"]
    assert [versions.cells(row)[2][1].text for row in versions.rows] == ["0.450", "0.950"], "scored by the same thing, so on one axis"
    assert rewards_of(run, next(stage for stage in run.stages if stage.name == "liked")) == []
    assert any(isinstance(block, Facts) for block in section.blocks)


def test_hacking_is_a_reward_that_rises_while_the_score_falls() -> None:
    assert hacked([(0, 0.0, 0.3), (2, 1.0, 0.5), (4, 2.0, 0.2)])
    assert not hacked([(0, 0.0, 0.3), (2, 1.0, 0.5), (4, 2.0, 0.6)])
    assert not hacked([(0, 0.0, 0.3), (2, 1.0, 0.5), (4, 0.5, 0.2)]) and not hacked([(0, 0.0, 0.3)])


def test_an_outline_holds_every_reward() -> None:
    x, y = outline([0.0, 0.5, 1.0, 1.0], 0.0, 1.0)
    assert sum(y) / 2 == pytest.approx(100) and y[-2] == 50 and (x[0], x[-1]) == (0.0, 1.0)


def test_the_page_holds_the_sections_and_the_last_model_is_the_card_s(run: Run) -> None:
    page = render(run)
    assert all(f'id="{name}"' in page for name in ("alignment", "rewards", "policies"))
    assert "<b>hh</b>" not in page and "<i>at</i>" not in page
    assert "conversational" in model_card(run)
    assert suggestions(run)[0].command.startswith("luyen chat")


def test_damaged_files_leave_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for path in ("scorer/evaluation.json", "best/curve.json", "paid/metrics.jsonl", "after/results.json"):
        (folder / path).write_text(json.dumps([1, {"rows": "x"}])[:-1])
    assert 'id="policies"' in render(open_run(folder))


def test_a_run_without_alignment_has_none_of_the_sections(finished_run: Path) -> None:
    page = render(open_run(finished_run))
    assert not any(f'id="{name}"' in page for name in ("alignment", "rewards", "policies"))
