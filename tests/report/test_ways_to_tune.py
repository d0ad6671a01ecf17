"""Stages that tuned the same model, on one table."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from luyen.core.manifest import seal
from luyen.core.storage import write_json
from luyen.report.blocks import Limits, Note, Table
from luyen.report.headline import headline
from luyen.report.model_card import model_card
from luyen.report.page import render
from luyen.report.reading import open_run
from luyen.report.ways_to_tune import ways_to_tune

WAYS: dict[str, dict[str, Any]] = {
    "full": {"data": "task"},
    "mixed": {"data": ["task", "known"]},
    "lora": {"data": "task", "adapter": {"method": "lora"}},
    "qlora": {"data": "task", "adapter": {"method": "lora"}, "quantize": "nf4"},
}
FIGURES = {  # trained, right on the task, right on the known, bits, seconds
    "before": (1000, 0.1, 0.8, 2.0, 9.0), "full": (1000, 0.9, 0.3, 2.6, 40.0), "mixed": (1000, 0.88, 0.79, 2.1, 41.0),
    "lora": (50, 0.87, 0.6, 2.05, 35.0), "qlora": (50, 0.5, 0.55, 2.2, 44.0),
}  # fmt: skip


def write_run(folder: Path, ways: dict[str, dict[str, Any]] = WAYS) -> Path:
    stages: dict[str, dict[str, Any]] = {
        "before": {"do": "sft", "model": "base", "data": "known"},
        **{name: {"do": "sft", "model": "before", **way} for name, way in ways.items()},
        **{name: {"do": "evaluate", "questions": asked, "models": {model: model for model in ("before", *ways)}}
           for name, asked in (("learned", "task"), ("kept", "known"))},
    }  # fmt: skip
    folder.mkdir()
    (folder / "recipe.resolved.yaml").write_text(yaml.safe_dump({"version": 1, "name": "adapters", "stages": stages}, sort_keys=False))
    for name, stage in stages.items():
        (folder / name).mkdir()
        config = {key: value for key, value in stage.items() if key != "do"}
        if stage["do"] == "sft":
            trained, *_, seconds = FIGURES[name]
            facts: dict[str, Any] = {"metrics": {"trained": trained, "parameters": 1000}, "seconds": seconds, "peak_bytes": 5e8}
        else:
            place = 1 if name == "learned" else 2
            rows = [{"model": model, "set": "taught", "exact_match": FIGURES[model][place]} for model in ("before", *ways)]
            bits = [{"model": model, "heldout_bits_per_byte": FIGURES[model][3]} for model in ("before", *ways)]
            write_json(folder / name / "results.json", {"rows": rows, "forgetting": bits})
            facts = {"metrics": {}}
        kind = "model" if stage["do"] == "sft" else "evaluation"
        seal(folder / name, kind, config=config, verb=stage["do"], state="done", **facts)
    return folder


def shown(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Cells of the table by stage, and the notes."""
    section = ways_to_tune(open_run(folder), Limits())
    table = next(block for block in section.blocks if isinstance(block, Table))
    rows = {cells[0][1].text.split()[1]: [cell.text for _, cell, _ in cells] for cells in map(table.cells, table.rows)}
    return rows, [block.text for block in section.blocks if isinstance(block, Note)]


def test_every_way_has_what_it_learned_what_it_forgot_and_what_it_cost(tmp_path: Path) -> None:
    rows, notes = shown(write_run(tmp_path / "run"))
    assert list(rows) == list(WAYS)
    plain = [cell.replace("\xa0", " ") for cell in rows["lora"]]
    assert plain[1:] == ["50", "–", "87.0 %", "-20.0 points", "+0.050", "500 MB", "35 s"]
    assert rows["full"][4] == "-50.0 points" and rows["mixed"][4] == "-1.0 points"
    assert notes[0].replace("\xa0", " ") == "Best on the task, within 5 points of 90.0 %: full, mixed and lora."
    assert "fewest trained weights: lora (50); least forgotten text: lora (0.050 bits per byte); shortest: lora" in notes[1]


def test_one_way_alone_or_none_by_an_adapter_is_no_comparison(tmp_path: Path) -> None:
    assert not ways_to_tune(open_run(write_run(tmp_path / "one", {"lora": WAYS["lora"]})), Limits()).blocks
    whole = {name: WAYS[name] for name in ("full", "mixed")}
    assert not ways_to_tune(open_run(write_run(tmp_path / "whole", whole)), Limits()).blocks


def test_the_headline_takes_the_best_way_and_not_the_last(tmp_path: Path) -> None:
    top = headline(open_run(write_run(tmp_path / "run")))
    assert top.title.replace("\xa0", " ") == "Of 4 ways to tune before, full learned most: 90 % of its task's taught questions exactly."
    assert "Against before it has -50 points on other tasks' questions and +0.600 bits per byte of held-out text" in top.sentences[0]
    assert top.figures[0][1] == "of taught questions exactly right by full, the best of 4 ways"
    assert not any("qlora" in told for told in (top.title, *top.sentences))
    alone = headline(open_run(write_run(tmp_path / "one", {"lora": WAYS["lora"]})))
    assert alone.title.startswith("It answered 87")


@pytest.mark.parametrize("present", [True, False])
def test_the_page_has_the_section_only_where_there_is_something_to_compare(present: bool, tmp_path: Path) -> None:
    page = render(open_run(write_run(tmp_path / "run", WAYS if present else {"lora": WAYS["lora"]})))
    assert ('id="tuning"' in page) is present


def test_the_card_and_the_curves_know_an_adapter(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"qlora": WAYS["qlora"]})
    (run / "qlora" / "adapter").mkdir()
    (run / "qlora" / "adapter" / "adapter_config.json").write_text("{}")
    opened = open_run(run)
    card = model_card(opened)
    assert "PeftModel.from_pretrained" in card and "luyen merge BASE qlora/adapter" in card and "on the base in nf4" in card
    assert "frozen; lora trained 50 on a base in nf4" in render(opened).replace("\xa0", " ")
