"""The check behind shape suffixes catches lies and lets the truth pass."""

from pathlib import Path

import pytest
import torch
from shapes import checked, lies

HERE = (str(Path(__file__)),)


def honest(tokens_BT: torch.Tensor) -> torch.Tensor:
    hidden_BTD = torch.zeros(*tokens_BT.shape, 7)
    last_B1 = tokens_BT[:, -1:]
    return hidden_BTD + last_B1[..., None]


def wrong_dimensions(tokens_BT: torch.Tensor) -> int:
    hidden_BTD = tokens_BT
    return hidden_BTD.ndim


def sizes_disagree(tokens_BT: torch.Tensor) -> int:
    targets_BT = tokens_BT[:, 1:]
    return targets_BT.ndim


def test_the_truth_passes() -> None:
    with checked(HERE):
        honest(torch.zeros(2, 3))


@pytest.mark.parametrize("liar", [wrong_dimensions, sizes_disagree])
def test_a_lie_is_caught(liar) -> None:
    told = "(hidden_BTD has shape|targets_BT has T=2, but tokens_BT has T=3)"
    with pytest.raises(AssertionError, match=f"{liar.__name__}: {told}"), checked(HERE):
        liar(torch.zeros(2, 3))


def test_only_the_named_folders_are_checked() -> None:
    with checked(("/elsewhere",)):
        wrong_dimensions(torch.zeros(2, 3))


def test_digits_stand_for_their_size() -> None:
    assert lies({"last_B1": torch.zeros(4, 2)}) == ["last_B1 has 1=2, but its name has 1=1"]
    assert lies({"model": torch.zeros(2), "PROMPT_TOKENS": torch.zeros(1)}) == []
