"""Which experts the data goes to, by hand; that only those are trained, and what is saved of them."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_toys import LENGTHS, config, logits, model, shake, tokens

from luyen.adapters import files
from luyen.adapters.adapt import adapt, merge_in_place
from luyen.adapters.config import LOW_RANK, ExpertChoiceConfig
from luyen.adapters.esft import affinity, choose_experts, mark, mark_most, smallest
from luyen.adapters.linear import adapted
from luyen.core.errors import ConfigError
from luyen.models.attention import Layout
from luyen.models.moe import Router, Routing
from luyen.models.transformer import Transformer

VARIANT = {"experts": {"count": 5, "per_token": 2, "intermediate_size": 12, "shared_size": 8}}


def mixture() -> Transformer:
    return model(variant=VARIANT)


def measured(made: Transformer, **values: Any) -> dict[str, dict[int, float]]:
    return choose_experts(made, [(tokens(), Layout.packed(LENGTHS))], ExpertChoiceConfig(**values))


def specialised(**experts: Any) -> Transformer:
    made = mixture()
    mark(made, measured(made, **experts))
    adapt(made, config(method="esft", experts=experts))
    return made


def test_affinity_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    routing = Routing(probabilities.log(), torch.tensor([[0, 1], [1, 2]]))
    assert affinity(routing, False, "tokens").tolist() == [1, 2, 1]
    assert affinity(routing, False, "gate").tolist() == pytest.approx([0.5, 0.9, 0.3])
    assert affinity(routing, True, "gate").tolist() == pytest.approx([5 / 8, 3 / 8 + 2 / 3, 1 / 3])


@pytest.mark.parametrize(("share", "expected"), [(0.3, [1]), (0.4, [1]), (0.41, [1, 0]), (0.75, [1, 0, 3]), (1.0, [1, 0, 3, 2])])
def test_the_smallest_set_largest_first(share: float, expected: list[int]) -> None:
    assert list(smallest(torch.tensor([0.25, 0.4, 0.1, 0.25], dtype=torch.float64), share)) == expected


def test_the_default_share_fits_the_measure() -> None:
    made = mixture()
    assert measured(made, by="gate") == measured(made, by="gate", share=0.1)
    assert measured(made, by="tokens") == measured(made, by="tokens", share=0.2)
    assert measured(made, by="tokens", share=1.0) != measured(made, by="tokens")


@pytest.mark.parametrize("router", [False, True])
def test_only_the_chosen_experts_move(router: bool) -> None:
    made = specialised(share=0.5, router=router)
    before, choice = copy.deepcopy(made.state_dict()), measured(made, share=0.5)
    optimizer = torch.optim.AdamW([parameter for parameter in made.parameters() if parameter.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        logits(made).square().mean().backward()
        optimizer.step()
    moved = {name for name, tensor in made.state_dict().items() if not torch.equal(tensor, before[name])}
    prefixes = [f"{name}.experts.{number}." for name, chosen in choice.items() for number in chosen]
    expected = {name for name in before if any(name.startswith(prefix) for prefix in prefixes)}
    assert 0 < len(expected) < sum(".experts." in name for name in before)
    assert moved == expected | {f"{name}.gate.weight" for name in choice if router}


def test_saved_and_loaded_has_the_same_bits(tmp_path: Path) -> None:
    made = specialised(share=0.5)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    folder = files.save(made, config(method="esft", experts={"share": 0.5}), tmp_path / "adapter", base="base", digest="0")
    loaded = mixture()
    files.load_into(loaded, folder)
    trained = [{name for name, parameter in each.named_parameters() if parameter.requires_grad} for each in (made, loaded)]
    assert trained[0] == trained[1] == set(files.read_tensors(folder))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in made.state_dict().items())
    assert torch.equal(logits(made), logits(loaded))


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="no experts"):
        measured(model())
    with pytest.raises(ConfigError, match="without data"):
        adapt(mixture(), config(method="esft"))


@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "bottleneck", "compacter", "prefix", "prompt", "p-tuning", "ia3"])
def test_other_methods_on_a_mixture(method: str) -> None:
    made = mixture()
    adapt(made, config(method=method, **({"rank": 4} if method in LOW_RANK else {})))
    logits(made).square().mean().backward()
    absent = [name for name, parameter in made.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not absent


def test_low_rank_on_routers_and_on_an_expert_and_merged() -> None:
    made = mixture()
    adapt(made, config(targets=["gate", "experts.3.*"], rank=4))
    names = [name for name, _ in adapted(made)]
    assert len(names) == 2 * (1 + 3)
    assert all(name.endswith("mlp.gate") or ".experts.3." in name for name in names)
    shake(made)
    logits(made).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in made.parameters() if parameter.requires_grad)
    expected = logits(made).detach()
    merge_in_place(made)
    assert sum(isinstance(module, Router) for module in made.modules()) == 4
    torch.testing.assert_close(logits(made).detach(), expected, rtol=1e-4, atol=1e-4)


def test_all_maps_are_not_the_routers() -> None:
    made = mixture()
    adapt(made, config(rank=4))
    assert not [name for name, _ in adapted(made) if name.endswith(("mlp.gate", "shared_expert_gate"))]


def test_without_data_the_most_that_can_be_chosen_is_counted() -> None:
    made = mixture()
    mark_most(made, ExpertChoiceConfig(share=0.5))
    adapt(made, config(method="esft", experts={"share": 0.5}))
    trained = {re.findall(r"layers.(\d+).mlp.experts.(\d+)", name)[0] for name, each in made.named_parameters() if each.requires_grad}
    assert len(trained) == 2 * 3
    assert all(len(chosen) <= 3 for chosen in measured(mixture(), share=0.5).values())
