"""Floor 0: what every room shares. Nothing here imports torch except device and random_state."""
