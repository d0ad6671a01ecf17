"""Floor 6: the recipe, a graph of stages by name; runs what changed, resumes what stopped, records lineage."""
