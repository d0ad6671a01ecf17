"""Floor 2: from raw bytes to clean documents: crawl, extract, normalise, filter, mask, deduplicate."""
