"""What the tests of prompt, P- and prefix tuning share: a toy decoder, the same with PEFT around it, and writing without a cache."""

from pathlib import Path
from typing import Any

import adapter_toys as toys
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from luyen.adapters.preamble import Vectors
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate
from luyen.models import hf
from luyen.models.transformer import Transformer

TOKENS = 6
peft_warns = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",  # PEFT asks transformers for it
    "ignore:Position ids are not supported for parameter efficient tuning:UserWarning",  # which transformers gives PEFT when it writes
)


def tuned(**values: Any) -> Transformer:
    """The toy with learned positions that are neither small nor what they started as."""
    made = toys.adapted_model(prompt={"tokens": TOKENS, **values.pop("prompt", {})}, **values)
    toys.shake(made)
    return made


def vectors_of(model: nn.Module) -> Vectors:
    """The learned vectors."""
    return next(module for module in model.modules() if isinstance(module, Vectors))


def rows(count: int = 3, length: int = 11) -> Tensor:
    """Sequences of one length."""
    return torch.randint(toys.SIZE.vocab_size, (count, length), generator=torch.Generator().manual_seed(5))


def in_peft(peft: Any, config: Any, folder: Path) -> Any:
    """The toy without learned positions in PEFT."""
    hf.save(toys.model(), folder)
    return peft.get_peft_model(LlamaForCausalLM.from_pretrained(folder), config)


def copy_and_compare(ours: Transformer, theirs: Any, names: dict[str, str]) -> None:
    """Give PEFT's encoder our parameters, by `names` of theirs from ours, and compare logits and all gradients."""
    encoder = dict(theirs.prompt_encoder["default"].named_parameters())
    learned = dict(vectors_of(ours).named_parameters())
    assert set(names.values()) == set(encoder) and set(names) == set(learned)
    with torch.no_grad():
        for name, parameter in learned.items():
            encoder[names[name]].copy_(parameter)
    ids = rows()
    found, expected = ours.logits(ours(ids)), theirs(input_ids=ids).logits[:, -ids.shape[1] :]
    torch.testing.assert_close(found, expected, rtol=1.3e-6, atol=1e-5)
    found.square().mean().backward()
    expected.square().mean().backward()
    for name, parameter in learned.items():
        torch.testing.assert_close(parameter.grad, encoder[names[name]].grad, rtol=1e-4, atol=1e-5)
    assert {name for name, parameter in ours.named_parameters() if parameter.grad is not None} == {
        name for name, parameter in ours.named_parameters() if ".vectors." in name
    }


def compare_answers(ours: Transformer, theirs: Any) -> None:
    """Greedy answers of PEFT's own generation."""
    prompts = [toys.tokens()[0, :length].tolist() for length in (1, 4, 9)]
    answers = generate(ours, prompts, SamplingConfig(max_new_tokens=10))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
        assert answer.ids == theirs.eval().generate(**asked)[0, len(prompt) :].tolist()


@torch.no_grad()
def naive(model: Transformer, prompt: list[int], count: int) -> list[int]:
    """Greedy, reading everything again for each token."""
    read = list(prompt)
    for _ in range(count):
        read.append(int(model.logits(model(torch.tensor([read])))[0, -1].argmax()))
    return read[len(prompt) :]
