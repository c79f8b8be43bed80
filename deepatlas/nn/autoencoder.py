"""The feature autoencoder of section 5.3: multi-resolution reconstruction of a histogram-mapped image."""

from __future__ import annotations

from torch import Tensor, nn

import deepatlas_ops as ops
from deepatlas.nn.blocks import PreactivationConv, ResidualBlock, StandardizedConv3d, resized

# Section 5.3.1: Hounsfield units and the value to which each of them is mapped, with linear interpolation in between.
HISTOGRAM_HU = (-256.0, -100.0, 10.0, 50.0, 100.0, 256.0)
HISTOGRAM_VALUE = (0.0, 0.15, 0.30, 0.70, 0.85, 1.0)
# The same Hounsfield units, scaled to [0, 1].
_KNOTS = tuple((hu - HISTOGRAM_HU[0]) / (HISTOGRAM_HU[-1] - HISTOGRAM_HU[0]) for hu in HISTOGRAM_HU)


def histogram_map(x: Tensor) -> Tensor:
    """Apply the contrast curve of section 5.3.1 to images ``[B, 1, D, H, W]`` in [0, 1], which is [-256, 256] HU."""
    return ops.piecewise_linear(x, _KNOTS, HISTOGRAM_VALUE)


class Autoencoder(nn.Module):
    """Encoder with one residual block per resolution and one reconstruction head per resolution.

    Its features, taken after the leaky ReLU before each reconstruction, define the image similarity of eq. 9.
    It is fully convolutional: every axis of the input must be even down to the last level, and is otherwise free.
    """

    def __init__(self, channels: tuple[int, ...] = (8, 16), groups: int = 8):
        super().__init__()
        self.channels = tuple(channels)
        self.stem = StandardizedConv3d(1, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            ResidualBlock(before, after, groups=groups)
            for before, after in zip((channels[0], *channels[:-1]), channels, strict=True)
        )
        self.heads = nn.ModuleList(
            PreactivationConv(c, 1, groups=groups, standardize=False) for c in channels
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """``x [B, 1, D, H, W]`` in [0, 1] -> feature maps ``[B, C_l, D / 2**l, H / 2**l, W / 2**l]``."""
        maps = []
        y = self.stem(x)
        for level, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            if level:
                y = resized(y, [max(1, n // 2) for n in y.shape[2:]])
            y = block(y)
            maps.append(head.activate(y))  # type: ignore[operator]
        return maps

    def forward(self, x: Tensor) -> list[Tensor]:
        """Reconstructions of the histogram-mapped image at every resolution, without an activation (5.3.1)."""
        return [
            head.conv(f)  # type: ignore[operator]
            for head, f in zip(self.heads, self.features(x), strict=True)
        ]

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared reconstruction error, summed over the resolutions."""
        target = histogram_map(x)
        total = x.new_zeros(())
        for reconstruction in self(x):
            goal = ops.resize(target, reconstruction.shape[2:])
            total = total + (reconstruction - goal).square().mean()
        return total
