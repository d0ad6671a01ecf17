"""Both copies of a tied weight get their common gradient after every other sum, so that they stay equal to the bit."""

from types import SimpleNamespace

import pytest
from torch import nn

from luyen.engine.parallel import plan
from luyen.engine.parallel.plan import Parallel


def test_tied_copies_are_added_after_the_sums_over_rows_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    parallel = object.__new__(Parallel)
    parallel.mesh = SimpleNamespace(get_group=lambda axis: axis)  # type: ignore[assignment]
    parallel.shape = SimpleNamespace(data=3, shard=1, context=3, tensor=2)  # type: ignore[assignment]
    parallel.pipeline = SimpleNamespace(add_tied=lambda: done.append("tied"))  # type: ignore[assignment]
    monkeypatch.setattr(plan, "sum_gradients", lambda parameters, group: done.append(group))
    monkeypatch.setattr(plan, "summed", lambda model: ())
    parallel.add_up(nn.Linear(2, 2))
    assert done == ["data", "context", "tensor", "tied"]
