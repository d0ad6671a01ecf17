"""Floor 3: a model made to answer: key-value cache, sampling, batched generation, streaming."""
