"""Seconds until `luyen --help` has printed, beside a bare Python and, where installed, transformers' own command; medians.

python bench/startup.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path


def seconds(command: list[str]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def main() -> None:
    """Interleave the commands, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    beside = Path(sys.executable).parent
    commands = {"python": [sys.executable, "-c", "pass"], "luyen": [str(beside / "luyen"), "--help"]}
    if shutil.which("transformers", path=str(beside)):
        commands["transformers"] = [str(beside / "transformers"), "--help"]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(seconds(command))
    medians = {f"{name}_seconds": round(statistics.median(values), 3) for name, values in times.items()}
    print(json.dumps({"benchmark": "startup", "rounds": rounds, **medians}))


if __name__ == "__main__":
    main()
