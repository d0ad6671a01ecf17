"""Merged adapters against the sum of the changes by hand, against the unmerged model, and against PEFT where that is right."""

import weakref
from pathlib import Path
from typing import Any

import adapter_toys as toys
import pytest
import torch
from torch import Tensor

from luyen.adapters import files
from luyen.adapters import merge as merging
from luyen.adapters.adapt import adapt, merge_in_place
from luyen.adapters.merge import Change, Plan, _trimmed, apply, changes, combine, open_adapter, truncated
from luyen.adapters.merged import check, merge
from luyen.adapters.quantized_load import load_quantized
from luyen.core import manifest
from luyen.core.errors import ModelError
from luyen.models import hf

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 8},
    "rslora": {"rank": 3, "alpha": 6, "lora": {"scaling": "root"}},
    "ranks": {"rank": 4, "alpha": 2, "targets": ["q_proj", "mlp.*"], "lora": {"ranks": {"up_proj": 2}, "alphas": {"q_proj": 5.0}}},
    "pissa": {"rank": 2, "lora": {"init": "pissa"}, "also": ["norms", "head"]},
    "dora": {"method": "dora", "rank": 4, "targets": ["v_proj", "down_proj"]},
    "adalora": {"method": "adalora", "rank": 2, "targets": ["o_proj"]},
    "dora and weight": {"method": "dora", "rank": 4, "targets": ["v_proj"], "also": ["v_proj.weight"]},
    "ia3": {"method": "ia3"},
    "selective": {"method": "selective", "also": ["embeddings", "layers.1.mlp.*"]},
}
IDS = toys.tokens()[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter of every kind."""
    made = tmp_path_factory.mktemp("merge")
    with manifest.new_folder(made / "base") as base:
        hf.save(toys.model(), base)
        manifest.seal(base, "model")
    for name, values in KINDS.items():
        adapted = toys.adapted_model(**values)
        toys.shake(adapted)
        files.save(adapted, toys.config(**values), made / name, base=str(made / "base"), digest=files.weights_digest(made / "base"))
    return made


def merged(folder: Path, *names: str, as_adapter: bool = False, **plan: Any) -> Any:
    return merge(str(folder / "base"), [str(folder / name) for name in names], Plan(**plan), IDS, as_adapter)


def change(folder: Path, name: str) -> dict[str, Tensor]:
    """What an adapter changes of each tensor, by another way than the one that is tested."""
    model, plain = files.open_model(folder / name).double(), toys.model().double().state_dict()
    merge_in_place(model)
    return {key: tensor - plain[key] for key, tensor in model.state_dict().items()}


def by_hand(folder: Path, weights: dict[str, float]) -> dict[str, Tensor]:
    total = {key: tensor.clone() for key, tensor in toys.model().double().state_dict().items()}
    for name, weight in weights.items():
        for key, tensor in change(folder, name).items():
            total[key] += weight * tensor
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_one_adapter_merged_computes_what_it_did(folder: Path, kind: str) -> None:
    result = merged(folder, kind)
    check(result, 2e-5)
    assert result.comparison.agree == 1 and result.comparison.largest > 1
    torch.testing.assert_close(dict(result.model.state_dict()), {key: value.float() for key, value in by_hand(folder, {kind: 1.0}).items()})


@pytest.mark.parametrize("how", ["linear", pytest.param("cat", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "names", [("lora", "rslora", "ranks"), ("lora", "dora", "pissa", "ia3", "selective", "dora and weight")], ids=["low", "mixed"]
)
def test_several_are_the_sum_of_their_changes(folder: Path, how: str, names: tuple[str, ...]) -> None:
    weights = (0.7, -0.4, 1.3, 0.5, 0.2, 0.9)[: len(names)]
    result = merged(folder, *names, how=how, weights=weights)
    check(result, 2e-5)
    expected = by_hand(folder, dict(zip(names, weights, strict=True)))
    torch.testing.assert_close(
        dict(result.model.state_dict()), {key: value.float() for key, value in expected.items()}, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "names",
    [("rslora",), pytest.param(("lora", "rslora", "ranks"), marks=pytest.mark.slow), ("lora", "rslora", "pissa", "adalora")],
    ids=str,
)
def test_low_ranks_become_one_adapter_that_computes_the_sum(folder: Path, names: tuple[str, ...], tmp_path: Path) -> None:
    result = merged(folder, *names, as_adapter=True)
    check(result)
    base = str(folder / "base")
    made = files.save(result.model, result.config, tmp_path / "one", base=base, digest=files.weights_digest(base))
    torch.testing.assert_close(toys.logits(files.open_model(made)), toys.logits(merged(folder, *names).model), rtol=1e-4, atol=1e-4)


def test_a_change_without_low_rank_is_no_adapter_but_its_nearest_one_is(folder: Path) -> None:
    with pytest.raises(ModelError, match="has no low rank.*how=svd"):
        merged(folder, "lora", "dora", as_adapter=True)
    result = merged(folder, "lora", "dora", as_adapter=True, how="svd", rank=16)
    assert 0 < result.lost < 0.2 and result.config.rank == 16
    with pytest.raises(ModelError, match="needs a rank"):
        merged(folder, "ia3", how="svd")
    with pytest.raises(ModelError, match="weights; found 1; expected 2"):
        merged(folder, "lora", "ranks", weights=(1.0,))


def test_svd_is_the_nearest_of_that_rank_and_tells_what_it_leaves_out() -> None:
    torch.manual_seed(0)
    for product in (Change(up=torch.randn(9, 4).double(), down=torch.randn(4, 7).double()), Change(torch.randn(9, 7).double())):
        nearest, left_out, whole = truncated(product, 3)
        values = torch.linalg.svdvals(product.whole())
        assert nearest.rank == 3
        torch.testing.assert_close((product.whole() - nearest.whole()).square().sum(), values[3:].square().sum())
        assert (left_out, whole) == (pytest.approx(float(values[3:].square().sum())), pytest.approx(float(product.whole().square().sum())))
    combined, lost = combine([{"layers.0.q_proj.weight": product}, {}], Plan(how="svd", rank=7))
    assert lost < 1e-7 and torch.allclose(combined["layers.0.q_proj.weight"].whole(), product.whole())


def test_ties_trims_elects_and_takes_the_mean_of_those_that_agree() -> None:
    first, second, third = (
        torch.tensor([[4.0, -3.0, 0.1, 2.0]]),
        torch.tensor([[2.0, 5.0, 0.2, -1.0]]),
        torch.tensor([[-1.0, 1.0, 3.0, 0.5]]),
    )
    # Half of each stays: [4, -3, 0, 0], [2, 5, 0, 0], [-1 (the first of equals), 0, 3, 0].
    found = combine([{"w": Change(each)} for each in (first, second, third)], Plan(how="ties"))[0]["w"].whole()
    assert found.tolist() == [[3.0, 5.0, 3.0, 0.0]]
    halved = combine([{"w": Change(each)} for each in (first, second, third)], Plan(how="ties", weights=(0.5,) * 3))[0]["w"].whole()
    assert halved.tolist() == [[1.5, 2.5, 1.5, 0.0]]


def test_trimming_is_exact_where_entries_are_equal() -> None:
    part = torch.tensor([[1.0, -2.0, 2.0, 2.0, 0.0]])
    for density, kept in ((0.0, [0, 0, 0, 0, 0]), (0.2, [0, -2, 0, 0, 0]), (0.4, [0, -2, 2, 0, 0]), (1.0, part[0].tolist())):
        assert _trimmed(part, density)[0].tolist() == kept


def test_dare_keeps_a_share_makes_it_larger_and_is_drawn_from_the_seed() -> None:
    ones = [{"w": Change(torch.ones(200, 200))}, {"w": Change(torch.ones(200, 200))}]
    found = combine(ones, Plan(how="dare", density=0.25))[0]["w"].whole()
    assert set(found.unique().tolist()) == {0.0, 4.0, 8.0}
    assert abs(float(found.mean()) - 2) < 0.05
    assert torch.equal(found, combine(ones, Plan(how="dare", density=0.25))[0]["w"].whole())
    assert not torch.equal(found, combine(ones, Plan(how="dare", density=0.25, seed=1))[0]["w"].whole())


@pytest.mark.parametrize("how", [pytest.param("ties", marks=pytest.mark.slow), "dare"])
def test_sparse_combinations_are_compared_too(folder: Path, how: str) -> None:
    names, weights = ("lora", "dora", "pissa"), (0.7, 1.1, 0.4)
    result, exact = (merged(folder, *names, how=each, weights=weights) for each in (how, "linear"))
    check(result, 2e-5)
    ids = IDS[None]
    away = (result.model.logits(result.model(ids)) - exact.model.logits(exact.model(ids))).abs().max()
    assert result.to_sum is not None and result.to_sum.difference == pytest.approx(float(away.detach()), rel=1e-3)
    assert exact.to_sum is None and result.to_sum.share > 0.01


@pytest.mark.parametrize("how", ["ties", "dare"])
def test_changes_in_numbers_are_held_for_one_tensor_at_a_time(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held, most = 0, 0

    def count(numbers: int) -> None:
        nonlocal held, most
        held += numbers
        most = max(most, held)

    class Watched(Change):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            if self.numbers is not None:
                count(self.numbers.numel())
                weakref.finalize(self, count, -self.numbers.numel())

    monkeypatch.setattr(merging, "Change", Watched)
    result = merged(folder, "lora", "dora", how=how)
    maps = [parameter.numel() for name, parameter in result.model.named_parameters() if "_proj" in name]
    assert max(maps) <= most <= 5 * max(maps) < sum(maps), "two changes, what is left of them, and their combination"
    assert held == 0


@pytest.mark.parametrize("how", ["ties", "dare", "svd", "linear"])
def test_a_change_made_on_demand_is_the_one_that_was_kept(folder: Path, how: Any) -> None:
    first, second = toys.model(), toys.model()
    plan, opened = Plan(how, (0.7, -0.4, 1.1)), [open_adapter(first, folder / name, None) for name in ("lora", "dora", "selective")]
    combined, _ = combine([changes(first, each) for each in opened], plan)
    kept = {name: combined[name] for name in combined}
    apply(second, kept, torch.float32)
    apply(first, combined, torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
    assert "lm_head.weight" not in combined and len(combined) == len(kept)


def test_weights_are_stored_in_the_type_of_the_base_and_the_rounding_is_measured(folder: Path, tmp_path: Path) -> None:
    hf.save(toys.model().bfloat16(), tmp_path / "half" if (tmp_path / "half").mkdir() is None else tmp_path)
    model = files.open_model(tmp_path / "half")
    adapt(model, toys.config())
    toys.shake(model)
    base = str(tmp_path / "half")
    files.save(model, toys.config(), tmp_path / "adapter", base=base, digest=files.weights_digest(base))
    result = merge(base, [str(tmp_path / "adapter")], Plan(), IDS)
    assert result.dtype == torch.bfloat16 and 1e-4 < result.comparison.share < 5e-2
    check(result)
    with pytest.raises(ModelError, match=r"nothing is written; found a difference of .* expected at most 0.0001, tolerance"):
        check(result, 1e-4)


def test_what_no_weight_computes_and_what_is_of_another_base_is_refused(folder: Path, tmp_path: Path) -> None:
    for values in ({"method": "prompt"}, {"method": "bottleneck"}, {"method": "bitfit"}):
        made = toys.adapted_model(**values)
        toys.shake(made)
        files.save(made, toys.config(**values), tmp_path / "apart", base=str(folder / "base"), digest="")
        with pytest.raises(ModelError, match="cannot be merged: no weight|trained on other weights"):
            merge(str(folder / "base"), [str(tmp_path / "apart")], Plan(), IDS)


def test_an_adapter_of_a_base_in_few_bits_is_merged_into_their_numbers(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = str(folder / "base")
    model = load_quantized(base, "nf4")
    adapt(model, toys.config())
    toys.shake(model)
    files.save(model, toys.config(), tmp_path / "few", base=base, digest=files.weights_digest(base))
    result = merge(base, [str(tmp_path / "few")], Plan(), IDS)
    check(result, 2e-5)
    assert result.bits == {"kind": "nf4", "double": True}
    assert result.to_full is not None and result.to_full.share > 1e-2
    torch.testing.assert_close(toys.logits(result.model), toys.logits(model), rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="different forms of the base; found nf4 and numbers"):
        merge(base, [str(tmp_path / "few"), str(folder / "lora")], Plan(), IDS)
