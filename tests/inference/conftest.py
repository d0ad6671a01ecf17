"""Every test of this room runs on one thread (toys are too small for two) and checks that names such as tokens_BT tell the shape."""

from collections.abc import Iterator

import pytest
import torch
from shapes import shapes_are_true

shapes = pytest.fixture(autouse=True)(shapes_are_true)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
