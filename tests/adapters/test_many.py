"""Many adapters on one model: every sequence computes what it does with its adapter alone, in rows, layouts and generation."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapter_toys as toys
import pytest
import torch
from torch import Tensor, nn

from luyen.adapters import files
from luyen.adapters.adapt import adapt
from luyen.adapters.linear import adapted
from luyen.adapters.many import ManyLinear, carried, carry, drop, open_many, using
from luyen.adapters.quantized_load import load_quantized
from luyen.core.errors import DataError, ModelError
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate, generate_each, stream
from luyen.models import hf
from luyen.models.attention import Layout
from luyen.models.config import ExpertsConfig, VariantConfig
from luyen.models.transformer import Transformer

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "root": {"rank": 2, "alpha": 3, "lora": {"scaling": "root"}, "targets": ["q_proj", "layers.0.mlp.*"]},
    "pissa": {"rank": 3, "lora": {"init": "pissa"}},
    "dora": {"method": "dora", "rank": 2, "targets": ["v_proj", "down_proj"]},
}
REFUSED: dict[str, dict[str, Any]] = {
    "norms": {"also": ["norms"]},
    "both": {"also": ["model.layers.0.self_attn.q_proj.weight"]},
    "ia3": {"method": "ia3"},
    "prompt": {"method": "prompt"},
    "bottleneck": {"method": "bottleneck"},
}
GREEDY = SamplingConfig(max_new_tokens=12)
SAMPLED = SamplingConfig(max_new_tokens=12, temperature=1.3, top_k=30, repetition_penalty=1.1, seed=3)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [1, 2], [3, 4, 5, 6], [90], [12, 13, 14, 15, 16], [7, 7, 7]]
NAMES = ["lora", None, "dora", "root", "lora", "pissa"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("many")
    (made / "base").mkdir()
    hf.save(toys.model(), made / "base")
    for name, values in {**KINDS, **REFUSED}.items():
        model = toys.adapted_model(**values)
        toys.shake(model)
        files.save(model, toys.config(**values), made / name, base=str(made / "base"), digest=files.weights_digest(made / "base"))
    return made


@pytest.fixture
def many(folder: Path) -> Transformer:
    return open_many(folder / "base", {name: folder / name for name in KINDS})


@functools.cache
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


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_choice_follows_prompts_that_are_sorted_split_and_end_early(
    many: Transformer, folder: Path, sampling: SamplingConfig
) -> None:  # fmt: skip
    expected = [generate(alone(folder, name), [prompt], sampling)[0].ids for name, prompt in zip(NAMES, PROMPTS, strict=True)]
    ends = {ids[2 * number] for number, ids in enumerate(expected[:4])}  # some sequences stop long before others
    wanted = [generate(alone(folder, name), [prompt], sampling, ends)[0] for name, prompt in zip(NAMES, PROMPTS, strict=True)]
    assert len({len(answer.ids) for answer in wanted}) > 2
    with using(many, NAMES):
        assert generate(many, PROMPTS, sampling, ends) == wanted
    for rows in (128, 4):
        assert generate(many, PROMPTS, sampling, ends, rows, NAMES) == wanted
    assert list(stream(many, PROMPTS[-1], sampling, adapter="pissa")) == expected[-1]
    with using(many, ["pissa"]):
        assert list(stream(many, PROMPTS[-1], sampling)) == expected[-1]


def test_one_prompt_to_all_gets_the_draws_that_each_gets_alone(many: Transformer, folder: Path) -> None:
    names = [*KINDS, None]
    alone_each = {name: generate(alone(folder, name), [PROMPTS[0]], SAMPLED)[0].ids for name in names}
    assert generate_each(many, dict.fromkeys(names, PROMPTS[0]), SAMPLED, dict.fromkeys(names, ())) == alone_each
    assert len({tuple(ids) for ids in alone_each.values()}) > 3
    twice = [answer.ids for answer in generate(many, [PROMPTS[0]] * 3, SAMPLED, adapters=["lora", "dora", "lora"])]
    assert twice[:2] == [alone_each["lora"], alone_each["dora"]] and twice[2] != twice[0]  # equal prompts are drawn anew
    end = alone_each["lora"][4]
    ends = {name: {end} if name == "lora" else set() for name in names}
    found = generate_each(many, dict.fromkeys(names, PROMPTS[0]), SAMPLED, ends)
    assert list(found) == names and found.pop("lora") == alone_each["lora"][: alone_each["lora"].index(end)]
    assert all(ids == alone_each[name] for name, ids in found.items())


def test_a_switch_leaves_nothing_behind(many: Transformer, folder: Path) -> None:
    tokens = torch.arange(20)[None]
    plain = alone(folder, None)
    before = plain.logits(plain(tokens))
    answers = stream(many, PROMPTS[0], GREEDY, adapter="lora")
    next(answers)
    assert torch.equal(many.logits(many(tokens)), before)  # also while an answer is under way
    assert [*answers, *stream(many, PROMPTS[0], GREEDY, adapter="dora"), *stream(many, PROMPTS[0], GREEDY)]
    assert generate(many, PROMPTS, GREEDY, adapters=NAMES)
    with pytest.raises(DataError, match="prompt 2 of 2 is empty"):
        generate(many, [[1], []], GREEDY, adapters=["lora", "root"])
    assert torch.equal(many.logits(many(tokens)), before)
    assert generate(many, PROMPTS, SAMPLED) == generate(plain, PROMPTS, SAMPLED)


def test_the_base_may_be_held_in_few_bits(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = load_quantized(folder / "base", "nf4")
    for name in ("lora", "dora"):
        carry(model, name, folder / name)
    names = ["dora", None, "lora"]
    with using(model, names):
        found = toys.logits(model).split(toys.LENGTHS, 1)
    answers = generate(model, PROMPTS[:3], GREEDY, adapters=names)
    for name, part, prompt, answer in zip(names, found, PROMPTS, answers, strict=False):
        plain = load_quantized(folder / "base", "nf4")
        if name:
            files.load_into(plain, folder / name)
        expected = toys.logits(plain).split(toys.LENGTHS, 1)[names.index(name)]
        torch.testing.assert_close(part, expected.detach(), rtol=1e-4, atol=1e-4)
        assert generate(plain, [prompt], GREEDY)[0] == answer


def test_a_base_is_opened_in_the_bits_that_its_adapters_want(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = load_quantized(folder / "base", "nf4")
    adapt(model, toys.config(rank=2))
    toys.shake(model)
    files.save(model, toys.config(rank=2), tmp_path / "few", base=str(folder / "base"), digest=files.weights_digest(folder / "base"))
    opened = open_many(folder / "base", {"few": tmp_path / "few"})
    with using(opened, ["few"]):
        torch.testing.assert_close(opened(toys.tokens()), model.eval()(toys.tokens()).detach(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="found few on nf4, lora on numbers"):
        open_many(folder / "base", {"few": tmp_path / "few", "lora": folder / "lora"})


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
    with pytest.raises(ModelError, match="no adapter 'lorra'"):
        stream(many, [1], GREEDY, adapter="lorra")
    with pytest.raises(DataError, match="1 names for 2 prompts"):
        generate(many, [[1], [2]], GREEDY, adapters=["lora"])
    for name, told in (
        ("norms", "trained in whole, such as model.layers"),
        ("both", "trained in whole, such as model.layers.0.self_attn.q_proj.weight"),
        ("ia3", "found the method ia3; expected lora or dora or adalora. Open it alone"),
        ("prompt", "found the method prompt"),
        ("bottleneck", "found the method bottleneck"),
    ):
        with pytest.raises(ModelError, match=told):
            carry(many, name, folder / name)
        with pytest.raises(ModelError, match=told):
            open_many(folder / "base", {"lora": folder / "lora", name: folder / name})
        assert sum(isinstance(module, ManyLinear) for _, module in adapted(many)) == 14
    with pytest.raises(ModelError, match="an adapter lora already"):
        carry(many, "lora", folder / "lora")
    with pytest.raises(ModelError, match="for another model"):
        carry(toys.model(num_layers=1), "lora", folder / "lora")
    for place in (folder / "base", "nowhere"):
        with pytest.raises(ModelError, match="is not an adapter; expected a folder with adapter_config.json"):
            open_many(folder / "base", {"lora": place})


def test_adapters_on_routed_experts_are_refused(tmp_path: Path) -> None:
    sizes = {"variant": VariantConfig(experts=ExpertsConfig(count=4, per_token=2, intermediate_size=24))}
    model = toys.model(**sizes)
    config = toys.config(rank=2, targets=["q_proj", "experts.*.up_proj"])
    adapt(model, config)
    files.save(model, config, tmp_path / "routed", base="base", digest="")
    with pytest.raises(ModelError, match="a change of model.layers.0.mlp.experts.0.up_proj, to which a router sends tokens"):
        carry(toys.model(**sizes), "routed", tmp_path / "routed")
