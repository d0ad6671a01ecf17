"""How the processes of one save find each other while their loops go on: by keys in the launcher's store, never by a collective.

A collective may be under way in the loop's thread, and two threads of a process must not mix theirs. A key is set once and heard by asking
for it, so nothing waits inside the store, which the loop uses as well.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from luyen.core import distributed
from luyen.core.errors import StorageError


class Meeting:
    """What the processes tell each other about the save `number`."""

    def __init__(self, number: int, timeout: float = 600.0) -> None:
        """`timeout`: seconds that a process may be silent."""
        self.number, self.timeout = number, timeout
        self.over = threading.Event()
        """Set when the others are known to be gone: nobody is waited for any more."""

    def tell(self, what: str, value: Any) -> None:
        """Something (JSON) of this process."""
        if distributed.ranks() > 1:
            distributed.store().set(self._key(distributed.rank(), what), json.dumps(value))

    def hear(self, rank: int, what: str) -> Any:
        """What another process told. Raises StorageError when it could not write, RankLost when it is silent for too long."""
        end = time.monotonic() + self.timeout
        while not distributed.store().check([self._key(rank, what)]):
            if distributed.store().check([self._key(rank, "failure")]):
                raise StorageError(json.loads(distributed.store().get(self._key(rank, "failure"))))
            if self.over.is_set() or time.monotonic() > end:
                raise distributed.RankLost(
                    f"rank {rank} of {distributed.ranks()} did not write its part of a checkpoint, seen by rank {distributed.rank()}. "
                    "Earlier checkpoints are intact: the same command continues"
                )
            time.sleep(distributed.POLL_SECONDS)
        return json.loads(distributed.store().get(self._key(rank, what)))

    @contextlib.contextmanager
    def telling_failure(self) -> Iterator[None]:
        """An error in the block is told to whoever waits for this process, and goes on."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(RuntimeError):  # the store may be gone
                self.tell("failure", str(error))
            raise

    def _key(self, rank: int, what: str) -> str:
        return f"luyen/save/{self.number}/{rank}/{what}"
