"""PEFT's adapter on the toy model, and the comparison with ours."""

from pathlib import Path
from typing import Any

import adapter_toys as toys
import torch
from torch import Tensor

from luyen.models import hf
from luyen.models.transformer import Transformer

MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def in_peft(config: Any, folder: Path) -> Any:
    """The toy model in transformers with a fresh adapter of PEFT."""
    import peft
    from transformers import LlamaForCausalLM

    hf.save(toys.model(), folder)
    return peft.get_peft_model(LlamaForCausalLM.from_pretrained(folder), config)


def named(theirs: Any) -> dict[str, Tensor]:
    """Parameters of PEFT's model by our names."""
    return {
        name.removeprefix("base_model.model.").replace(".default.weight", "").replace(".default", ""): parameter
        for name, parameter in theirs.named_parameters()
    }


def give(ours: Transformer, theirs: Any) -> None:
    """Put our trained values into PEFT's parameters."""
    found = named(theirs)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                found[name].copy_(parameter.view_as(found[name]))


def assert_equal(ours: Transformer, theirs: Any) -> None:
    """Same logits and gradients from the same values."""
    give(ours, theirs)
    ids = toys.tokens()
    found, expected = ours.logits(ours(ids)), theirs(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1.3e-6, atol=1e-5)
    found.square().mean().backward()
    expected.square().mean().backward()
    parameters = named(theirs)
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert trained == {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            slope = parameters[name].grad
            assert slope is not None and parameter.grad is not None and slope.any()
            torch.testing.assert_close(parameter.grad, slope.view_as(parameter), rtol=1e-4, atol=1e-5)
        else:
            assert parameter.grad is None
