"""Adapters: ways to tune a model by few weights. Each is a transform of the model's modules; no model file knows of them."""
