"""Floor 6: a run folder as one page that a person can read, and as a model card."""
