"""No process but the main one ever holds the whole model, and what it starts from is the main one's to the bit."""

from __future__ import annotations

import json

import pytest
from curves import PROJECT


@pytest.mark.slow
@pytest.mark.parametrize(("axes", "most"), [({"pipeline": 2}, 0.75), ({"tensor": 2}, 0.75), ({"shard": 2}, 0.95)], ids=str)
def test_a_rank_takes_memory_for_its_part_alone_and_gets_the_same_bits(tmp_path, torchrun, axes, most):
    """With shard a rank gathers one layer at a time, an eighth of this model: once for the message and once for the weights in it."""
    done = torchrun(2, str(PROJECT / "tests" / "parallel" / "start_driver.py"), json.dumps(axes), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    main, other = (json.loads((tmp_path / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert main["equal"] and main["took"] > main["size"] > 4e8
    assert other["took"] < most * other["size"], other
