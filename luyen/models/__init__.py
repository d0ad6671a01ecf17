"""Floor 1: the decoder, its presets, and the file formats it comes from and goes to."""
