"""Luyện: from raw web pages to an assistant that answers. Importing this package imports no torch."""

__version__ = "0.1.0"
