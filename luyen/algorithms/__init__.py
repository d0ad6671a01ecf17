"""Floor 5: algorithms. Each is a stream of batches and a loss, in one file that reads like its paper."""
