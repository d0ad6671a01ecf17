"""Toy runs, made once for all tests that only read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .toy_run import build


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; tests must not change it."""
    return build(tmp_path_factory.mktemp("runs") / "quickstart")
