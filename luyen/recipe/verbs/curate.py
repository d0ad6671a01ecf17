"""`curate`: pages or files to clean documents."""

from __future__ import annotations

from luyen.corpus.curate import curate
from luyen.corpus.sources import Reading
from luyen.recipe.configs import CurateVerbConfig
from luyen.recipe.stage import Stage


def run(config: CurateVerbConfig, stage: Stage) -> None:
    """Clean what `source` holds; documents, dropped documents and the funnel stay in the stage's folder."""
    read = config.read
    reading = Reading(tuple(sorted(read.columns.items())), read.split, read.text_unit, read.strict)
    stage.metrics.update(curate(config, stage.files(config.source), stage.folder, reading))
