"""Values that are known at some voxels, continued smoothly to all others."""

from __future__ import annotations

import torch
from torch import Tensor

import deepatlas_ops as ops

# Steps of relaxation after the coarse solution, each over a cube of 3 voxels.
_RELAXATIONS = 8


def fill_in(values: Tensor, known: Tensor) -> Tensor:
    """Continue values into the voxels where they are not known.

    Means over blocks of 2, 4, 8, … voxels fill what finer blocks leave empty; each voxel is then relaxed towards the
    mean of its neighbours, so that the result is nearly harmonic: it neither overshoots nor has edges.

    Args:
        values: ``[1, C, D, H, W]``; what stands where nothing is known does not matter, if it is finite.
        known: bool ``[1, 1, D, H, W]``.

    Returns ``[1, C, D, H, W]``, with the known values as they are; zeros if none is known.
    """
    share = known.to(values.dtype)
    out = _pyramid(values * share, share)
    for _ in range(_RELAXATIONS):
        # The mean over a cube is that over its planes, of that over their lines.
        means = out
        for axis in range(3):
            kernel, sides = [1, 1, 1], [0, 0, 0]
            kernel[axis], sides[axis] = 3, 1
            means = torch.nn.functional.avg_pool3d(
                means, kernel, stride=1, padding=sides, count_include_pad=False
            )
        out = torch.where(known, values, means)
    return out


def _pyramid(weighted: Tensor, share: Tensor) -> Tensor:
    """Filled values of weighted sums ``[1, C, …]`` and their weights ``[1, 1, …]``, from coarse to fine."""
    mean = weighted / share.clamp_min(1e-12)
    if bool((share > 0).all()) or max(share.shape[2:]) == 1:
        return mean
    kernel = [min(2, n) for n in share.shape[2:]]
    pooled = [torch.nn.functional.avg_pool3d(x, kernel, ceil_mode=True) for x in (weighted, share)]
    coarse = ops.resize(_pyramid(*pooled), share.shape[2:])
    return torch.where(share > 0, mean, coarse)
