"""`curate`: pages or files to clean documents."""

from __future__ import annotations

from luyen.corpus.curate import curate
from luyen.recipe.configs import CurateVerbConfig
from luyen.recipe.stage import Stage


def run(config: CurateVerbConfig, stage: Stage) -> None:
    """Clean what `source` holds; documents, dropped documents and the funnel stay in the stage's folder."""
    stage.metrics.update(curate(config, stage.path(config.source), stage.folder))
