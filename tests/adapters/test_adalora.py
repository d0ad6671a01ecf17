"""AdaLoRA: its formula and penalty, how ranks move against the algorithm in plain numbers and against PEFT, and that runs go on exactly."""

from pathlib import Path
from typing import Any

import adapter_toys as toys
import peft_toys
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from luyen.adapters import adalora
from luyen.adapters.adalora import AdaLoRALinear
from luyen.adapters.count import trained_weights
from luyen.adapters.linear import adapted
from luyen.core.errors import ConfigError
from luyen.models.transformer import Transformer

MAPS, STEPS = 14, 20
VALUES: dict[str, Any] = {
    "method": "adalora",
    "rank": 2,
    "alpha": 8,
    "allocation": {"start_rank": 4, "warmup_fraction": 0.1, "final_fraction": 0.2, "every_steps": 3},
}
CONFIG = toys.config(**VALUES)


def made() -> Transformer:
    return toys.adapted_model(**VALUES)


def loss(ours: Transformer) -> Tensor:
    """Of the next token, in the mean."""
    ids = toys.tokens()
    return functional.cross_entropy(ours.logits(ours(ids))[0, :-1], ids[0, 1:])


def update(ours: Transformer, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One step as a trainer makes it."""
    optimizer.zero_grad()
    loss(ours).backward()
    adalora.penalty(ours, CONFIG).backward()
    optimizer.step()
    adalora.after_update(ours, CONFIG, step, STEPS)


@pytest.mark.parametrize("lengths", [toys.LENGTHS, (20, 10)], ids=["folded", "beside"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_a_fresh_adapter_changes_not_one_bit(lengths: tuple[int, ...], half: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(toys.logits(made(), lengths), toys.logits(toys.model(), lengths))


@pytest.mark.parametrize("rows", [100, 3], ids=["folded", "beside"])
def test_the_formula_with_its_gradients_and_merged(rows: int) -> None:
    torch.manual_seed(0)
    module = AdaLoRALinear(nn.Linear(6, 5).double().requires_grad_(False), 3, 0.7)
    module.lora_E.data.normal_()
    hidden = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)

    def by_formula() -> Tensor:
        change = module.lora_B @ torch.diag(module.lora_E) @ module.lora_A
        return hidden @ (module.dense() + 0.7 * change).T + module.base.bias

    torch.testing.assert_close(module(hidden), by_formula())
    leaves, slope = (hidden, module.lora_A, module.lora_E, module.lora_B), torch.randn(rows, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(module(hidden), leaves, slope), torch.autograd.grad(by_formula(), leaves, slope))
    weight, bias = module.merged()
    torch.testing.assert_close(functional.linear(hidden, weight, bias), module(hidden))


def test_a_number_more_for_every_triple_than_lora_of_the_start_rank() -> None:
    names = {name.rpartition(".")[2] for name, parameter in made().named_parameters() if parameter.requires_grad}
    assert names == {"lora_A", "lora_E", "lora_B"}
    assert trained_weights(toys.SIZE, CONFIG) == trained_weights(toys.SIZE, toys.config(rank=4)) + MAPS * 4


def test_the_penalty_is_the_mean_distance_from_orthogonal() -> None:
    ours = made()
    distances = []
    for _, module in adapted(ours):
        assert isinstance(module, AdaLoRALinear)
        q, p = module.lora_A.detach().double(), module.lora_B.detach().double()
        distances += [((q @ q.T - torch.eye(4)) ** 2).sum() ** 0.5, ((p.T @ p - torch.eye(4)) ** 2).sum() ** 0.5]
    assert len(distances) == 2 * MAPS
    torch.testing.assert_close(adalora.penalty(ours, CONFIG), (0.5 * sum(distances) / len(distances)).float())
    adalora.penalty(ours, CONFIG).backward()
    assert all((parameter.grad is not None) == name.endswith(("lora_A", "lora_B")) for name, parameter in ours.named_parameters())
    with torch.no_grad():
        for _, module in adapted(ours):
            assert isinstance(module, AdaLoRALinear)
            nn.init.orthogonal_(module.lora_A), nn.init.orthogonal_(module.lora_B)
    assert float(adalora.penalty(ours, CONFIG).detach()) < 1e-5


def test_the_budget_falls_with_the_cube_of_the_time_that_is_left() -> None:
    found = {step: adalora.budget(CONFIG, MAPS, step, STEPS) for step in range(1, STEPS + 1)}
    moved = {step: count for step, count in found.items() if count is not None}
    expected = {step: int(28 + 28 * (1 - (step - 2) / 14) ** 3) for step in (3, 6, 9, 12, 15)}
    assert moved == {**expected, 16: 28}
    assert expected[3] == 50 and expected[15] == 28
    for steps in range(1, 30):  # however short a run, the last word is the rank that was asked for
        assert [adalora.budget(CONFIG, MAPS, step, steps) for step in range(1, steps + 1)].count(28) >= 1


def element(weight: Tensor, slopes: list[Tensor]) -> list[Tensor]:
    """I and U of one weight after gradients, as equations 8 to 10 have them."""
    sensitivity = uncertainty = torch.zeros_like(weight)
    for slope in slopes:
        now = (weight * slope).abs()
        sensitivity = 0.85 * sensitivity + 0.15 * now
        uncertainty = 0.85 * uncertainty + 0.15 * (now - sensitivity).abs()
    return [sensitivity, uncertainty]


def test_what_triples_are_worth_and_which_stay_against_plain_numbers() -> None:
    torch.manual_seed(0)
    widths = {"one": (5, 4), "two": (6, 3)}
    whole = nn.Module()
    for name, (inputs, outputs) in widths.items():
        whole.add_module(name, AdaLoRALinear(nn.Linear(inputs, outputs).double().requires_grad_(False), 3, 1.0))
    modules = [module for _, module in adapted(whole) if isinstance(module, AdaLoRALinear)]
    for module in modules:
        module.lora_E.data.normal_()
    config = toys.config(
        method="adalora", rank=1, allocation={"start_rank": 3, "every_steps": 5, "warmup_fraction": 0, "final_fraction": 0.5}
    )
    slopes: dict[nn.Parameter, list[Tensor]] = {
        parameter: [torch.randn_like(parameter) for _ in range(5)] for module in modules for parameter in
        (module.lora_A, module.lora_E, module.lora_B)
    }  # fmt: skip
    before = [module.lora_E.detach().clone() for module in modules]
    for step in range(1, 6):
        for parameter, given in slopes.items():
            parameter.grad = given[step - 1]
        adalora.after_update(whole, config, step, 20)
    worth = []
    for number, module in enumerate(modules):
        for triple in range(3):
            parts = []
            for parameter, own in (
                (module.lora_A, lambda tensor, triple=triple: tensor[triple]),
                (module.lora_B, lambda tensor, triple=triple: tensor[:, triple]),
            ):
                sensitivity, uncertainty = element(own(parameter.detach()), [own(slope) for slope in slopes[parameter]])
                parts.append(float((sensitivity * uncertainty).mean()))
            value = before[number][triple]
            sensitivity, uncertainty = element(value, [slope[triple] for slope in slopes[module.lora_E]])
            worth.append((float(sensitivity * uncertainty) + sum(parts), number, triple))
    left = 1 - 5 / 10
    stay = sorted(worth, reverse=True)[: int(2 + 4 * left**3)]
    for number, module in enumerate(modules):
        torch.testing.assert_close(module.worth(), torch.tensor([value for value, own, _ in worth if own == number], dtype=torch.float64))
        kept = torch.tensor([(number, triple) in {item[1:] for item in stay} for triple in range(3)])
        assert torch.equal(module.kept, kept)
        assert torch.equal(module.lora_E, torch.where(kept, before[number], 0.0))


def test_the_mean_rank_in_the_end_is_the_one_asked_for_and_what_went_stays_away() -> None:
    ours = made()
    optimizer = torch.optim.Adam([parameter for parameter in ours.parameters() if parameter.requires_grad], lr=0.01)
    started = float(loss(ours).detach())
    for step in range(1, STEPS + 1):
        update(ours, optimizer, step)
        if step >= 16:
            assert sum(adalora.ranks(ours).values()) == 2 * MAPS
            for _, module in adapted(ours):
                assert isinstance(module, AdaLoRALinear)
                assert torch.equal(module.lora_E != 0, module.kept)
    assert set(adalora.ranks(ours).values()) != {2}, "ranks have moved"
    assert float(loss(ours).detach()) < started


def test_a_run_that_goes_on_from_its_state_ends_in_the_same_bits() -> None:
    def run(ours: Transformer, first: int, last: int) -> Transformer:
        optimizer = torch.optim.SGD([parameter for parameter in ours.parameters() if parameter.requires_grad], lr=0.5)
        for step in range(first, last + 1):
            update(ours, optimizer, step)
        return ours

    whole, half = run(made(), 1, STEPS), run(made(), 1, 11)
    again = made()
    again.load_state_dict({name: tensor.clone() for name, tensor in half.state_dict().items()})
    run(again, 12, STEPS)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_a_weight_without_gradient_matters_less_with_time() -> None:
    module = AdaLoRALinear(nn.Linear(5, 4).requires_grad_(False), 2, 1.0)
    whole = nn.ModuleDict({"own": module})
    module.lora_A.grad = torch.ones_like(module.lora_A)
    adalora.after_update(whole, CONFIG, 1, STEPS)
    found = module.get_buffer("lora_A_sensitivity").clone()
    torch.testing.assert_close(found, 0.15 * module.lora_A.detach().abs())
    module.lora_A.grad = None
    adalora.after_update(whole, CONFIG, 2, STEPS)
    torch.testing.assert_close(module.get_buffer("lora_A_sensitivity"), 0.85 * found)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers for it
def test_training_and_moving_ranks_equal_those_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours = made()
    toys.shake(ours)
    theirs = peft_toys.in_peft(
        peft.AdaLoraConfig(
            task_type="CAUSAL_LM", target_modules=peft_toys.MAPS, target_r=2, init_r=4, lora_alpha=8,
            tinit=2, tfinal=4, deltaT=3, total_step=STEPS,
        ),
        tmp_path,
    )  # fmt: skip
    peft_toys.give(ours, theirs)
    named = peft_toys.named(theirs)
    ids = toys.tokens()
    torch.testing.assert_close(ours.logits(ours(ids)), theirs(input_ids=ids).logits, rtol=1e-5, atol=2e-5)
    mine = {name: parameter for name, parameter in ours.named_parameters() if parameter.requires_grad}
    optimizers = [torch.optim.SGD(list(mine.values()), lr=0.05), torch.optim.SGD([named[name] for name in mine], lr=0.05)]
    for step in range(1, STEPS + 1):
        torch.testing.assert_close(loss(ours) + adalora.penalty(ours, CONFIG), theirs(input_ids=ids, labels=ids).loss, rtol=1e-5, atol=1e-5)
        optimizers[1].zero_grad()
        theirs(input_ids=ids, labels=ids).loss.backward()
        optimizers[1].step()
        theirs.base_model.update_and_allocate(step)
        update(ours, optimizers[0], step)
        for name, parameter in mine.items():
            torch.testing.assert_close(parameter, named[name].view_as(parameter), rtol=1e-3, atol=1e-5)
            if name.endswith("lora_E"):
                assert torch.equal(parameter != 0, named[name].flatten() != 0), f"step {step}"
    assert sum(adalora.ranks(ours).values()) == 2 * MAPS


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"allocation": {"start_rank": 4}, "rank": 4},
            "adapter.allocation.start_rank; found 4; expected more than adapter.rank, which is 4",
        ),
        ({"rank": 12}, "start_rank; found 18 for model.layers.0.self_attn.k_proj; expected at most 16, its smaller side"),
        ({"rank": 2, "lora": {"ranks": {"q_proj": 3}}}, "adapter.lora.ranks; found ranks by pattern; expected none with adalora"),
        ({"rank": 2, "lora": {"init": "pissa"}}, "adapter.lora.init; found pissa; expected default"),
        ({"allocation": {"warmup_fraction": 0.5, "final_fraction": 0.5}}, "leave no steps in which ranks move"),
    ],
)
def test_what_cannot_be_is_told_with_its_remedy(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        toys.adapted_model(method="adalora", **values)
