"""For a program that scores answers (inference/reward_process.py): a function becomes one that speaks JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def serve(score: Callable[[dict[str, Any]], float]) -> None:
    """Answer each line of standard input with the score of its row until the input ends.

    What the function prints goes to standard error, so that it is not taken for a score.
    """
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        out.write(json.dumps(score(json.loads(line))) + "\n")
        out.flush()
