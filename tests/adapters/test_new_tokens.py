"""Rows for new tokens: old ones keep their bits, the new ones alone learn beside an adapter, and PEFT reads and writes the same."""

from pathlib import Path
from typing import Any

import adapter_toys as toys
import pytest
import torch
from torch import Tensor

from luyen.adapters import files, merged
from luyen.adapters.adapt import adapt, merge_in_place
from luyen.adapters.count import trained_weights
from luyen.adapters.merge import Plan, open_adapter
from luyen.adapters.new_tokens import NewRows, grow, new_rows, train_rows
from luyen.core.errors import ModelError
from luyen.engine.optim import split_parameters
from luyen.models import hf
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer

OLD = toys.SIZE.vocab_size
NEW = range(OLD, OLD + 3)


def tokens() -> Tensor:
    """Old and new ones."""
    return torch.cat([toys.tokens()[:, :40], torch.tensor([[*NEW, 5, *NEW]])], 1)


def logits(model: Transformer) -> Tensor:
    with torch.no_grad():
        return model.logits(model(tokens()))


def grown(tied: bool, **values: Any) -> Transformer:
    """With three new tokens beside an adapter."""
    model = toys.model(tied=tied)
    grow(model, OLD, OLD + 3)
    torch.manual_seed(1)
    adapt(model, toys.config(**values))
    train_rows(model, NEW)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_old_rows_keep_their_bits_and_new_ones_begin_as_their_mean(tied: bool) -> None:
    plain, model = toys.model(tied=tied), toys.model(tied=tied)
    grow(model, OLD, OLD + 3)
    assert model.config.vocab_size == OLD + 3
    for before, now in ((plain.model.embed_tokens.weight, model.model.embed_tokens.weight), (plain.head_weight, model.head_weight)):
        assert torch.equal(before, now[:OLD]) and now.shape == (OLD + 3, 32) and now.requires_grad
        torch.testing.assert_close(now[OLD:], before.mean(0).expand(3, -1))
    with torch.no_grad():
        assert torch.equal(plain.logits(plain(toys.tokens())), model.logits(model(toys.tokens()))[..., :OLD])


def test_rows_that_no_token_has_are_used_first() -> None:
    model = toys.model()
    before = model.head_weight.detach().clone()
    grow(model, OLD - 5, OLD - 3)
    assert model.config.vocab_size == OLD and torch.equal(model.head_weight[OLD - 3 :], before[OLD - 3 :])
    torch.testing.assert_close(model.head_weight[OLD - 5], before[: OLD - 5].mean(0))
    with pytest.raises(ModelError, match="fewer rows than its tokenizer"):
        grow(model, OLD + 1, OLD + 2)


@pytest.mark.parametrize("tied", [False, True])
def test_the_new_rows_alone_learn_as_they_would_in_a_whole_table(tied: bool) -> None:
    model = grown(tied, rank=4)
    whole = toys.model(tied=tied)
    grow(whole, OLD, OLD + 3)
    for each in (model, whole):
        with torch.no_grad():
            head = each.model.embed_tokens if tied else each.lm_head
            table = head.rows.weight if isinstance(head, NewRows) else head.weight[OLD:]
            table.add_(torch.arange(3)[:, None] / 10)
        found = each.logits(each(tokens()))
        torch.nn.functional.cross_entropy(found[0], tokens()[0].roll(-1)).backward()
    for name, module in new_rows(model):
        slope = whole.get_parameter(f"{name}.weight").grad
        assert slope is not None and module.rows.weight.grad is not None and module.base.weight.grad is None
        torch.testing.assert_close(module.rows.weight.grad, slope[OLD:])
    assert len(list(new_rows(model))) == (1 if tied else 2)
    model.to(torch.bfloat16)
    assert logits(model).dtype == torch.bfloat16


def test_an_update_leaves_the_table_and_rows_of_the_embedding_do_not_decay() -> None:
    model = grown(False, rank=4)
    table, head = model.model.embed_tokens, model.lm_head
    assert isinstance(table, NewRows) and isinstance(head, NewRows)
    before = table.base.weight.detach().clone()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.1)
    model.logits(model(tokens())).square().mean().backward()
    optimizer.step()
    assert torch.equal(before, table.base.weight)
    assert torch.equal(model.head_weight[:OLD], toys.model().head_weight) and not torch.equal(model.head_weight[OLD:], head.base.weight[:3])
    _, matrices, plain = split_parameters(model)
    assert any(each is table.rows.weight for each in plain) and any(each is head.rows.weight for each in matrices)


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "dora": {"method": "dora", "rank": 4}, "adalora": {"method": "adalora", "rank": 4}, "ia3": {"method": "ia3"},
    "bottleneck": {"method": "bottleneck"}, "prompt": {"method": "prompt", "prompt": {"tokens": 4}},
    "prefix": {"method": "prefix", "prompt": {"tokens": 4}}, "selective": {"method": "selective", "also": ["norms"]},
    "norms": {"rank": 4, "also": ["norms"]}, "head": {"rank": 4, "also": ["head"]}, "whole": {"rank": 4, "also": ["embeddings", "head"]},
}  # fmt: skip


def saved(model: Transformer, folder: Path, tied: bool, **values: Any) -> tuple[Path, Path]:
    """The folders of the base and of a shaken adapter."""
    (folder / "base").mkdir(parents=True)
    hf.save(toys.model(tied=tied), folder / "base")
    toys.shake(model)
    base = folder / "base"
    return base, files.save(model, toys.config(**values), folder / "adapter", base=str(base), digest=files.weights_digest(base))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_folder_opens_as_the_model_and_merges_into_a_plain_one(kind: str, tied: bool, tmp_path: Path) -> None:
    values = {**METHODS[kind]}
    if tied and "also" in values:
        values["also"] = [name for name in values["also"] if name != "head"]
    model = grown(tied, **values).eval()
    _, folder = saved(model, tmp_path, tied, **values)
    again = files.open_model(folder)
    assert again.config.vocab_size == OLD + 3 and torch.equal(logits(model), logits(again))
    torch.testing.assert_close(model.logits(model(tokens())), logits(again), rtol=1e-4, atol=1e-4)  # with gradients
    if kind in ("bottleneck", "prompt", "prefix"):
        return
    merge_in_place(again)
    assert not list(new_rows(again)) and set(again.state_dict()) == set(toys.model(tied=tied).state_dict())
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)
    if "embeddings" not in values.get("also", []):
        assert torch.equal(again.model.embed_tokens.weight[:OLD], toys.model(tied=tied).model.embed_tokens.weight)


def test_the_count_without_the_model_is_the_same() -> None:
    for tied in (False, True):
        model = grown(tied, rank=4)
        size = TransformerConfig(**{**toys.SIZE.model_dump(), "tied": tied})
        found = sum(each.numel() for each in model.parameters() if each.requires_grad)
        assert found == trained_weights(size, toys.config(rank=4), 3) == trained_weights(size, toys.config(rank=4)) + 3 * 32 * (2 - tied)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["lora", "dora", "adalora", "norms", "head", "whole"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_opens_ours(kind: str, tied: bool, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    values = {**METHODS[kind]}
    if tied and "also" in values:
        values["also"] = [name for name in values["also"] if name != "head"]
    model = grown(tied, **values).eval()
    base, folder = saved(model, tmp_path, tied, **values)
    plain = transformers.LlamaForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(OLD + 3, mean_resizing=False)
    theirs = peft.PeftModel.from_pretrained(plain, folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=tokens()).logits, logits(model), rtol=1e-5, atol=1e-5)
    assert not peft.set_peft_model_state_dict(theirs, files.read_tensors(folder)).unexpected_keys


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", ["list", "tables", "old"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_we_open_those_of_peft(form: str, tied: bool, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    (tmp_path / "base").mkdir()
    hf.save(toys.model(tied=tied), tmp_path / "base")
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    ids: Any = [OLD - 1, 4, 9] if form == "old" else list(NEW)
    if form != "old":
        plain.resize_token_embeddings(OLD + 3, mean_resizing=False)
        with torch.no_grad():  # as nobody trains it here, the head is the same in both
            plain.get_output_embeddings().weight[OLD:] = plain.get_output_embeddings().weight[:OLD].double().mean(0).float()
    named = {"embed_tokens": ids, "lm_head": ids} if form == "tables" else ids
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", trainable_token_indices=named)
    theirs = peft.get_peft_model(plain, config)
    with torch.no_grad():
        for index, (_, parameter) in enumerate(theirs.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.1)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    ours = files.open_model(tmp_path / "theirs")
    text = toys.tokens() if form == "old" else tokens()
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(text)), theirs.eval()(input_ids=text).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_merging_writes_the_rows_and_leaves_the_old_ones(tied: bool, tmp_path: Path) -> None:
    model = grown(tied, rank=4).eval()
    base, folder = saved(model, tmp_path, tied, rank=4)
    result = merged.merge(str(base), [str(folder)], Plan(), tokens()[0])
    merged.check(result)
    assert result.model.config.vocab_size == OLD + 3
    assert torch.equal(result.model.model.embed_tokens.weight[:OLD], toys.model(tied=tied).model.embed_tokens.weight)
    torch.testing.assert_close(logits(result.model), logits(model), rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="several adapters bring new tokens"):
        merged.merge(str(base), [str(folder), str(folder)], Plan(), tokens()[0])
    with pytest.raises(ModelError, match="new tokens is merged into a model alone"):
        merged.merge(str(base), [str(folder)], Plan(), tokens()[0], as_adapter=True)


def test_taken_off_the_model_is_as_it_was(tmp_path: Path) -> None:
    model = grown(False, rank=4)
    base, folder = saved(model, tmp_path, False, rank=4)
    plain = hf.load(base)
    opened = open_adapter(plain, folder, files.weights_digest(base))
    assert opened.whole["lm_head.weight"].shape[0] == OLD + 3
    assert plain.config.vocab_size == OLD
    assert all(torch.equal(tensor, toys.model().state_dict()[name]) for name, tensor in plain.state_dict().items())


def test_another_base_is_refused(tmp_path: Path) -> None:
    model = grown(False, rank=4)
    _, folder = saved(model, tmp_path, False, rank=4)
    (tmp_path / "other").mkdir()
    hf.save(toys.model(seed=9), tmp_path / "other")
    with pytest.raises(ModelError, match="trained on other weights"):
        files.load_into(hf.load(tmp_path / "other"), folder, files.weights_digest(tmp_path / "other"))
    with pytest.raises(ModelError, match=f"no row for the token {OLD - 1}"):
        files.load_into(toys.model(vocab_size=OLD - 1), folder)
    path = folder / "adapter_config.json"
    (folder / "luyen.json").unlink()
    path.write_text(path.read_text().replace(f"{OLD + 2}", f"{OLD + 1}"))
    with pytest.raises(ModelError, match="trainable_token_indices"):
        files.load_into(toys.model(), folder)
