"""Number formats of the forward pass: fp32, bf16, or fp16 with a loss scale. Weights and optimizer are always fp32."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype` inside the block; no change when that is fp32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


@dataclass
class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al., 2018, arXiv:1710.03740, section 3.2), with torch.amp.GradScaler's constants.

    Small gradients vanish in fp16, so the loss is multiplied by `scale` and the gradients divided again. An overflow halves
    the scale and skips the update; `GROWTH_INTERVAL` updates without one double it.
    """

    enabled: bool
    scale: float = 1.0
    clean_steps: int = 0

    GROWTH_INTERVAL = 2000
    SMALLEST = 2.0**-14
    """Below this an overflow is no matter of scale: the gradient itself is not finite."""

    @classmethod
    def for_dtype(cls, dtype: torch.dtype) -> LossScale:
        """Scaling from 2^16 for fp16, none for other types."""
        return cls(enabled=True, scale=2.0**16) if dtype == torch.float16 else cls(enabled=False)

    def overflowed(self) -> bool:
        """Lower the scale after a gradient that is not finite. False when that cannot be what is wrong."""
        if not self.enabled or self.scale <= self.SMALLEST:
            return False
        self.scale, self.clean_steps = self.scale / 2, 0
        return True

    def updated(self) -> None:
        """Count an update that went well."""
        self.clean_steps += 1
        if self.enabled and self.clean_steps >= self.GROWTH_INTERVAL:
            self.scale, self.clean_steps = self.scale * 2, 0
