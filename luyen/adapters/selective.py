"""Selective fine-tuning: a few of the model's own parameters are trained and nothing is added.

Which is what `also` names: norms alone (Zhao et al., 2023, arXiv:2312.11420), embeddings and head for a new language, or the last layers.
"""

from __future__ import annotations

from torch import nn

from luyen.adapters.config import AdapterConfig


def selective(model: nn.Module, config: AdapterConfig) -> None:
    """Add nothing: `adapt` has frozen the model and trains what `also` names."""
