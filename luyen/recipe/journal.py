"""events.jsonl of a run: what began, ended, stopped and failed, and when."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from luyen.core.storage import storage_errors

EVENTS = "events.jsonl"


def event(run_folder: Path, name: str, stage: str, **facts: object) -> None:
    """Append one row; a line that a kill cut short is closed first, so that it harms no other."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    row = json.dumps({"time": now, "event": name, "stage": stage, **facts}, ensure_ascii=False)
    with storage_errors(run_folder), open(run_folder / EVENTS, "a+b") as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            row = row if file.read(1) == b"\n" else "\n" + row
        file.write(row.encode() + b"\n")
