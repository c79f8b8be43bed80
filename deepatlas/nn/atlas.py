"""The learnable atlas X of section 5.1.2: one trainable volume over the coordinate space [-1, 1]^3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import deepatlas_ops as ops


class Atlas(nn.Module):
    """The image of the learned coordinate space: a parameter ``values [1, 1, N, N, N]`` in [0, 1]."""

    def __init__(self, size: int = 128):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(1, 1, size, size, size))

    @torch.no_grad()
    def seed(self, volume: Tensor, extent: float) -> None:
        """Initialise the atlas from one exam ``[1, 1, D, H, W]`` in [0, 1], which fills the cube [-extent, extent]^3.

        The margin around it is for anatomy that this exam does not show (tanh reaches the faces of [-1, 1]^3 only
        asymptotically). It is initialised by continuing the border of the exam.
        """
        scale = torch.eye(3, 4, dtype=volume.dtype, device=volume.device)[None] / extent
        size = self.values.shape[2:]
        self.values.copy_(ops.affine_resample(volume, scale, size, padding="border"))

    def forward(self, coords: Tensor) -> Tensor:
        """The atlas resampled by coordinate maps (X o c_n, eq. 8): ``[B, 3, D, H, W] -> [B, 1, D, H, W]``."""
        return sample_shared(self.values, coords)


def sample_shared(volume: Tensor, coords: Tensor, *, padding: str = "border") -> Tensor:
    """``ops.resample`` of one volume ``[1, C, N, N, N]`` by a batch of maps: ``[B, 3, D, H, W] -> [B, C, D, H, W]``.

    The maps are stacked along z, so that the volume need not be copied for each exam.
    """
    batch, _, depth, height, width = coords.shape
    stacked = coords.transpose(0, 1).reshape(1, 3, batch * depth, height, width)
    sampled = ops.resample(volume, stacked, padding=padding)
    return sampled.view(-1, batch, depth, height, width).transpose(0, 1)
