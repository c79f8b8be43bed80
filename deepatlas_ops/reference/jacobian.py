"""Jacobians of coordinate fields in PyTorch: determinant, its logarithm, and the smoothness loss of eq. 11.

Ordinary autograd differentiates the forward functions. The ``*_backward`` functions compute the same gradients from
the field alone, by the chain rule through logarithm, determinant, columns and differences, so that the forward pass
need not keep anything else.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import compute_dtype, difference, difference_adjoint, total_weight, weighted_mean

Columns = tuple[Tensor, Tensor, Tensor]
# The eps of log_jacobian that smoothness_loss uses; also the default of log_jacobian.
SMOOTHNESS_EPS = 1e-3


def jacobian(field: Tensor) -> Columns:
    """The columns d field / dx, d field / dy and d field / dz, each [B, 3, D, H, W].

    Along an axis of size 1 there is no difference. Its column is that of the identity, so that the determinant of a
    flat field is the determinant over the axes that it has.
    """
    columns = []
    for channel, axis in enumerate((4, 3, 2)):
        if field.shape[axis] == 1:
            unit = field.new_zeros(1, 3, 1, 1, 1)
            unit[:, channel] = 1
            columns.append(field * 0 + unit)
        else:
            columns.append(difference(field, axis))
    return columns[0], columns[1], columns[2]


def _jacobian_adjoint(grads: Columns) -> Tensor:
    """The transpose of jacobian: from the gradients of the columns to the gradient of the field."""
    out = torch.zeros_like(grads[0])
    for grad, axis in zip(grads, (4, 3, 2), strict=True):
        if grad.shape[axis] > 1:
            out += difference_adjoint(grad, axis)
    return out


def _determinant(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The determinant a · (b × c) of columns a, b and c: [B, 1, D, H, W]."""
    a0, a1, a2 = a.split(1, 1)
    b0, b1, b2 = b.split(1, 1)
    c0, c1, c2 = c.split(1, 1)
    return a0 * (b1 * c2 - b2 * c1) + a1 * (b2 * c0 - b0 * c2) + a2 * (b0 * c1 - b1 * c0)


def _unit(column: Tensor, eps: float) -> Tensor:
    """A column divided by its length, or by eps where it is shorter, which bounds the gradient by 1 / eps."""
    squared = (column * column).sum(1, keepdim=True)
    return column / squared.clamp_min(eps * eps).sqrt()


def _units(columns: Columns, eps: float) -> Columns:
    a, b, c = columns
    return _unit(a, eps), _unit(b, eps), _unit(c, eps)


def _determinant_grads(columns: Columns, grad: Tensor) -> Columns:
    """Gradients of the columns from the gradient of their determinant: cross products of the other two."""
    a, b, c = columns
    return (
        grad * torch.linalg.cross(b, c, dim=1),
        grad * torch.linalg.cross(c, a, dim=1),
        grad * torch.linalg.cross(a, b, dim=1),
    )


def _unit_grads(columns: Columns, grads: Columns, eps: float) -> Columns:
    """Gradients of the columns from the gradients of the columns divided by their lengths (see _unit)."""
    out = []
    for column, grad in zip(columns, grads, strict=True):
        length = (column * column).sum(1, keepdim=True).sqrt()
        held = length.clamp_min(eps)
        along = (column * grad).sum(1, keepdim=True) / (held * held)
        out.append((grad - torch.where(length >= eps, along, 0.0) * column) / held)
    return out[0], out[1], out[2]


def log_determinant(det: Tensor, eps: float) -> Tensor:
    """log(det), continued so that it is finite and increasing for every determinant.

    Above eps it is the logarithm. Between 0 and eps it is the tangent of the logarithm at eps. Below 0, where the
    tangent would grow without bound (a determinant of -100 would cost 1e5 at eps = 1e-3), it is the mirrored logarithm
    log(eps) - 1 - log(1 - det / eps). Value and slope are continuous at both joints. The slope is at most 1 / eps and
    falls as 1 / |det|, and it still pushes every fold back towards det > 0.
    """
    floor = math.log(eps)
    # Outside its own interval, each clamp keeps a branch finite and its gradient 0.
    logarithm = det.clamp_min(eps).log()
    tangent = floor + (det.clamp(0.0, eps) - eps) / eps
    folded = floor - 1 - torch.log1p(-det.clamp_max(0.0) / eps)
    return torch.where(det > eps, logarithm, torch.where(det >= 0, tangent, folded))


def _log_determinant_slope(det: Tensor, eps: float) -> Tensor:
    return 1 / torch.where(det >= 0, det.clamp_min(eps), eps - det)


def jacobian_determinant(field: Tensor, digital: bool) -> Tensor:
    """The determinant of the Jacobian, [B, 1, D, H, W], in the compute type, so that half types keep its sign.

    With ``digital`` it is the smallest of the eight determinants of forward and backward differences; those that are
    NaN are ignored, and at a border the one-sided difference that exists there serves as both.
    """
    field = field.to(compute_dtype(field.dtype))
    if not digital:
        return _determinant(*jacobian(field))
    least = torch.full_like(field[:, :1], math.inf)
    for columns in itertools.product(*_one_sided_columns(field)):
        det = _determinant(*columns)
        least = torch.where(det < least, det, least)
    return least


def _one_sided_columns(field: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For x, y and z, the column of forward differences and the column of backward differences."""
    pairs = []
    for column, axis in zip(jacobian(field), (4, 3, 2), strict=True):
        n = field.shape[axis]
        if n == 1:
            pairs.append((column, column))
            continue
        steps = field.diff(dim=axis) * ((n - 1) / 2)
        first, last = steps.narrow(axis, 0, 1), steps.narrow(axis, n - 2, 1)
        pairs.append((torch.cat((steps, last), axis), torch.cat((first, steps), axis)))
    return pairs


def log_jacobian(field: Tensor, normalize_columns: bool, eps: float) -> Tensor:
    """The logarithm of the Jacobian determinant of field [B, 3, D, H, W]: [B, 1, D, H, W]."""
    columns = jacobian(field.to(compute_dtype(field.dtype)))
    if normalize_columns:
        columns = _units(columns, eps)
    return log_determinant(_determinant(*columns), eps).to(field.dtype)


def log_jacobian_backward(grad: Tensor, field: Tensor, normalize_columns: bool, eps: float) -> Tensor:
    """Gradient of log_jacobian with respect to the field."""
    work = compute_dtype(field.dtype)
    columns = jacobian(field.to(work))
    units = _units(columns, eps) if normalize_columns else columns
    slope = grad.to(work) * _log_determinant_slope(_determinant(*units), eps)
    grads = _determinant_grads(units, slope)
    if normalize_columns:
        grads = _unit_grads(columns, grads, eps)
    return _jacobian_adjoint(grads).to(field.dtype)


def _masked_columns(field: Tensor, mask: Tensor | None) -> tuple[Columns, Tensor | None]:
    """The columns and the weights of the smoothness loss, in the compute type.

    Outside the mask the field may hold anything, even NaN. The columns of the identity replace it there, which keeps
    the values and the gradients of those voxels out of every sum.
    """
    work = compute_dtype(field.dtype)
    columns = jacobian(field.to(work))
    if mask is None:
        return columns, None
    weight = mask.to(work)
    inside = weight > 0
    frame = torch.eye(3, dtype=work, device=field.device).reshape(3, 1, 3, 1, 1, 1)
    held = [torch.where(inside, column, unit) for column, unit in zip(columns, frame, strict=True)]
    return (held[0], held[1], held[2]), weight


def _smoothness_residuals(
    columns: Columns, weight: Tensor | None, log_orthonormality: bool
) -> tuple[Tensor, Tensor, Columns, Tensor, Tensor]:
    """The arguments of the two Huber losses of eq. 11, the unit columns, and the two determinants."""
    det = _determinant(*columns)
    change = log_determinant(det, SMOOTHNESS_EPS)
    units = _units(columns, SMOOTHNESS_EPS)
    unit_det = _determinant(*units)
    frame = log_determinant(unit_det, SMOOTHNESS_EPS) if log_orthonormality else unit_det
    return change - weighted_mean(change, weight), frame - 1, units, det, unit_det


def smoothness_loss(field: Tensor, mask: Tensor | None, delta: float, log_orthonormality: bool) -> Tensor:
    """Eq. 11 of field [B, 3, D, H, W] under mask [B, 1, D, H, W]: [B]."""
    columns, weight = _masked_columns(field, mask)
    uniformity, orthonormality, *_ = _smoothness_residuals(columns, weight, log_orthonormality)
    return _huber_mean(uniformity, orthonormality, weight, delta).to(field.dtype)


def _huber_mean(uniformity: Tensor, orthonormality: Tensor, weight: Tensor | None, delta: float) -> Tensor:
    zero = torch.zeros_like(uniformity)
    loss = F.huber_loss(uniformity, zero, reduction="none", delta=delta)
    loss = loss + F.huber_loss(orthonormality, zero, reduction="none", delta=delta)
    return weighted_mean(loss, weight).flatten()


def smoothness_loss_and_statistics(
    field: Tensor, mask: Tensor | None, delta: float, log_orthonormality: bool
) -> tuple[Tensor, Tensor]:
    """smoothness_loss, and the statistics over all voxels that its gradient needs: [B, 3] float64.

    The statistics are the mean of D, the mean of the derivative of the first Huber loss, and the sum of the weights
    (1 where that is 0).
    """
    columns, weight = _masked_columns(field, mask)
    uniformity, orthonormality, _, det, _ = _smoothness_residuals(columns, weight, log_orthonormality)
    loss = _huber_mean(uniformity, orthonormality, weight, delta).to(field.dtype)
    mean = weighted_mean(log_determinant(det, SMOOTHNESS_EPS), weight)
    pull = weighted_mean(uniformity.clamp(-delta, delta), weight)
    total = torch.full_like(mean, math.prod(det.shape[2:])) if weight is None else total_weight(weight)
    return loss, torch.cat((mean, pull, total), 1).flatten(1).double()


def smoothness_loss_backward(
    grad: Tensor, field: Tensor, mask: Tensor | None, delta: float, log_orthonormality: bool
) -> Tensor:
    """Gradient of smoothness_loss with respect to the field."""
    columns, weight = _masked_columns(field, mask)
    uniformity, orthonormality, units, det, unit_det = _smoothness_residuals(
        columns, weight, log_orthonormality
    )
    if weight is None:
        share = torch.full_like(det, 1 / math.prod(det.shape[2:]))
    else:
        share = weight / total_weight(weight)
    share = share * grad.to(det.dtype)[:, None, None, None, None]

    # Clamping its argument gives the derivative of the Huber loss.
    pull = uniformity.clamp(-delta, delta)
    pull = (pull - weighted_mean(pull, weight)) * share * _log_determinant_slope(det, SMOOTHNESS_EPS)
    turn = orthonormality.clamp(-delta, delta) * share
    if log_orthonormality:
        turn = turn * _log_determinant_slope(unit_det, SMOOTHNESS_EPS)
    by_det = _determinant_grads(columns, pull)
    by_unit_det = _unit_grads(columns, _determinant_grads(units, turn), SMOOTHNESS_EPS)
    # A voxel without weight has a share of 0 and finite columns, so its gradient is exactly 0.
    a, b, c = (p + q for p, q in zip(by_det, by_unit_det, strict=True))
    return _jacobian_adjoint((a, b, c)).to(field.dtype)
