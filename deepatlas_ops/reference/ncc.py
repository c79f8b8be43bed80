"""Normalised cross-correlation in PyTorch: of whole feature maps (eq. 9) and within windows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import compute_dtype, total_weight, weighted_mean


def _box_sum(x: Tensor, window: int) -> Tensor:
    """Sum over the window around each voxel, of which only the voxels inside the volume count.

    It uses cumulative sums, one axis at a time, so that the cost does not grow with the window. ``x`` must be float64,
    so that the rounding of the long sums does not show in their short differences.
    """
    for axis in (2, 3, 4):
        n = x.shape[axis]
        if n == 1:
            continue
        # The leading 0 is the sum over no voxels.
        totals = F.pad(x.cumsum(axis), [*([0, 0] * (4 - axis)), 1, 0])
        at = torch.arange(n, device=x.device)
        upper = (at + window // 2 + 1).clamp_max(n)
        lower = (at - window // 2).clamp_min(0)
        x = totals.index_select(axis, upper) - totals.index_select(axis, lower)
    return x


def _held(x: Tensor, weight: Tensor | None) -> Tensor:
    """``x`` with 0 where the weight is 0, whatever ``x`` holds there."""
    return x if weight is None else torch.where(weight > 0, x, 0.0)


class _Moments(NamedTuple):
    """The maps [B, C, D, H, W], the weights, and the statistics that a correlation is computed from.

    The statistics are [B, C, 1, 1, 1] without windows and [B, C, D, H, W] with them. ``total`` is the sum of the
    weights, of the whole volume or of each window, with 1 in place of 0. The floors are the smallest variances that
    do not count as flat.
    """

    a: Tensor
    b: Tensor
    weight: Tensor | None
    total: Tensor | int
    a_mean: Tensor
    b_mean: Tensor
    a_variance: Tensor
    b_variance: Tensor
    covariance: Tensor
    a_floor: Tensor
    b_floor: Tensor

    def spreads(self) -> tuple[Tensor, Tensor]:
        """The variances of a and b, held above their floors."""
        return torch.maximum(self.a_variance, self.a_floor), torch.maximum(self.b_variance, self.b_floor)

    def correlation(self) -> Tensor:
        """The correlation, with each variance held above its floor: 0 where a map is flat, and never above 1."""
        a_spread, b_spread = self.spreads()
        return self.covariance / (a_spread.sqrt() * b_spread.sqrt())


def _global(a: Tensor, b: Tensor, weight: Tensor | None, eps: float) -> _Moments:
    # A floor above 0 avoids 0 / 0 where all values of a channel are 0.
    least = torch.finfo(a.dtype).tiny ** 0.5
    a, b = _held(a, weight), _held(b, weight)
    # The means are taken first: E[x^2] - E[x]^2 would lose the variance of a map whose mean is far from 0.
    a_mean, b_mean = weighted_mean(a, weight), weighted_mean(b, weight)
    x, y = a - a_mean, b - b_mean
    variances = (weighted_mean(x * x, weight), weighted_mean(y * y, weight))
    squares = (variances[0].detach() + a_mean.detach() ** 2, variances[1].detach() + b_mean.detach() ** 2)
    floors = [(eps * eps * square).clamp_min(least) for square in squares]
    total = math.prod(a.shape[2:]) if weight is None else total_weight(weight)
    covariance = weighted_mean(x * y, weight)
    return _Moments(a, b, weight, total, a_mean, b_mean, *variances, covariance, *floors)


def _windowed(a: Tensor, b: Tensor, weight: Tensor | None, window: int, eps: float) -> _Moments:
    # The variance of a window is a difference of two sums. Subtracting the mean of the map first keeps the terms
    # small, and float64 keeps their rounding below the floor where the map is flat but far from its mean, such as the
    # air in a CT.
    a, b = (_held(x, weight).double() for x in (a, b))
    ones = torch.ones_like(a[:, :1]) if weight is None else weight.double()
    a, b = (_held(x - weighted_mean(x, ones), weight) for x in (a, b))
    floors = [
        (eps * weighted_mean(x.detach() ** 2, ones)).clamp_min(torch.finfo(torch.float32).tiny)
        for x in (a, b)
    ]
    c = a.shape[1]
    sums = _box_sum(
        torch.cat((ones, a * ones, b * ones, a * a * ones, b * b * ones, a * b * ones), 1), window
    )
    total, *moments = sums.split((1, c, c, c, c, c), 1)
    total = torch.where(total > 0, total, 1.0)
    a_mean, b_mean, a_square, b_square, product = (moment / total for moment in moments)
    variances = (a_square - a_mean * a_mean, b_square - b_mean * b_mean)
    return _Moments(a, b, ones, total, a_mean, b_mean, *variances, product - a_mean * b_mean, *floors)


def _moments(a: Tensor, b: Tensor, mask: Tensor | None, window: int, eps: float) -> _Moments:
    work = compute_dtype(a.dtype)
    weight = None if mask is None else mask.to(work)
    if window == 0:
        return _global(a.to(work), b.to(work), weight, eps)
    return _windowed(a.to(work), b.to(work), weight, window, eps)


def channel_moments(a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
    """Sum of the weights, means, variances and covariance of each channel: [B, C, 6] in float64."""
    weight = torch.ones_like(a[:, :1]).double() if mask is None else mask.double()
    a, b = (_held(x.double(), weight) for x in (a, b))
    means = weighted_mean(a, weight), weighted_mean(b, weight)
    x, y = a - means[0], b - means[1]
    spreads = (weighted_mean(p, weight) for p in (x * x, y * y, x * y))
    total = weight.sum((2, 3, 4), keepdim=True).expand_as(means[0])
    return torch.cat((total, *means, *spreads), 2).flatten(2)


def ncc(a: Tensor, b: Tensor, mask: Tensor | None, window: int, eps: float) -> Tensor:
    """Correlation of a and b [B, C, D, H, W] under mask [B, 1, D, H, W]: [B, C].

    A window of 0 means the whole volume.
    """
    moments = _moments(a, b, mask, window, eps)
    value = moments.correlation()
    if window > 0:
        value = weighted_mean(value, moments.weight)
    return value.flatten(1).to(a.dtype)


def ncc_backward(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    mask: Tensor | None,
    window: int,
    eps: float,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of ncc with respect to a and b; an unneeded one is an empty tensor.

    A correlation r with variances Va and Vb and with weights w that sum to N has
    dr/da_j = w_j / N [(b_j - mean b) / sqrt(Va Vb) - r (a_j - mean a) / Va], without the last term where Va is held at
    its floor. This is linear in a_j and b_j, with coefficients that depend on the window only. With windows, the
    gradient of a voxel needs the sums of these coefficients over all windows that contain it: box sums again.
    """
    m = _moments(a, b, mask, window, eps)
    a_spread, b_spread = m.spreads()
    value = m.correlation()
    outer = grad.to(value.dtype)[..., None, None, None]
    if window > 0 and m.weight is not None:
        outer = outer * m.weight / total_weight(m.weight)
    cross = outer / (m.total * a_spread.sqrt() * b_spread.sqrt())

    def gradient(
        x: Tensor, x_mean: Tensor, x_variance: Tensor, x_floor: Tensor, y: Tensor, y_mean: Tensor
    ) -> Tensor:
        own = torch.where(
            x_variance >= x_floor, -outer * value / (m.total * torch.maximum(x_variance, x_floor)), 0.0
        )
        constant = -(cross * y_mean + own * x_mean)
        slopes = (cross, own, constant)
        if window > 0:
            slopes = _box_sum(torch.cat(slopes, 1), window).split(x.shape[1], 1)
        result = torch.addcmul(slopes[2], slopes[0], y).addcmul_(slopes[1], x)
        return result if m.weight is None else result.mul_(m.weight)

    empty = a.new_empty(0)
    grad_a = gradient(m.a, m.a_mean, m.a_variance, m.a_floor, m.b, m.b_mean).to(a.dtype) if need_a else empty
    grad_b = gradient(m.b, m.b_mean, m.b_variance, m.b_floor, m.a, m.a_mean).to(b.dtype) if need_b else empty
    return grad_a, grad_b
