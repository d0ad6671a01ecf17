"""Rotary positions: the angles, and how they are slowed down for longer contexts.

    angle of pair i at position p = p f_i,   f_i = theta^(-2i/E)          (Su et al., 2021, arXiv:2104.09864)

    linear:  f_i / factor                                                 (Chen et al., 2023, arXiv:2306.15595)
    llama3:  (1 - s) f_i / factor + s f_i,   s = (L / w_i - low) / (high - low) kept within 0 and 1
             w_i = 2 pi / f_i the wavelength, L the length of the first training     (Llama 3.1, arXiv:2407.21783, section 3.4.2)

So llama3 leaves short wavelengths alone, slows long ones by the factor, and goes from one to the other between them.

Shapes: B rows, T tokens, E head size, I = E / 2 pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from luyen.models.config import RopeScaling


def rotation(
    positions_BT: Tensor, head_dim: int, theta: float, dtype: torch.dtype, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine (c, c) and sine (-s, s) of the angles, each (B, T, 1, E). As in Hugging Face's files, dimension i pairs with i + E/2."""
    angle = positions_BT[:, :, None, None].float() * frequencies(head_dim, theta, scaling, positions_BT.device)
    cosine, sine = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None, device: torch.device | str | None = None) -> Tensor:
    """The angle of each pair at position 1, (I,), fp32."""
    exponent_I = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    frequency_I = 1.0 / theta**exponent_I
    if scaling is None:
        return frequency_I
    if scaling.kind == "linear":
        return frequency_I / scaling.factor
    turns_I = scaling.original_length / (2 * math.pi / frequency_I)
    kept_I = ((turns_I - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)).clamp(0, 1)
    return (1 - kept_I) * frequency_I / scaling.factor + kept_I * frequency_I
