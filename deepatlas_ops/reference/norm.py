"""Group normalisation followed by a leaky ReLU, and its gradients, in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import compute_dtype


def group_norm_leaky_relu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, slope: float, eps: float
) -> Tensor:
    """The leaky ReLU of ``x`` after group normalisation, with ``weight`` and ``bias`` ``[C]``, or ``[B, C]``."""
    if weight.ndim == 1:
        return F.leaky_relu(F.group_norm(x, groups, weight, bias, eps), slope, inplace=True)
    wide = x.to(compute_dtype(x.dtype))
    z = F.group_norm(wide, groups, eps=eps) * _per_voxel(weight) + _per_voxel(bias)
    return F.leaky_relu(z, slope).to(x.dtype)


def group_norm_statistics(x: Tensor, groups: int, eps: float) -> Tensor:
    """The mean and the reciprocal standard deviation of every group, ``[B, groups, 2]`` in float64."""
    inner = x.double().reshape(len(x), groups, x[:1].numel() // groups)
    variance, mean = torch.var_mean(inner, dim=2, correction=0)
    return torch.stack((mean, (variance + eps).rsqrt()), dim=2)


def group_norm_leaky_relu_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    groups: int,
    slope: float,
    need_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``weight`` and ``bias``, the latter ``[B, C]``. The first is empty if it is not needed."""
    work = compute_dtype(x.dtype)
    size = x.shape[1] // groups
    mean, deviation = statistics.to(work).repeat_interleave(size, dim=1).unbind(2)
    normal = (x.to(work) - _per_voxel(mean)) * _per_voxel(deviation)
    z = normal * _per_voxel(weight) + _per_voxel(bias)
    slant = torch.where(z > 0, grad.to(work), slope * grad.to(work))
    by_bias, by_weight = slant.sum((2, 3, 4)), (slant * normal).sum((2, 3, 4))
    if not need_x:
        return x.new_empty(0), by_weight, by_bias
    count = size * x[0, 0].numel() if len(x) else 1
    group = torch.stack((weight * by_bias, weight * by_weight))
    group = group.unflatten(2, (groups, size)).sum(3) / count
    shift, tilt = group.repeat_interleave(size, dim=2)
    by_x = slant * _per_voxel(weight) - _per_voxel(shift) - normal * _per_voxel(tilt)
    return (by_x * _per_voxel(deviation)).to(x.dtype), by_weight, by_bias


def _per_voxel(values: Tensor) -> Tensor:
    """``[B, C]`` as ``[B, C, 1, 1, 1]``."""
    return values[:, :, None, None, None]
