"""Inputs that several tests of the ops share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def axis(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normalised coordinates of an axis, computed here from the convention and not by the package."""
    return torch.zeros(1, dtype=dtype) if n == 1 else torch.linspace(-1, 1, n, dtype=dtype)


def identity(size: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    """The coordinates of the voxels of a grid: [1, 3, D, H, W], channels x, y, z."""
    z, y, x = torch.meshgrid(*(axis(n, dtype) for n in size), indexing="ij")
    return torch.stack((x, y, z))[None]


def smooth(
    batch: int, size: tuple[int, int, int], amplitude: float, dtype: torch.dtype = torch.float64
) -> Tensor:
    """A smooth random vector field [batch, 3, *size]."""
    knots = torch.randn(batch, 3, 4, 4, 4, dtype=dtype)
    return F.interpolate(knots, size=size, mode="trilinear", align_corners=True) * amplitude


def inside(
    batch: int, size: tuple[int, int, int], reach: float = 1.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Random coordinates in [-reach, reach]."""
    return (2 * torch.rand(batch, 3, *size, dtype=dtype) - 1) * reach


def strided(tensor: Tensor) -> Tensor:
    """The same values in a view with permuted strides that skip every other element."""
    wide = torch.empty(*(2 * n for n in reversed(tensor.shape)), dtype=tensor.dtype)
    view = wide.permute(*reversed(range(tensor.ndim)))[tuple(slice(None, None, 2) for _ in tensor.shape)]
    view.copy_(tensor)
    assert tensor.numel() < 2 or not view.is_contiguous()
    return view
