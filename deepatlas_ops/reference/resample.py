"""Corner-aligned sampling in PyTorch: resample, warp, resize and affine_resample with their gradients.

Modes and paddings are given by the integers of the op schemas: mode 0 is linear and 1 is nearest; padding 0 is border,
1 is zeros and 2 is reflection. Half types are computed in float32 and rounded once, at the end. The ``*_backward``
functions return an empty tensor in place of a gradient that is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._transforms import active
from ._common import batch_first, compute_dtype, grid_axes

# grid_sample calls linear sampling "bilinear" in three dimensions too.
_MODES = ("bilinear", "nearest")
_PADDINGS = ("border", "zeros", "reflection")
# The same paddings as aten numbers them: zeros, border, reflection.
_ATEN_PADDINGS = (1, 0, 2)


def _sample(volume: Tensor, grid: Tensor, mode: int, padding: int) -> Tensor:
    """grid_sample at grid [B, D, H, W, 3], except that a NaN coordinate gives NaN in every channel."""
    work = compute_dtype(volume.dtype)
    missing = torch.isnan(grid).any(-1)[:, None]
    sampled = F.grid_sample(
        batch_first(volume.to(work)),
        batch_first(_without_nan(grid)),
        mode=_MODES[mode],
        padding_mode=_PADDINGS[padding],
        align_corners=True,
    )
    return sampled.masked_fill(missing, float("nan")).to(volume.dtype).contiguous()


def _without_nan(grid: Tensor) -> Tensor:
    """The grid with 0 for NaN and a large finite coordinate for infinity.

    Infinity times the extent of an axis of one voxel, which is 0, would be NaN.
    """
    return torch.nan_to_num(grid, nan=0.0, posinf=1e9, neginf=-1e9)


def _sample_backward(
    grad: Tensor, volume: Tensor, grid: Tensor, mode: int, padding: int, need_volume: bool, need_grid: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of _sample with respect to volume, in its dtype, and grid, in the compute type."""
    work = compute_dtype(volume.dtype)
    # The value of a voxel with a NaN coordinate is the constant NaN, so no gradient passes through it.
    missing = torch.isnan(grid).any(-1)
    grad_volume, grad_grid = torch.ops.aten.grid_sampler_3d_backward(
        batch_first(grad.to(work).masked_fill(missing[:, None], 0.0)),
        batch_first(volume.to(work)),
        batch_first(_without_nan(grid)),
        mode,
        _ATEN_PADDINGS[padding],
        True,
        [need_volume, True],
    )
    empty = volume.new_empty(0)
    return (
        grad_volume.to(volume.dtype).contiguous() if need_volume else empty,
        grad_grid if need_grid else empty,
    )


def resample(volume: Tensor, coords: Tensor, mode: int, padding: int) -> Tensor:
    """Values of volume [B, C, D, H, W] at coords [B, 3, d, h, w]: [B, C, d, h, w]."""
    grid = coords.to(compute_dtype(coords.dtype)).movedim(1, -1)
    return _sample(volume, grid, mode, padding)


def resample_backward(
    grad: Tensor,
    volume: Tensor,
    coords: Tensor,
    mode: int,
    padding: int,
    need_volume: bool,
    need_coords: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of resample with respect to volume and coords."""
    grid = coords.to(compute_dtype(coords.dtype)).movedim(1, -1)
    grad_volume, grad_grid = _sample_backward(grad, volume, grid, mode, padding, need_volume, need_coords)
    return grad_volume, grad_grid.movedim(-1, 1).to(coords.dtype).contiguous() if need_coords else grad_grid


def _displaced(displacement: Tensor) -> Tensor:
    """Identity plus displacement [B, 3, D, H, W], as a grid [B, D, H, W, 3]."""
    moved = displacement.to(compute_dtype(displacement.dtype))
    x, y, z = grid_axes(displacement.shape[2:], displacement)
    return torch.stack((moved[:, 0] + x, moved[:, 1] + y, moved[:, 2] + z), dim=-1)


def warp(volume: Tensor, displacement: Tensor, mode: int, padding: int) -> Tensor:
    """Values of volume [B, C, D, H, W] at identity + displacement [B, 3, d, h, w]: [B, C, d, h, w]."""
    return _sample(volume, _displaced(displacement), mode, padding)


def warp_backward(
    grad: Tensor,
    volume: Tensor,
    displacement: Tensor,
    mode: int,
    padding: int,
    need_volume: bool,
    need_displacement: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of warp with respect to volume and displacement."""
    grad_volume, grad_grid = _sample_backward(
        grad, volume, _displaced(displacement), mode, padding, need_volume, need_displacement
    )
    if need_displacement:
        grad_grid = grad_grid.movedim(-1, 1).to(displacement.dtype).contiguous()
    return grad_volume, grad_grid


def _middle(n: int) -> slice:
    """The one or two voxels around coordinate 0 of an axis of n voxels."""
    return slice((n - 1) // 2, n // 2 + 1)


def _laid_out(result: Tensor, channels_last: bool) -> Tensor:
    """The result, contiguous or with the channels last. vmap knows no other layout than the first."""
    if channels_last and not active():
        return result.clone(memory_format=torch.channels_last_3d)
    return result.contiguous()


def resize(volume: Tensor, size: Sequence[int], channels_last: bool = False) -> Tensor:
    """Values of volume [B, C, D, H, W] on the corner-aligned grid of ``size``: [B, C, *size].

    An output axis of size 1 lies at coordinate 0, the middle of the input axis, where F.interpolate would take the
    first voxel. For all other sizes the result is that of F.interpolate.
    """
    work = volume.to(compute_dtype(volume.dtype))
    for axis, n in enumerate(size, start=2):
        if n == 1 and work.shape[axis] > 1:
            middle = _middle(work.shape[axis])
            work = work.narrow(axis, middle.start, middle.stop - middle.start).mean(axis, keepdim=True)
    # F.interpolate refuses an empty batch.
    if work.numel() == 0:
        empty = work.new_zeros((*volume.shape[:2], *size), dtype=volume.dtype) + work.sum().to(volume.dtype)
        return _laid_out(empty, channels_last)
    out = F.interpolate(work, size=tuple(size), mode="trilinear", align_corners=True)
    return _laid_out(out.to(volume.dtype), channels_last)


def resize_backward(grad: Tensor, size: Sequence[int], channels_last: bool = False) -> Tensor:
    """Gradient of resize with respect to its volume, whose grid has ``size``."""
    work = grad.to(compute_dtype(grad.dtype))
    folded = [1 if m == 1 else n for n, m in zip(size, grad.shape[2:], strict=True)]
    if work.numel() == 0:
        return _laid_out(grad.new_zeros((*grad.shape[:2], *size)), channels_last)
    work = torch.ops.aten.upsample_trilinear3d_backward(
        work.contiguous(), list(grad.shape[2:]), [*grad.shape[:2], *folded], True
    )
    for axis, (n, m) in enumerate(zip(size, folded, strict=True), start=2):
        if m != n:
            middle = _middle(n)
            shape = list(work.shape)
            shape[axis] = n
            spread = work.new_zeros(shape)
            count = middle.stop - middle.start
            spread.narrow(axis, middle.start, count).copy_(
                (work / count).expand_as(spread.narrow(axis, 0, count))
            )
            work = spread
    return _laid_out(work.to(grad.dtype), channels_last)


def _affine_grid(theta: Tensor, size: Sequence[int]) -> Tensor:
    """theta [B, 3, 4] applied to the voxels of a grid of ``size``: [B, D, H, W, 3].

    This is a sum over the three axes and not a matrix product, which CUDA may round to TF32.
    """
    t = theta.to(compute_dtype(theta.dtype))[..., None, None, None]
    x, y, z = grid_axes(size, theta)
    return torch.stack(
        [t[:, i, 0] * x + t[:, i, 1] * y + t[:, i, 2] * z + t[:, i, 3] for i in range(3)], dim=-1
    )


def affine_resample(volume: Tensor, theta: Tensor, size: Sequence[int], mode: int, padding: int) -> Tensor:
    """Values of volume [B, C, D, H, W] at theta [B, 3, 4] applied to the grid of ``size``: [B, C, *size]."""
    return _sample(volume, _affine_grid(theta, size), mode, padding)


def affine_resample_backward(
    grad: Tensor, volume: Tensor, theta: Tensor, mode: int, padding: int, need_volume: bool, need_theta: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of affine_resample with respect to volume and theta."""
    size = grad.shape[2:]
    grad_volume, grad_grid = _sample_backward(
        grad, volume, _affine_grid(theta, size), mode, padding, need_volume, need_theta
    )
    if not need_theta:
        return grad_volume, grad_grid
    x, y, z = (axis[..., None] for axis in grid_axes(size, theta))
    columns = [(grad_grid * axis).sum((1, 2, 3)) for axis in (x, y, z)] + [grad_grid.sum((1, 2, 3))]
    return grad_volume, torch.stack(columns, dim=-1).to(theta.dtype).contiguous()
