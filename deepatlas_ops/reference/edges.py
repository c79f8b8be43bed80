"""Prewitt edges of an image and their difference between two images (section 5.1.5), in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import compute_dtype, nonzero, weighted_mean

# Added below the square root of the magnitude, so that it is differentiable where an image is flat.
EDGE_OFFSET = 1e-6
# The smallest mean square of the fixed image's edges that the difference is divided by.
EDGE_FLOOR = 1e-4
# z, y and x of [B, C, D, H, W].
_AXES = (2, 3, 4)


def _beside(x: Tensor, axis: int, sign: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` before, at and after each position of an axis; beyond a border, ``sign`` times the border's value."""
    n = x.shape[axis]
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, n - 1, 1)
    if sign != 1:
        first, last = sign * first, sign * last
    padded = torch.cat((first, x, last), axis)
    before, here, after = (padded.narrow(axis, start, n) for start in range(3))
    return before, here, after


def _smooth(x: Tensor, axis: int) -> Tensor:
    """Mean of three neighbours along an axis with replicated borders; it is its own adjoint."""
    before, here, after = _beside(x, axis)
    return (before + here + after) / 3


def _separable(x: Tensor, along: int) -> Tensor:
    """The component of the Prewitt gradient of ``x`` along one axis: a difference there, means along the others."""
    for axis in _AXES:
        if axis == along:
            before, _, after = _beside(x, axis)
            x = (after - before) / 2
        else:
            x = _smooth(x, axis)
    return x


def _separable_adjoint(x: Tensor, along: int) -> Tensor:
    """The transpose of _separable."""
    for axis in reversed(_AXES):
        if axis == along:
            before, _, after = _beside(x, axis, -1.0)
            x = (before - after) / 2
        else:
            x = _smooth(x, axis)
    return x


def _components(x: Tensor, weight: Tensor | None) -> list[Tensor]:
    """The three components of the Prewitt gradient; 0 where there is no weight, whatever ``x`` holds there."""
    parts = [_separable(x, axis) for axis in _AXES]
    return parts if weight is None else [torch.where(weight > 0, part, 0.0) for part in parts]


def _root(parts: list[Tensor]) -> Tensor:
    """Magnitude of the gradient, not yet reduced by the root of the offset."""
    return (parts[0].square() + parts[1].square() + parts[2].square() + EDGE_OFFSET).sqrt()


def prewitt(x: Tensor) -> Tensor:
    """Magnitude of the Prewitt gradient (the paper's reference [42]) of [B, C, D, H, W], in the same shape.

    Each component is a central difference per voxel along one axis and a mean of three neighbours along the other
    two, with replicated borders. A flat image gives 0.
    """
    return _root(_components(x, None)) - EDGE_OFFSET**0.5


def _prepared(
    moving: Tensor, fixed: Tensor, mask: Tensor | None
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """The gradients of both images and the weights, in the compute type."""
    work = compute_dtype(moving.dtype)
    weight = None if mask is None else mask.to(work)
    return _components(moving.to(work), weight), _components(fixed.to(work), weight), weight


def _mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted mean over channels and voxels: [B, 1, 1, 1, 1]."""
    return weighted_mean(x, weight).mean(1, keepdim=True)


def edge_difference(moving: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference of the edges of two images, divided by that of the fixed image's edges: [B]."""
    m, f, weight = _prepared(moving, fixed, mask)
    a, b = _root(m), _root(f)
    power = _mean((b - EDGE_OFFSET**0.5).square(), weight).clamp_min(EDGE_FLOOR)
    return (_mean((a - b).square(), weight) / power).flatten().to(moving.dtype)


def edge_statistics(moving: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
    """What the kernels keep for their backward pass: [B, 3] in float64.

    The loss; the mean square of the fixed image's edges, at least EDGE_FLOOR, times the sum of the weights; and 1 if
    that mean square is not below EDGE_FLOOR, otherwise 0.
    """
    m, f, weight = _prepared(moving.double(), fixed.double(), mask)
    a, b = _root(m), _root(f)
    power = _mean((b - EDGE_OFFSET**0.5).square(), weight)
    held = power.clamp_min(EDGE_FLOOR)
    total = _total(weight, moving.double())
    loss = _mean((a - b).square(), weight) / held
    return torch.cat([t.reshape(-1, 1) for t in (loss, held * total, (power >= EDGE_FLOOR).double())], 1)


def _total(weight: Tensor | None, like: Tensor) -> Tensor:
    """Sum of the weights over channels and voxels, 1 where it is 0: [B, 1, 1, 1, 1]."""
    channels = like.shape[1]
    if weight is None:
        return torch.full_like(like[:, :1, :1, :1, :1], like.shape[1:].numel())
    return nonzero(channels * weight.sum((1, 2, 3, 4), keepdim=True))


def edge_difference_backward(
    grad: Tensor,
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None,
    need_moving: bool,
    need_fixed: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of edge_difference with respect to both images; an unneeded one is an empty tensor.

    Let a and b be the roots (see _root) of the moving and the fixed image, w the weights, W their sum, o the root of
    the offset, and P the mean square of the fixed image's edges. Then the loss L has dL/da = 2 w (a - b) / (W P) and
    dL/db = 2 w (b - a - L (b - o)) / (W P), without the last term where P is held at its floor. The gradient with
    respect to an image follows from da/dg = g / a, g the Prewitt gradient, and the adjoint of its differences.
    """
    m, f, weight = _prepared(moving, fixed, mask)
    a, b = _root(m), _root(f)
    edges = b - EDGE_OFFSET**0.5
    power = _mean(edges.square(), weight)
    held = power.clamp_min(EDGE_FLOOR)
    outer = 2 * grad.to(a.dtype)[:, None, None, None, None] / (_total(weight, a) * held)
    if weight is not None:
        outer = torch.where(weight > 0, outer * weight, 0.0)

    def gradient(slope: Tensor, parts: list[Tensor]) -> Tensor:
        by_part = (_separable_adjoint(slope * part, axis) for part, axis in zip(parts, _AXES, strict=True))
        return sum(by_part, torch.zeros_like(parts[0]))

    grad_moving, grad_fixed = moving.new_empty(0), fixed.new_empty(0)
    if need_moving:
        grad_moving = gradient(outer * (a - b) / a, m).to(moving.dtype)
    if need_fixed:
        loss = _mean((a - b).square(), weight) / held
        change = b - a - torch.where(power >= EDGE_FLOOR, loss, 0.0) * edges
        grad_fixed = gradient(outer * change / b, f).to(fixed.dtype)
    return grad_moving, grad_fixed
