"""Solve c_moving(u) = c_fixed(v) in PyTorch: the recursion of eqs 5-7 and its implicit gradient.

With the step matrix S and its inverse A, the recursion over the continued map is

    u <- u + S (c_fixed(v) - c_moving(clamp u) - A (u - clamp u)) = t - g(clamp u) + clamp u,

where g = S c_moving and t = S c_fixed: one resampling and two sums a step. ``clamp`` holds u on the moving
grid; beyond it the map goes on linearly with slope A, so that every u is finite and means something. An axis
of size 1 has no extent: its clamp is 0 and the map is linear, with slope A, along all of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .jacobian import jacobian
from .sampling import identity_grid, resample_backward

STEPS = ("moving", "fixed", "direction_cosine")
SLACK = 1e-5  # rounding allowed on |u| <= 1, so that the faces of an identity map count as inside
MAX_AMPLIFICATION = 20.0  # what 20 unrolled steps could amplify at most; beyond it a solution is not resolved

Sampler = Callable[[Tensor, Tensor], Tensor]
SamplerBackward = Callable[..., tuple[Tensor, Tensor]]  # the arguments of resample_backward


def border_sample(volume: Tensor, coords: Tensor) -> Tensor:
    """Linear sampling with border padding: the default sampler of the recursion.

    It skips the NaN rule of resample, which the recursion does not need: its sums carry the NaN of a
    coordinate.
    """
    return F.grid_sample(volume, coords.movedim(1, -1), padding_mode="border", align_corners=True)


def matvec(matrix: Tensor, field: Tensor) -> Tensor:
    """matrix [B, 3, 3] times field [B, 3, D, H, W], without a matrix unit that may round to TF32."""
    m = matrix[..., None, None, None]
    x, y, z = field[:, :1], field[:, 1:2], field[:, 2:]
    return m[:, :, 0] * x + m[:, :, 1] * y + m[:, :, 2] * z


def mean_jacobian(field: Tensor, mask: Tensor | None) -> Tensor:
    """Weighted mean of the local Jacobians: [B, 3, 3], rows the field's channels, columns x, y, z."""
    columns = jacobian(field)
    if mask is None:
        return torch.stack([column.mean((2, 3, 4)) for column in columns], -1)
    weight = mask.to(field.dtype)
    inside = weight > 0
    total = weight.sum((2, 3, 4))
    empty = total == 0
    sums = [(torch.where(inside, column, 0.0) * weight).sum((2, 3, 4)) for column in columns]
    mean = torch.stack(sums, -1) / torch.where(empty, 1.0, total)[..., None]
    everywhere = torch.stack([column.mean((2, 3, 4)) for column in columns], -1)
    return torch.where(empty[..., None], everywhere, mean)  # an empty mask has no mean: take the whole map's


def inverse_or_identity(matrix: Tensor) -> Tensor:
    """Inverse of [B, 3, 3], or the identity where the matrix is singular, of any size, or not finite."""
    eye = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    scale = matrix.square().sum((1, 2), keepdim=True).sqrt()
    rows = matrix.unbind(1)
    cofactors = torch.stack(
        [
            torch.linalg.cross(rows[1], rows[2]),
            torch.linalg.cross(rows[2], rows[0]),
            torch.linalg.cross(rows[0], rows[1]),
        ],
        dim=-1,
    )
    det = (rows[0] * cofactors[..., 0]).sum(-1)[:, None, None]
    good = (det.abs() > 1e-5 * scale**3) & torch.isfinite(det) & (scale > 1e-6)
    return torch.where(good, torch.where(good, cofactors, eye) / torch.where(good, det, 1.0), eye)


def step_matrix(c_moving: Tensor, c_fixed: Tensor, mask: Tensor | None, step: str) -> Tensor:
    """S of the recursion, [B, 3, 3]: see ``deepatlas_ops.implicit_warp``."""
    if step == "moving":
        return inverse_or_identity(mean_jacobian(c_moving, mask))
    mean = mean_jacobian(c_fixed, None)
    if step == "fixed":
        return inverse_or_identity(mean)
    length = mean.square().sum(1, keepdim=True).sqrt()
    cosines = mean / torch.where(length > 0, length, 1.0)
    # (c_q - c_p) · D_q is a row vector times D_q: its transpose times the column vector.
    return cosines.transpose(1, 2)


def grid_limit(c_moving: Tensor) -> Tensor:
    """How far u reaches on each axis of the moving grid: 1, or 0 for an axis of size 1: [1, 3, 1, 1, 1]."""
    sizes = (c_moving.shape[4], c_moving.shape[3], c_moving.shape[2])
    return c_moving.new_tensor([0.0 if n == 1 else 1.0 for n in sizes]).reshape(1, 3, 1, 1, 1)


def _clamp(u: Tensor, limit: Tensor) -> Tensor:
    """u held on the grid, with no gradient at the border itself, where border sampling has none either."""
    return torch.where(u.abs() >= limit, torch.copysign(limit, u), u)


def _advance(g: Tensor, t: Tensor, u: Tensor, limit: Tensor, sample: Sampler) -> Tensor:
    """One update of the recursion."""
    if u.requires_grad or g.requires_grad or t.requires_grad:
        held = _clamp(u, limit)
        return t - sample(g, held) + held
    held = torch.clamp(u, -limit, limit)
    return torch.sub(held, sample(g, held)).add_(t)


def continued_inverse(
    g: Tensor, t: Tensor, limit: Tensor, iterations: int, tolerance: float, sample: Sampler | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recursion: u [B, 3, D, H, W] and the update that would come next, both differentiable."""
    sample = sample or border_sample
    u = identity_grid(t.shape[2:], t).expand_as(t)
    voxels = _half_extent(g)
    moving = None
    for _ in range(iterations):
        advanced = _advance(g, t, u, limit, sample)
        if tolerance <= 0:
            u = advanced
            continue
        step = _norm((advanced - u).detach() * voxels)
        u = advanced if moving is None else torch.where(moving, advanced, u)
        moving = step >= tolerance if moving is None else moving & (step >= tolerance)
        if not bool(moving.any()):
            break
    return u, _advance(g, t, u, limit, sample) - u


def _norm(vector: Tensor) -> Tensor:
    return vector.square().sum(1, keepdim=True).sqrt()


def _half_extent(g: Tensor) -> Tensor:
    """Voxels per normalised unit of the moving grid: [1, 3, 1, 1, 1]."""
    sizes = (g.shape[4], g.shape[3], g.shape[2])
    return g.new_tensor([(n - 1) / 2 for n in sizes]).reshape(1, 3, 1, 1, 1)


def solve_inverse(
    c_moving: Tensor,
    c_fixed: Tensor,
    matrix: Tensor,
    ruler: Tensor | None,
    iterations: int,
    tolerance: float,
    sample: Sampler | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """displacement, residual (moving voxels) and valid of the recursion with step matrix ``matrix``.

    ``ruler`` [B, 3, 3] turns a difference of coordinates into one on the moving grid; it is the
    inverse mean Jacobian of c_moving whatever matrix drives the steps. None: it is ``matrix`` itself.
    """
    limit = grid_limit(c_moving)
    u, rest = continued_inverse(
        matvec(matrix, c_moving), matvec(matrix, c_fixed), limit, iterations, tolerance, sample
    )
    displacement = u - identity_grid(c_fixed.shape[2:], c_fixed)
    with torch.no_grad():
        # rest is S times the difference of coordinates
        difference = rest if ruler is None else matvec(ruler @ inverse_or_identity(matrix), rest)
        residual = _norm(difference * _half_extent(c_moving))
        valid = (u.abs() <= 1 + SLACK).all(1, keepdim=True) & (residual < 1)
    return displacement, residual, valid


def implicit_warp_backward(
    grad: Tensor,
    c_moving: Tensor,
    displacement: Tensor,
    valid: Tensor,
    matrix: Tensor,
    sample_backward: SamplerBackward = resample_backward,
) -> tuple[Tensor, Tensor]:
    """Gradients of the solution with respect to c_moving and c_fixed, by the implicit function theorem.

    At a solution, dc_moving(u) + J du = dc_fixed with J the Jacobian of the interpolated c_moving there; so
    lambda = J^-T grad is the gradient of c_fixed, and -lambda scattered at u that of c_moving. Everything is
    measured in the frame of the step matrix, where J is near the identity. A voxel passes nothing on when it
    is not valid, when it lies on a fold (the recursion cannot settle there), or when J^-1 amplifies more than
    MAX_AMPLIFICATION.
    """
    limit = grid_limit(c_moving)
    g = matvec(matrix, c_moving)
    u = displacement + identity_grid(displacement.shape[2:], displacement)
    # On the border the interpolant's slope is that of the cell inside; border sampling would report 0.
    held = _clamp(u, limit * (1 - 1e-6))
    ones = grad.new_ones((grad.shape[0], 1, *grad.shape[2:]))
    rows = []
    for channel in range(3):
        row = sample_backward(ones, g[:, channel : channel + 1], held, 0, 0, False, True)[1].unbind(1)
        # an axis of size 1 is continued with slope A: the identity's column in this frame
        rows.append(
            [
                row[k] if c_moving.shape[4 - k] > 1 else torch.full_like(row[k], float(k == channel))
                for k in range(3)
            ]
        )
    (a, b, c), (d, e, f), (h, i, j) = rows
    cofactors = (  # cofactors[r][k]: derivative of det with respect to row r, column k
        (e * j - f * i, f * h - d * j, d * i - e * h),
        (c * i - b * j, a * j - c * h, b * h - a * i),
        (b * f - c * e, c * d - a * f, a * e - b * d),
    )
    det = a * cofactors[0][0] + b * cofactors[0][1] + c * cofactors[0][2]
    size = sum(entry.square() for row in cofactors for entry in row).sqrt()
    passes = valid[:, 0] & (det > 0) & (size <= MAX_AMPLIFICATION * det)
    scale = torch.where(passes, 1 / torch.where(passes, det, 1.0), 0.0)
    x, y, z = torch.where(passes[:, None], grad, 0.0).unbind(1)
    # J^-T = cofactors / det
    weight = torch.stack([(row[0] * x + row[1] * y + row[2] * z) * scale for row in cofactors], 1)
    scattered = sample_backward(weight, g, held, 0, 0, True, False)[0]
    transposed = matrix.transpose(1, 2)
    return -matvec(transposed, scattered), matvec(transposed, weight)
