"""The model card: what the hub and transformers read from it, and that a run's texts cannot become markup."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from luyen.report.model_card import escape, model_card
from luyen.report.reading import open_run

from .toy_run import build


def test_the_hub_reads_the_front_matter(finished_run: Path) -> None:
    card = ModelCard(model_card(open_run(finished_run)))
    data = card.data.to_dict()
    assert data["language"] == ["en"] and data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    assert set(data["tags"]) >= {"luyen", "llama", "conversational"}
    assert "license" not in data, "the user's to choose"


def test_the_card_tells_figures_limits_use_and_lineage(finished_run: Path) -> None:
    card = model_card(open_run(finished_run)).replace("\u00a0", " ")
    for said in (
        "AutoModelForCausalLM.from_pretrained('chat/model')", "| chat | 3.1 million | 3.28 million | 0.210 | 1.400 | 2 min 22 s |",
        "invented an answer in 90 % of the cases", "Seed 7.", "recipe.resolved.yaml", "64.3 %", "+0.095",
    ):  # fmt: skip
        assert said in card, said


def test_an_unfinished_run_has_a_card_without_a_model(tmp_path: Path) -> None:
    card = model_card(open_run(build(tmp_path / "run", until="corpus")))
    assert "no finished model" in card and yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"


def test_texts_of_the_run_do_not_become_markup(tmp_path: Path) -> None:
    run = build(tmp_path / "run", hostile="\n# Title <script>x</script> [l](http://evil.example) | `c` ![i](x)\n---\n")
    card = model_card(open_run(run))
    body = card.split("---\n", 2)[2]
    assert "<script" not in body and "http://" not in body
    assert not re.search(r"(?<!\\)\](?=\()", body), "no link: every bracket of the text is escaped"
    assert [line for line in body.splitlines() if line.startswith("# ")] == [
        line for line in body.splitlines() if line.startswith("# quickstart")
    ]


def test_escape_by_hand() -> None:
    assert escape("a|b *c*\n<d>") == r"a\|b \*c\* &lt;d&gt;"
    assert escape("https://x.y") == "https:\u200b//x.y"
