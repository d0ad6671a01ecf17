"""Folders of adapters made into one model or one adapter, and the result compared with what they compute unmerged.

An adapter that was trained on a base in few bits fits the numbers that those bits say, not the ones that they were made of. So it is
merged into the former, and how far that is from the latter with the same adapter is told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from luyen.adapters import files
from luyen.adapters.adapt import adapt
from luyen.adapters.config import AdapterConfig
from luyen.adapters.linear import adapted
from luyen.adapters.lora import LoRALinear
from luyen.adapters.merge import Change, Changes, Plan, apply, changes, combine, is_map, open_adapter, truncated, unmerged
from luyen.adapters.peft_names import plain_name
from luyen.adapters.quantized import dequantize
from luyen.core.config import load
from luyen.core.errors import ModelError
from luyen.models import hf
from luyen.models.transformer import Transformer

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of a logit as a share of the largest logit, by the type in which the merged weights are stored."""
EXACT = ("linear", "cat")
"""Ways to combine that give the sum of the changes itself."""


@dataclass(frozen=True)
class Comparison:
    """Logits of two models on the same text."""

    difference: float
    """The largest of a logit."""
    largest: float
    """The largest logit."""
    agree: float
    """Share of places where both find the same token likeliest."""

    @property
    def share(self) -> float:
        """The difference as a share of the largest logit."""
        return self.difference / self.largest if self.largest else self.difference


@dataclass(frozen=True)
class Merged:
    """What came of it."""

    model: Transformer
    """The merged model, or the base with the one adapter."""
    config: AdapterConfig | None
    """Of the one adapter; None where a model was made."""
    dtype: torch.dtype
    comparison: Comparison
    lost: float
    """svd: share of the change that is left out."""
    bits: dict[str, Any] | None
    """How the base was held while the adapters were trained."""
    to_full: Comparison | None
    """Where it was in few bits: against the base as it is, with the same adapters beside it."""
    to_sum: Comparison | None = None
    """svd, ties, dare: against the exact sum of the changes, each times its factor, beside the base."""


def compare(found: Tensor, expected: Tensor) -> Comparison:
    """Of logits (T, V)."""
    agree = (found.argmax(-1) == expected.argmax(-1)).double().mean()
    return Comparison(float((found - expected).abs().max()), float(expected.abs().max()), float(agree))


@torch.no_grad()
def merge(base: str, adapters: Sequence[str], plan: Plan, ids_T: Tensor, as_adapter: bool = False) -> Merged:
    """Combine adapters of one base into a model, or into one adapter where the combination has a low rank. Raises ModelError.

    The comparison is made in fp32 with the weights as they will be stored, on a text's ids. For svd, ties and dare the first one shows only
    that what was combined is stored, since nothing else computes that; so the exact sum is compared as well.
    """
    bits, digest = _bits(adapters), files.weights_digest(base)

    def measure(model: nn.Module) -> Tensor:
        decoder = cast(Transformer, model)
        return decoder.logits(decoder(ids_T[None]))[0]

    def beside(plain: Transformer, how: Plan) -> tuple[Changes, float, Tensor]:
        opened = [open_adapter(plain, name, digest) for name in adapters]
        combined, lost = combine([changes(plain, each) for each in opened], how)
        return combined, lost, unmerged(plain, opened, combined, how, measure)

    model = files.open_base(base, bits, "cpu", torch.float32).eval()
    if bring_tokens(model, adapters) and as_adapter:
        raise ModelError("an adapter with new tokens is merged into a model alone", found="what=adapter", fix="Take what=model.")
    exact = None if plan.how in EXACT else beside(model, replace(plan, how="linear"))[2]
    combined, lost, expected = beside(model, plan)
    config, dtype = None, torch.float32
    if as_adapter:
        config = one_adapter(model, combined)
    else:
        dtype = stored_dtype(base)
        dequantize(model)
        apply(model, combined, dtype)
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    found = measure(model)
    to_full = None
    if bits is not None:
        numbers = files.open_base(base, None, "cpu", torch.float32).eval()
        bring_tokens(numbers, adapters)
        to_full = compare(found, beside(numbers, plan)[2])
    to_sum = None if exact is None else compare(found, exact)
    return Merged(model, config, dtype, compare(found, expected), lost, bits, to_full, to_sum)


def bring_tokens(model: Transformer, adapters: Sequence[str]) -> str | None:
    """The adapter that brings new tokens, for which the model gets rows, in place; None where none does. ModelError for several."""
    bringing = [name for name in adapters if files.brings_tokens(name, model.config.vocab_size)]
    if len(bringing) > 1:
        raise ModelError("several adapters bring new tokens, which have the same numbers and not the same meaning",
                         found=" and ".join(bringing), expected="one such adapter",
                         fix="Merge one, and train the others again on the result.")  # fmt: skip
    for name in bringing:
        files.make_room(model, name)
    return next(iter(bringing), None)


def check(merged: Merged, tolerance: float | None = None) -> None:
    """ModelError where merged and unmerged logits differ by more than the tolerance, by default that of the type."""
    allowed = TOLERANCES[merged.dtype] if tolerance is None else tolerance
    if not merged.comparison.share <= allowed:
        told = "tolerance" if tolerance is not None else f"the tolerance of {str(merged.dtype).removeprefix('torch.')}"
        found = f"a difference of {merged.comparison.share:.2e} of the largest logit"
        raise ModelError("the merged model does not compute what the adapters do; nothing is written", found=found,
                         expected=f"at most {allowed:g}, {told}",
                         fix="Keep the adapters beside the model, or set tolerance= if that is right for you.")  # fmt: skip


def _bits(adapters: Sequence[str]) -> dict[str, Any] | None:
    """The form of the base that all adapters were trained on."""
    found = [files.quantization(name) for name in adapters]
    if any(each != found[0] for each in found):
        names = " and ".join(str(each["kind"]) if each else "numbers" for each in found)
        raise ModelError("the adapters were trained on different forms of the base", found=names, expected="one form",
                         fix="Merge those of one form, and train the others again on the result.")  # fmt: skip
    return found[0]


def stored_dtype(base: str) -> torch.dtype:
    """The type in which a model's folder holds its weights, of those that it is written in."""
    folder = files.locate(base)
    if folder is not None:
        return stored_dtype(str(files.base_of(folder)))
    told = json.loads((hf.locate(base) / "config.json").read_text(encoding="utf-8"))
    found = getattr(torch, str(told.get("dtype") or told.get("torch_dtype") or "float32"), None)
    return found if found in TOLERANCES else torch.float32


def one_adapter(model: Transformer, combined: Changes) -> AdapterConfig:
    """Put a combination on its plain base as one LoRA, in place. ModelError where it has no low rank."""
    maps = {name.removesuffix(".weight"): change for name, change in combined.items() if change.rank is not None}
    whole = [name for name in combined if name.removesuffix(".weight") not in maps]
    for name in whole:
        if is_map(name, combined[name]):
            raise ModelError(f"the combined change of {name} has no low rank", fix="Take how=svd with rank=, or what=model.")
    if not maps:
        raise ModelError("the adapters change no map by a low rank", fix="Take how=svd with rank=, or what=model.")
    fitted = {name: _fitted(change, *_sides(model, name)) for name, change in maps.items()}
    ranks = {name: cast(int, change.rank) for name, change in fitted.items()}
    most = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != most}
    config = load(AdapterConfig, {
        "method": "lora", "targets": list(maps), "rank": most, "alpha": most, "also": whole, "lora": {"ranks": others, "alphas": others},
    })  # fmt: skip
    adapt(model, config)
    for name, module in adapted(model):
        if isinstance(module, LoRALinear):
            module.lora_A.copy_(cast(Tensor, fitted[name].down))
            module.lora_B.copy_(cast(Tensor, fitted[name].up))
    own = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    for name in whole:
        own[name].copy_(own[name].double() + combined[name].whole())
    return config


def _sides(model: nn.Module, name: str) -> tuple[int, int]:
    module = model.get_submodule(name)
    return cast(int, module.out_features), cast(int, module.in_features)


def _fitted(change: Change, outputs: int, inputs: int) -> Change:
    """With a rank of at most the matrix' smaller side, which loses nothing."""
    smaller = min(outputs, inputs)
    return truncated(change, smaller)[0] if cast(int, change.rank) > smaller else replace(change)
