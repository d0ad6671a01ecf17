"""Weights and products of a decoder by part, counted from its size alone. Nothing here imports torch."""

from __future__ import annotations

from luyen.models.config import ExpertsConfig, TransformerConfig


def attention_weights(config: TransformerConfig) -> int:
    """Matrices of all layers: queries, keys, values and output."""
    return config.num_layers * 2 * config.hidden_size * config.head_dim * (config.num_heads + config.num_kv_heads)


def feed_forward_weights(config: TransformerConfig, active: bool = False) -> int:
    """Matrices of all layers, with routers; `active`: of experts only as many as a token goes to."""
    layers = [config.variant.experts_of(layer) for layer in range(config.num_layers)]
    return sum(_layer_weights(config, experts, active) for experts in layers)


def _layer_weights(config: TransformerConfig, experts: ExpertsConfig | None, active: bool) -> int:
    width = config.hidden_size
    if experts is None:
        return 3 * width * config.intermediate_size
    routed = (experts.per_token if active else experts.count) * experts.intermediate_size
    shared_gate = width if experts.shared_size else 0
    return 3 * width * (routed + experts.shared_size) + width * experts.count + shared_gate


def vector_weights(config: TransformerConfig) -> int:
    """Norms and biases of all layers, and the norm behind them."""
    heads = {"": 0, "head": 2, "whole": config.num_heads + config.num_kv_heads}[config.variant.qk_norm]
    heads += config.num_heads + 2 * config.num_kv_heads if config.variant.qkv_bias else 0
    return (2 * config.num_layers + 1) * config.hidden_size + config.num_layers * heads * config.head_dim


def attention_pairs(config: TransformerConfig, length: int) -> float:
    """Pairs of a query and a key that a sequence of `length` has in all layers, for one head: half of the square, less through a window."""
    windows = [config.variant.window_of(layer) for layer in range(config.num_layers)]
    return sum(length**2 - max(0, length - window) ** 2 if window else length**2 for window in windows) / 2


def idle_weights(model: TransformerConfig) -> int:
    """Those of the experts that a token does not go to."""
    return feed_forward_weights(model) - feed_forward_weights(model, active=True)


def feed_forwards(model: TransformerConfig) -> list[int]:
    """Width of every feed-forward layer, of every expert one."""
    found = []
    for layer in range(model.num_layers):
        experts = model.variant.experts_of(layer)
        shared = [experts.shared_size] if experts and experts.shared_size else []
        found += [experts.intermediate_size] * experts.count + shared if experts else [model.intermediate_size]
    return found


def inner_width(model: TransformerConfig) -> float:
    """Width of a token in the feed-forward layer, of all experts that it goes to together; on average over the layers."""
    layers = [model.variant.experts_of(layer) for layer in range(model.num_layers)]
    widths = [each.per_token * each.intermediate_size + each.shared_size if each else model.intermediate_size for each in layers]
    return sum(widths) / model.num_layers


def routing_bytes(model: TransformerConfig, half: bool) -> float:
    """Bytes that a mixture keeps of a token for its backward pass, beside the products of its experts, on average over the layers.

    The copies that go to experts and come back, with their places in 64 bits, what a shared expert gives, scores; and what the router
    reads, which is fp32 and so a copy of its own where the rest is in half precision.
    """
    each, found = 2.0 if half else 4.0, 0.0
    for experts in filter(None, map(model.variant.experts_of, range(model.num_layers))):
        copies = experts.per_token * (2 * each * model.hidden_size + 48) + each * model.hidden_size * (experts.shared_size > 0)
        found += copies + 8 * experts.count + (4 * model.hidden_size if half else 0)
    return found / model.num_layers
