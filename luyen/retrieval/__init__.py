"""Search over documents by words."""
