"""Smooth random images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Uniform noise on six points along each axis, linearly interpolated to ``shape`` ``[B, C, D, H, W]``."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(shape[0], shape[1], 6, 6, 6, generator=generator)
    return F.interpolate(noise, size=shape[2:], mode="trilinear", align_corners=True)
