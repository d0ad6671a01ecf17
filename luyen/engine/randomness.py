"""The random generators of all processes in one checkpoint: the main one's, and those of others that drew something else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from luyen.core import distributed
from luyen.core.random_state import random_state, restore_random_state


def states_of_all() -> dict[str, Tensor]:
    """The main process' generators by name, and as `rank3/torch` all of another whose differ; every process calls this."""
    own = random_state()
    if distributed.ranks() == 1:
        return own
    main, *others = distributed.gather({name: bytes(state.tolist()).hex() for name, state in own.items()})
    found = dict(main)
    for rank, states in enumerate(others, 1):
        if states != main:
            found |= {f"rank{rank}/{name}": state for name, state in states.items()}
    return {name: torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8) for name, state in found.items()}


def restore_own(states: Mapping[str, Tensor]) -> None:
    """Put back this process' generators; where the checkpoint has none of its own, the main one's."""
    prefix = f"rank{distributed.rank()}/"
    own = {name.removeprefix(prefix): state for name, state in states.items() if name.startswith(prefix)}
    restore_random_state(own or {name: state for name, state in states.items() if "/" not in name})
