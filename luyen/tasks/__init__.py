"""Tasks: examples and their score. The same object is evaluation, training data and, later, reward."""
