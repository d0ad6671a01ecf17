"""Reward models out to transformers' classifiers and back, and what must be refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from luyen.core.errors import ModelError
from luyen.models import hf, scored_files
from luyen.models.scored import ScoredDecoder, without_words
from tests.models.family_toys import theirs, tokens
from tests.models.toys import IDS, toy

CLASSIFIERS = ("llama 3", "mistral", "qwen2", "qwen3, layer types", "mixtral", "qwen2_moe, windows", "qwen3_moe, some layers")


def scored(outputs: int = 1, **changes: object) -> ScoredDecoder:
    model = ScoredDecoder(without_words(toy(num_kv_heads=2, **changes)), outputs)
    torch.nn.init.normal_(model.score.weight)
    return model


@pytest.mark.parametrize("outputs", [1, 2])
def test_transformers_gives_the_same_numbers_and_we_those_of_what_it_saves(tmp_path: Path, outputs: int) -> None:
    model = scored(outputs, tied=False)
    scored_files.save(model, tmp_path, bos_id=1, stop_ids=(2,), pad_id=0)
    twin, account = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not account["missing_keys"] and not account["unexpected_keys"] and type(twin).__name__ == "LlamaForSequenceClassification"
    padded = torch.cat([IDS, torch.zeros(1, 2, dtype=torch.long)], 1)
    expected = twin(padded, attention_mask=(padded != 0).long()).logits
    torch.testing.assert_close(model.scores(model(IDS)[:, -1]), expected)
    twin.save_pretrained(tmp_path / "back", max_shard_size="200KB")
    back = scored_files.load(tmp_path / "back")
    assert back.score.weight.shape == (outputs, 32)
    torch.testing.assert_close(back.scores(back(IDS)[:, -1]), expected)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_family_with_a_classifier(tmp_path: Path, name: str) -> None:
    theirs(name).save_pretrained(tmp_path / "words")
    model = ScoredDecoder(without_words(hf.load(tmp_path / "words")))
    torch.nn.init.normal_(model.score.weight)
    (tmp_path / "reward").mkdir()
    scored_files.save(model, tmp_path / "reward", pad_id=0)
    ids = tokens(1, 12).clamp_min(1)
    twin, account = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", output_loading_info=True)
    assert not account["missing_keys"] and not account["unexpected_keys"]
    back = scored_files.load(tmp_path)  # as the folder of a stage
    torch.testing.assert_close(back.scores(back(ids)[:, -1]), twin.eval()(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_family_without_a_classifier_is_told(tmp_path: Path) -> None:
    theirs("olmoe").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no classifier"):
        scored_files.save(ScoredDecoder(without_words(hf.load(tmp_path))), tmp_path)


def test_a_padding_token_that_ends_answers_is_left_out(tmp_path: Path) -> None:
    scored_files.save(scored(), tmp_path, stop_ids=(2, 3), pad_id=3)
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] is None


def test_one_kind_is_not_taken_for_the_other(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    hf.save(toy(), tmp_path / "model")
    with pytest.raises(ModelError, match="no reward model: it writes words.*LlamaForCausalLM.*luyen reward"):
        scored_files.load(tmp_path)
    scored_files.save(scored(), tmp_path)
    with pytest.raises(ModelError, match="is a reward model, which gives a number"):
        hf.load(tmp_path)
    with pytest.raises(ModelError, match="is a reward model"):
        hf.read_config(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match="not a model"):
        scored_files.load(empty)


def test_the_map_stays_exact_in_half_precision(tmp_path: Path) -> None:
    model = scored()
    scored_files.save(model, tmp_path)
    half = scored_files.load(tmp_path, dtype=torch.bfloat16)
    assert half.decoder.head_weight.dtype == torch.bfloat16 and torch.equal(half.score.weight, model.score.weight)


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    scored_files.save(scored(), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(ModelError, match="score.weight does not fit"):
        scored_files.load(tmp_path)


def test_a_chat_model_is_still_read_by_transformers(tmp_path: Path) -> None:
    model = toy()
    hf.save(model, tmp_path)
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, model.logits(model(IDS)))
