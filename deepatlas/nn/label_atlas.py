"""The channels of the atlas that hold labels, X' of section 5.1.5: one trainable mask per structure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepatlas.nn.atlas import sample_shared


class LabelAtlas(nn.Module):
    """The masks of K structures over the coordinate space [-1, 1]^3, and facts about them that a checkpoint holds.

    Attributes:
        values: the parameter ``[1, K, N, N, N]``, 1 inside a structure and 0 outside it.
        fraction: ``[K]``, the part of an exam's foreground that each structure fills on average.
        overlaps: ``[K, K]``, 1 where exams show the structure of the row below the structure of the column, else 0.
    """

    # Buffers that nn.Module sets.
    fraction: Tensor
    overlaps: Tensor

    def __init__(self, structures: int, size: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(1, structures, *(size,) * 3))
        self.register_buffer("fraction", torch.ones(structures))
        self.register_buffer("overlaps", torch.zeros(structures, structures))

    def forward(self, coords: Tensor) -> Tensor:
        """All masks resampled by coordinate maps: ``[B, 3, D, H, W] -> [B, K, D, H, W]``."""
        return sample_shared(self.values, coords)
