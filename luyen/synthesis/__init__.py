"""Training data made from documents."""
