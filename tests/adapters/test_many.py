"""Many adapters on one model: every sequence computes what it does with its adapter alone, in rows, layouts and generation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapter_toys as toys
import pytest
import torch
from torch import Tensor, nn

from luyen.adapters import files
from luyen.adapters.linear import adapted
from luyen.adapters.many import ManyLinear, carried, carry, drop, using
from luyen.adapters.quantized_load import load_quantized
from luyen.core.errors import ModelError
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate, stream
from luyen.models import hf
from luyen.models.attention import Layout
from luyen.models.transformer import Transformer

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "root": {"rank": 2, "alpha": 3, "lora": {"scaling": "root"}, "targets": ["q_proj", "layers.0.mlp.*"]},
    "pissa": {"rank": 3, "lora": {"init": "pissa"}},
    "dora": {"method": "dora", "rank": 2, "targets": ["v_proj", "down_proj"]},
}
NAMES = ["lora", None, "dora", "root", "lora", "pissa"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("many")
    (made / "base").mkdir()
    hf.save(toys.model(), made / "base")
    for name, values in {**KINDS, "norms": {"also": ["norms"]}, "ia3": {"method": "ia3"}, "prompt": {"method": "prompt"}}.items():
        model = toys.adapted_model(**values)
        toys.shake(model)
        files.save(model, toys.config(**values), made / name, base=str(made / "base"), digest=files.weights_digest(made / "base"))
    return made


@pytest.fixture
def many(folder: Path) -> Transformer:
    model = files.open_model(folder / "base")
    for name in KINDS:
        carry(model, name, folder / name, files.weights_digest(folder / "base"))
    return model


def alone(folder: Path, name: str | None) -> Transformer:
    return files.open_model(folder / (name or "base"))


def test_rows_of_one_batch_have_each_its_own(many: Transformer, folder: Path) -> None:
    tokens = torch.randint(97, (len(NAMES), 7), generator=torch.Generator().manual_seed(0))
    with using(many, NAMES), torch.no_grad():
        found = many.logits(many(tokens))
    for row, name in enumerate(NAMES):
        model = alone(folder, name)
        expected = model.logits(model(tokens[row : row + 1]))[0]
        torch.testing.assert_close(found[row], expected.detach(), rtol=1e-5, atol=1e-5)
        if name is None:
            assert torch.equal(many.logits(many(tokens)), model.logits(model(tokens)))  # outside the block none has one


def test_sequences_of_one_packed_row_have_each_its_own(many: Transformer, folder: Path) -> None:
    names = ["root", None, "dora"]
    with using(many, names):
        found = toys.logits(many).split(toys.LENGTHS, 1)
    for part, name in zip(found, names, strict=True):
        model = alone(folder, name)
        expected = model.logits(model(toys.tokens(), Layout.packed(toys.LENGTHS))).split(toys.LENGTHS, 1)[names.index(name)]
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)


def test_the_choice_follows_prompts_that_are_sorted_split_and_end_early(many: Transformer, folder: Path) -> None:
    prompts = [[5, 6, 7, 8, 9, 10, 11], [1, 2], [3, 4, 5, 6], [90], [12, 13, 14, 15, 16], [7, 7, 7]]
    sampling = SamplingConfig(max_new_tokens=12, temperature=0.0)
    expected = [generate(alone(folder, name), [prompt], sampling)[0].ids for name, prompt in zip(NAMES, prompts, strict=True)]
    ends = {ids[2 * number] for number, ids in enumerate(expected[:4])}  # some sequences stop long before others
    wanted = [generate(alone(folder, name), [prompt], sampling, ends)[0] for name, prompt in zip(NAMES, prompts, strict=True)]
    assert len({len(answer.ids) for answer in wanted}) > 2
    with using(many, NAMES):
        for rows in (128, 4):
            assert generate(many, prompts, sampling, ends, max_rows=rows) == wanted
    with using(many, ["pissa"]):
        assert list(stream(many, prompts[-1], sampling)) == expected[-1]


def test_the_base_may_be_held_in_few_bits(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = load_quantized(folder / "base", "nf4")
    for name in ("lora", "dora"):
        carry(model, name, folder / name)
    with using(model, ["dora", None, "lora"]):
        found = toys.logits(model)
    plain = load_quantized(folder / "base", "nf4")
    files.load_into(plain, folder / "dora")
    torch.testing.assert_close(found[:, : toys.LENGTHS[0]], toys.logits(plain)[:, : toys.LENGTHS[0]], rtol=1e-4, atol=1e-4)


def counted(model: nn.Module, work: Callable[[], object]) -> int:
    """Calls of linear maps other than the model's own."""
    calls: list[Tensor] = []
    original = nn.functional.linear

    def linear(*arguments: Any) -> Tensor:
        calls.append(arguments[1])
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("luyen.adapters.many.functional.linear", linear)
        work()
    own = {id(parameter) for parameter in model.parameters()}
    return sum(id(weight) not in own for weight in calls)


def test_rows_without_an_adapter_cost_nothing_and_others_only_their_own(many: Transformer) -> None:
    tokens = torch.zeros(3, 5, dtype=torch.long)
    with using(many, [None] * 3):
        assert counted(many, lambda: many(tokens)) == 0
    with using(many, ["dora", None, "dora"]):
        assert counted(many, lambda: many(tokens)) == 2 * 2 * 2  # two maps in two layers, two products each


def test_what_is_dropped_leaves_no_trace(many: Transformer) -> None:
    assert carried(many) == list(KINDS)
    names = dict(toys.model().state_dict())
    for name in KINDS:
        drop(many, name)
    assert not list(adapted(many)) and set(many.state_dict()) == set(names) and not many._forward_pre_hooks and not carried(many)


def test_what_cannot_be_is_told(many: Transformer, folder: Path) -> None:
    with pytest.raises(ModelError, match="carries no adapter 'lorra'.*Did you mean 'lora'"), using(many, ["lorra"]):
        pass
    with using(many, ["lora"]), pytest.raises(ModelError, match="1 names for 2 sequences"):
        many(torch.zeros(2, 3, dtype=torch.long))
    for name, told in (
        ("norms", "trained in whole, such as model.layers"),
        ("ia3", "found IA3Linear"),
        ("prompt", "cannot be merged|no weight"),
    ):
        with pytest.raises(ModelError, match=told):
            carry(many, name, folder / name)
        assert sum(isinstance(module, ManyLinear) for _, module in adapted(many)) == 14
    with pytest.raises(ModelError, match="an adapter lora already"):
        carry(many, "lora", folder / "lora")
    with pytest.raises(ModelError, match="for another model"):
        carry(toys.model(num_layers=1), "lora", folder / "lora")
