"""Which of several processes this one is, and what they tell each other.

torchrun starts them and says in the environment who each is: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. Rank 0 is the main
process: it alone writes and speaks. Without these variables there is one process, and nothing here costs anything. Two ways to talk:

- `told_by_main`, over torchrun's key-value store, before and between training; it waits as long as the main process works;
- collectives inside `group`, which fail after a timeout with the ranks that did not answer.

torch is imported only by what talks.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luyen.core import interrupt
from luyen.core.errors import LuyenError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch._C._distributed_c10d import Store

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
POLL_SECONDS = 0.05
ROLL_CALL_SECONDS = 5.0
"""How long, after a failure, the processes that noticed it wait for the others to say that they live."""
SIGNS = ("timed out", "timeout", "connection closed", "connection reset", "broken pipe", "gloo", "nccl", "socket", "store")
"""Words in the message of a collective that failed because a process is not there any more."""

_store: list[Store] = []
_told = itertools.count()
_groups = itertools.count()


class RankLost(LuyenError):
    """A process of this run died or does not answer; what was saved is intact."""


def ranks() -> int:
    """Number of processes of this run; 1 unless a launcher such as torchrun said otherwise."""
    return int(os.environ["WORLD_SIZE"]) if all(os.environ.get(name) for name in NEEDED) else 1


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ["RANK"]) if ranks() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0")) if ranks() > 1 else 0


def one_machine() -> bool:
    """Whether all processes run on this machine, as far as the launcher says."""
    return ranks() == 1 or int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == ranks()


def launch() -> dict[str, int]:
    """How the launcher started this run: `processes`, `machines` that they are on, and `restarts` at most after a failure."""
    alone = ranks() == 1
    here = 1 if alone else int(os.environ.get("LOCAL_WORLD_SIZE") or ranks())
    restarts = 0 if alone else int(os.environ.get("TORCHELASTIC_MAX_RESTARTS") or 0)
    return {"processes": ranks(), "machines": ranks() // here, "restarts": restarts}


@contextlib.contextmanager
def by_itself() -> Iterator[None]:
    """Within the block this process is one that no launcher started."""
    hidden = {name: os.environ.pop(name) for name in NEEDED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """`folder` for the main process; for every other one a temporary folder, so that only one writes."""
    if is_main():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=f"luyen-rank{rank()}-") as scratch:
        yield Path(scratch)


def told_by_main(value: Any = None) -> Any:
    """What the main process says at this point (JSON); the others' own `value` is not read. All call it, in the same order.

    Others wait without limit, since before training the main process may work for hours. Raises Interrupted at a signal.
    """
    if ranks() == 1:
        return value
    key = f"luyen/told/{next(_told)}"
    if is_main():
        store().set(key, json.dumps(value))
        return value
    _await(store(), key)
    return json.loads(store().get(key))


def store() -> Store:
    """The key-value store of this run's launcher. Keys of an attempt before a restart are not seen. The first call waits for all."""
    if not _store:
        from torch._C._distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        shared = next(iter(rendezvous("env://")))[0]
        _store.append(PrefixStore(_attempt(shared), shared))
    return _store[0]


def _attempt(shared: Store) -> str:
    """A name that all processes of this attempt agree on and no earlier one had: torchrun keeps its store, with all keys, over a restart.

    The main process makes a name up and each other answers it with one of its own; both are new in every attempt, so what a process that
    was killed had written is neither a name to agree on nor an answer.
    """
    own = uuid.uuid4().hex
    if is_main():
        shared.set("luyen/attempt", own)
        answers = []
        for other in range(1, ranks()):
            _await(shared, f"luyen/{own}/{other}")
            answers.append(shared.get(f"luyen/{own}/{other}").decode())
        shared.set(f"luyen/{own}/all", " ".join(answers))
        return own
    answered = ""
    while True:
        _await(shared, "luyen/attempt")
        interrupt.check()
        if (name := shared.get("luyen/attempt").decode()) != answered:
            shared.set(f"luyen/{name}/{rank()}", own)
            answered = name
        if shared.check([f"luyen/{name}/all"]) and own in shared.get(f"luyen/{name}/all").decode().split():
            return name
        time.sleep(POLL_SECONDS)


def _await(shared: Store, key: str) -> None:
    while not shared.check([key]):
        interrupt.check()
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def group(timeout: float) -> Iterator[None]:
    """Within the block all processes can use collectives; nothing happens when there is one process.

    Raises RankLost, naming the ranks, when one does not answer within `timeout` seconds or has died.
    """
    if ranks() == 1:
        yield
        return
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore

    number = next(_groups)
    prefixed = PrefixStore(f"luyen/group/{number}", store())
    try:
        dist.init_process_group(store=prefixed, rank=rank(), world_size=ranks(), timeout=datetime.timedelta(seconds=timeout))
        yield
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in SIGNS):
            raise
        raise RankLost(_roll_call(number, timeout, error)) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """The JSON-like `value` of every rank, in their order; a collective of `group`."""
    if ranks() == 1:
        return [value]
    import torch
    import torch.distributed as dist

    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks())]
    dist.all_gather(sizes, torch.tensor([data.numel()]))
    longest = max(int(size) for size in sizes)
    padded = torch.cat([data, data.new_zeros(longest - data.numel())])
    found = [data.new_zeros(longest) for _ in range(ranks())]
    dist.all_gather(found, padded)
    return [json.loads(bytes(item[: int(size)].tolist())) for item, size in zip(found, sizes, strict=True)]


def weights_of_main() -> torch.device:
    """Where a model that will be trained is made: the CPU for the main process, and for the others no memory at all (torch's meta device).

    Training sends every process what it keeps of the main one's weights. `with weights_of_main(): ...`, or as an argument.
    """
    import torch

    return torch.device("cpu" if is_main() else "meta")


def from_main(tensors: dict[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
    """The main process' tensors by name on every rank, on the CPU, one at a time; others give None. A collective of `group`."""
    if ranks() == 1:
        yield from (tensors or {}).items()
        return
    import torch
    import torch.distributed as dist

    mine = tensors or {}
    header = {name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in mine.items()}
    for name, (dtype, shape) in gather(header)[0].items():
        tensor = mine[name].detach().cpu().contiguous() if is_main() else torch.empty(shape, dtype=getattr(torch, dtype))
        dist.broadcast(tensor, 0)
        yield name, tensor


def _roll_call(number: int, timeout: float, error: BaseException) -> str:
    """One line that names the ranks that do not say, within a few seconds, that they live."""
    missing = list(range(ranks()))
    with contextlib.suppress(RuntimeError):  # the store may be gone with the machine that held it
        store().set(f"luyen/alive/{number}/{rank()}", "1")
        end = time.monotonic() + min(ROLL_CALL_SECONDS, timeout)
        while missing and time.monotonic() < end:
            missing = [other for other in missing if not store().check([f"luyen/alive/{number}/{other}"])]
            time.sleep(POLL_SECONDS)
    fix = "Checkpoints are intact: the same command continues (torchrun --max-restarts does so by itself)"
    if not missing or len(missing) == ranks():
        reason = " ".join(str(error).split())[:200]
        return f"the processes lost each other, seen by rank {rank()} of {ranks()}: {reason}. {fix}"
    names = ", ".join(str(other) for other in missing)
    return f"rank {names} of {ranks()} died or did not answer for {timeout:g} s, seen by rank {rank()}. {fix}"
