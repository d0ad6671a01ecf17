"""Factors as a file holds them and as a model has them, where these differ: starts that are taken off, and triples that are gone.

PiSSA and whatever else takes off what it started from is written as one plain LoRA of twice the rank, which is how PEFT can hold it:
    s (B A - B0 A0) = s [B, -B0] [A; A0]
"""

from __future__ import annotations

import torch
from torch.nn import functional

from luyen.adapters.peft_names import State

STARTS = (".start_A", ".start_B")


def without_starts(state: State) -> State:
    """With each start appended to the factor that it is taken off from."""
    joined = dict(state)
    for name in [name for name in state if name.endswith(".start_A")]:
        owner = name.removesuffix(".start_A")
        start_a, start_b = joined.pop(name), joined.pop(f"{owner}.start_B")
        joined[f"{owner}.lora_A"] = torch.cat([state[f"{owner}.lora_A"], start_a])
        joined[f"{owner}.lora_B"] = torch.cat([state[f"{owner}.lora_B"], -start_b], 1)
    return joined


def with_starts(found: State, live: State) -> State:
    """The other way, for the maps of the model that take off a start."""
    split = dict(found)
    for name in [name for name in live if name.endswith(".start_A")]:
        owner, rank = name.removesuffix(".start_A"), live[name].shape[0]
        a, b = found.get(f"{owner}.lora_A"), found.get(f"{owner}.lora_B")
        if a is not None and b is not None and a.shape[0] == 2 * rank:
            split[f"{owner}.lora_A"], split[name] = a[:rank], a[rank:]
            split[f"{owner}.lora_B"], split[f"{owner}.start_B"] = b[:, :rank], -b[:, rank:]
    return split


def with_all_triples(found: State, live: State) -> State:
    """With zeros in the place of what AdaLoRA has taken away, which PEFT leaves out."""
    whole = dict(found)
    for name in [name for name in live if name.endswith(".lora_E")]:
        owner = name.removesuffix(".lora_E")
        missing = live[name].shape[0] - found[name].shape[0] if name in found else 0
        if missing > 0 and f"{owner}.lora_A" in found and f"{owner}.lora_B" in found:
            whole[name] = functional.pad(found[name], (0, missing))
            whole[f"{owner}.lora_A"] = functional.pad(found[f"{owner}.lora_A"], (0, 0, 0, missing))
            whole[f"{owner}.lora_B"] = functional.pad(found[f"{owner}.lora_B"], (0, missing))
    return whole
