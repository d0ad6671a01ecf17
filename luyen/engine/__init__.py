"""Floor 4: the loop that trains anything, and what it stands on: optimizers, schedules, checkpoints, memory, energy."""
