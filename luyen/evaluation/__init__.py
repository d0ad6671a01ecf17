"""What a model knows: text in bits per byte, questions answered, before and after a training stage."""
