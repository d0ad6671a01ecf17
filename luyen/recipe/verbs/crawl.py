"""`crawl`: pages with provenance."""

from __future__ import annotations

from luyen.corpus.crawl import CrawlConfig, crawl
from luyen.recipe.stage import Stage


def run(config: CrawlConfig, stage: Stage) -> None:
    """Fetch what the config asks for into the stage's folder."""
    stage.metrics.update(crawl(config, stage.folder))
