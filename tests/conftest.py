"""Shared by all tests: two threads that wait without spinning, since test machines are shared, and no look into the user's own runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402

from luyen.core import progress  # noqa: E402

torch.set_num_threads(2)


@pytest.fixture(autouse=True, scope="session")
def own_data_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`luyen` without a folder looks for runs in the user's data folder, so tests, and what they start, get an empty one."""
    home = tmp_path_factory.mktemp("data-home")
    os.environ["XDG_DATA_HOME"] = str(home)
    return home


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """What one test has told to be shown, the next one does not see."""
    before = progress._display
    yield
    progress.use(before)
