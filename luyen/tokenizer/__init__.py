"""Text to ids and back: training, loading, chat templates with their answer masks, fertility. Imports no torch."""
