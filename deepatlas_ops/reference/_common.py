"""What several bodies share: the compute type, coordinates of a grid, differences along an axis, weighted means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that an op computes and accumulates in: float32 for half types, otherwise the type itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def batch_first(x: Tensor) -> Tensor:
    """``x`` with the axes that torch.vmap adds moved in front of all others.

    PyTorch 2.13's batching rules for grid_sample return wrong values, without an error, when the mapped axis lies
    elsewhere. Adding a zero moves it to the front.
    """
    return x + x.new_zeros(()) if torch._C._are_functorch_transforms_active() else x


# ---- grids ------------------------------------------------------------------------------------------


def axis_coordinates(n: int, like: Tensor) -> Tensor:
    """Normalised coordinates of the voxels of one axis: [n], from -1 to 1, or 0 for an axis of size 1."""
    dtype = compute_dtype(like.dtype)
    if n == 1:
        return torch.zeros(1, dtype=dtype, device=like.device)
    return torch.linspace(-1, 1, n, dtype=dtype, device=like.device)


def grid_axes(size: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates along x, y and z of a grid of ``size``, shaped so that they broadcast over [D, H, W]."""
    d, h, w = size
    return (
        axis_coordinates(w, like),
        axis_coordinates(h, like)[:, None],
        axis_coordinates(d, like)[:, None, None],
    )


def identity_grid(size: Sequence[int], like: Tensor) -> Tensor:
    """Coordinates of a grid's own voxels: [1, 3, D, H, W], in the compute type and on the device of ``like``."""
    x, y, z = (axis.expand(tuple(size)) for axis in grid_axes(size, like))
    return torch.stack((x, y, z))[None]


# ---- differences ------------------------------------------------------------------------------------


def difference(field: Tensor, axis: int) -> Tensor:
    """Derivative of ``field`` by the normalised coordinate of an axis of at least two voxels.

    Central differences inside the volume, one-sided differences at its two borders, as ``torch.gradient``.
    """
    n = field.shape[axis]
    step = 2.0 / (n - 1)
    first = (field.narrow(axis, 1, 1) - field.narrow(axis, 0, 1)) / step
    if n == 2:
        return torch.cat((first, first), axis)
    middle = (field.narrow(axis, 2, n - 2) - field.narrow(axis, 0, n - 2)) / (2 * step)
    last = (field.narrow(axis, n - 1, 1) - field.narrow(axis, n - 2, 1)) / step
    return torch.cat((first, middle, last), axis)


def difference_adjoint(grad: Tensor, axis: int) -> Tensor:
    """The transpose of :func:`difference`: from the gradient of its result to the gradient of its argument."""
    n = grad.shape[axis]
    step = 2.0 / (n - 1)
    first, last = grad.narrow(axis, 0, 1) / step, grad.narrow(axis, n - 1, 1) / step
    out = torch.zeros_like(grad)
    if n > 2:
        middle = grad.narrow(axis, 1, n - 2) / (2 * step)
        out.narrow(axis, 2, n - 2).add_(middle)
        out.narrow(axis, 0, n - 2).sub_(middle)
    out.narrow(axis, 0, 1).sub_(first)
    out.narrow(axis, 1, 1).add_(first)
    out.narrow(axis, n - 1, 1).add_(last)
    out.narrow(axis, n - 2, 1).sub_(last)
    return out


# ---- means ------------------------------------------------------------------------------------------


def nonzero(total: Tensor) -> Tensor:
    """``total`` with 1 in place of 0, so that an empty sum can be divided by it."""
    return torch.where(total == 0, 1.0, total)


def total_weight(weight: Tensor) -> Tensor:
    """Sum of the weights [B, 1, D, H, W] of each batch item: [B, 1, 1, 1, 1]; 1 where it would be 0."""
    return nonzero(weight.sum((2, 3, 4), keepdim=True))


def weighted_mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of [B, C, D, H, W] over the spatial axes, which are kept: [B, C, 1, 1, 1].

    ``weight`` is [B, 1, D, H, W]; None weights all voxels equally. The mean is 0 where the weights sum to 0.
    """
    if weight is None:
        return x.mean((2, 3, 4), keepdim=True)
    return (x * weight).sum((2, 3, 4), keepdim=True) / total_weight(weight)
