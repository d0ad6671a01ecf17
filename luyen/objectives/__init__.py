"""Floor 1: objectives. Pure functions of tensors that return a sum; only the engine divides."""
