"""The fair table on a model that was made elsewhere: `before.model=DIR` in the place of the base that the recipe trains."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from toy import write_pages  # noqa: E402

from luyen.core.config import parse_overrides  # noqa: E402
from luyen.models import hf  # noqa: E402
from luyen.models.config import TransformerConfig  # noqa: E402
from luyen.models.transformer import Transformer  # noqa: E402
from luyen.recipe.graph import find_recipe, plan  # noqa: E402
from luyen.recipe.run import run  # noqa: E402
from luyen.report.page import render  # noqa: E402
from luyen.report.reading import open_run  # noqa: E402
from luyen.tokenizer.train import TokenizerConfig, train  # noqa: E402

KEPT = ("corpus", "known", "task", "before", "full", "lora", "learned")
WAYS = ("full", "lora")


def few_ways(folder: Path) -> Path:
    """The recipe with the stages that a few ways need, on pages made here."""
    recipe = yaml.safe_load(find_recipe("adapters").read_text(encoding="utf-8"))
    recipe["stages"] = {name: recipe["stages"][name] for name in KEPT}
    recipe["stages"]["corpus"] |= {"source": str(write_pages(folder / "pages")), "quality": "none"}
    models = {name: name for name in ("before", *WAYS)}
    recipe["stages"]["learned"] |= {"models": models, "examples": 1, "sampling": {"max_new_tokens": 2}}
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def foreign_model(folder: Path) -> Path:
    """A model whose tokenizer knows no chat template."""
    folder.mkdir()
    train(["Sum the numbers of page one."] * 3, TokenizerConfig(vocab_size=290)).save(folder)
    (folder / "chat_template.jinja").unlink()
    torch.manual_seed(0)
    size = TransformerConfig(vocab_size=290, hidden_size=32, intermediate_size=64, num_layers=4, num_heads=2, context_length=256)
    hf.save(Transformer(size), folder)
    return folder


@pytest.mark.slow
def test_any_model_can_be_what_is_tuned(tmp_path: Path) -> None:
    model = foreign_model(tmp_path / "model")
    words = [f"{name}.{key}" for name in ("before", *WAYS) for key in ("train.steps=2", "train.device=cpu", "batch.rows=1")]
    made = plan(few_ways(tmp_path), parse_overrides([f"before.model={model}", "before.template=zephyr", *words]))
    run(made, tmp_path / "run")
    text = render(open_run(tmp_path / "run")).replace("\xa0", " ")
    assert not (tmp_path / "run" / "base").exists()
    assert "All began as before." in text and all(f"  {name}" in text for name in WAYS)
