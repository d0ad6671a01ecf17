"""Whose code makes a stage out of date."""

from pathlib import Path

import luyen
from luyen.recipe.environment import RESULT_ROOMS

SHOW = {"cli", "report", "serving"}
"""Rooms that show or serve what is there."""


def test_every_room_that_decides_results_is_counted() -> None:
    rooms = {path.parent.name for path in Path(luyen.__file__).parent.glob("*/__init__.py")}
    assert set(RESULT_ROOMS) == rooms - SHOW
