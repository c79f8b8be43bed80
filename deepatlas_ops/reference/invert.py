"""Solving c_moving(u) = c_fixed(v) for u in PyTorch: the recursion of eqs 5-7 and its two gradients.

With the step matrix S and its inverse A, one step of the recursion is

    u <- u + S (c_fixed(v) - c_moving(clamp u) - A (u - clamp u)) = t - g(clamp u) + clamp u,

where g = S c_moving and t = S c_fixed, so a step costs one resampling and two additions. ``clamp`` limits u to the
moving grid. Beyond the grid the map is continued linearly with slope A, so that every u is finite and meaningful. An
axis of size 1 has no extent: clamp is 0 there, and the map is linear with slope A along the whole axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import batch_first, compute_dtype, difference_adjoint, identity_grid, nonzero
from .resample import resample_backward

# Rounding allowed in |u| <= 1, so that the faces of the volume count as inside when a map is matched to itself.
SLACK = 1e-5
# The most that 20 unrolled steps could amplify. Where an inverse amplifies more, the solution is not resolved.
MAX_AMPLIFICATION = 20.0

# From a volume [B, C, D, H, W] and coordinates [B, 3, d, h, w] to [B, C, d, h, w].
Sampler = Callable[[Tensor, Tensor], Tensor]
# Called with the arguments of resample_backward.
SamplerBackward = Callable[..., tuple[Tensor, Tensor]]


def border_sample(volume: Tensor, coords: Tensor) -> Tensor:
    """Linear sampling with border padding: the default sampler of the recursion.

    Unlike resample it does not replace the value at a NaN coordinate by NaN, which the recursion does not need: its
    sums contain the coordinate itself.
    """
    grid = batch_first(coords.movedim(1, -1))
    return F.grid_sample(batch_first(volume), grid, padding_mode="border", align_corners=True)


def matvec(matrix: Tensor, field: Tensor) -> Tensor:
    """matrix [B, 3, 3] times field [B, 3, D, H, W], as a sum of products: CUDA may round matrix products to TF32."""
    m = matrix[..., None, None, None]
    x, y, z = field[:, :1], field[:, 1:2], field[:, 2:]
    return m[:, :, 0] * x + m[:, :, 1] * y + m[:, :, 2] * z


def mean_jacobian(field: Tensor, mask: Tensor | None) -> Tensor:
    """Weighted mean of the local Jacobians: [B, 3, 3], with the field's channels as rows and x, y, z as columns.

    Without weights, the mean of the differences along an axis telescopes and only the faces of the volume are read.
    With weights, the differences are moved from the field to the weights, which have a single channel. A mask without
    any weight counts as no mask.
    """
    everywhere = torch.stack([_mean_difference(field, axis) for axis in (4, 3, 2)], -1)
    if mask is None:
        return everywhere
    field = field.to(everywhere.dtype)
    weight = mask.to(field.dtype)
    total = weight.sum((2, 3, 4))[..., None]
    shares = torch.cat(
        [
            torch.zeros_like(weight) if field.shape[axis] == 1 else difference_adjoint(weight, axis)
            for axis in (4, 3, 2)
        ],
        1,
    )
    # A value that enters with no weight may be anything, even NaN.
    values = torch.where((shares != 0).any(1, keepdim=True), field, 0.0)
    mean = _outer(values, shares) / nonzero(total)
    long = torch.tensor([field.shape[axis] > 1 for axis in (4, 3, 2)], device=field.device)
    return torch.where((total == 0) | ~long, everywhere, mean)


def _mean_difference(field: Tensor, axis: int) -> Tensor:
    """Mean of the central differences (one-sided at the borders) along an axis: [B, 3]."""
    n = field.shape[axis]

    def face(i: int) -> Tensor:
        return field.select(axis, i).to(compute_dtype(field.dtype)).mean((2, 3))

    # An axis of one voxel has no differences: its column is that of the identity.
    if n == 1:
        return face(0) * 0 + torch.eye(3, dtype=face(0).dtype, device=field.device)[4 - axis]
    if n == 2:
        return (face(1) - face(0)) / 2
    return (1.5 * (face(n - 1) - face(0)) + 0.5 * (face(1) - face(n - 2))) * ((n - 1) / (2 * n))


def _cofactors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Transposed cofactors [B, 3, 3], determinant [B, 1, 1], and whether [B, 3, 3] is regular and finite [B, 1, 1].

    What counts as singular does not depend on the scale of the matrix, unless it is below 1e-6.
    """
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
    return cofactors, det, good


def inverse_or_identity(matrix: Tensor) -> Tensor:
    """Inverse of [B, 3, 3], or the identity where the matrix is singular or not finite."""
    eye = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    cofactors, det, good = _cofactors(matrix)
    return torch.where(good, torch.where(good, cofactors, eye) / torch.where(good, det, 1.0), eye)


def step_matrix(c_moving: Tensor, c_fixed: Tensor, mask: Tensor | None, step: str) -> Tensor:
    """The matrix S of the recursion, [B, 3, 3], for one of STEPS: see ``deepatlas_ops.implicit_warp``.

    The mask lies on the moving grid, so it weights the mean Jacobian of c_moving only.
    """
    if step in ("moving", "newton"):
        return inverse_or_identity(mean_jacobian(c_moving, mask))
    mean = mean_jacobian(c_fixed, None)
    if step == "fixed":
        return inverse_or_identity(mean)
    # Eqs 5 and 7 multiply the row vector c_q - c_p by D_q, which is the transpose of D_q times a column vector.
    if step == "literal":
        regular = _cofactors(mean.detach())[2]
        return torch.where(regular, mean.transpose(1, 2), torch.eye(3, dtype=mean.dtype, device=mean.device))
    squared = mean.square().sum(1, keepdim=True)
    # The slope of the square root is infinite at 0.
    cosines = mean / torch.where(squared > 0, squared, 1.0).sqrt()
    return cosines.transpose(1, 2)


def grid_limit(c_moving: Tensor) -> Tensor:
    """The largest |u| on each axis of the moving grid, 1, or 0 for an axis of size 1: [1, 3, 1, 1, 1]."""
    sizes = (c_moving.shape[4], c_moving.shape[3], c_moving.shape[2])
    return c_moving.new_tensor([0.0 if n == 1 else 1.0 for n in sizes]).reshape(1, 3, 1, 1, 1)


def _clamp(u: Tensor, limit: Tensor) -> Tensor:
    """``u`` limited to the grid, without a gradient at the border, where border sampling has none either."""
    return torch.where(u.abs() >= limit, torch.copysign(limit, u), u)


def _advance(g: Tensor, t: Tensor, u: Tensor, limit: Tensor, sample: Sampler) -> Tensor:
    """The next u of the recursion."""
    if u.requires_grad or g.requires_grad or t.requires_grad:
        held = _clamp(u, limit)
        return t - sample(g, held) + held
    held = torch.clamp(u, -limit, limit)
    return torch.sub(held, sample(g, held)).add_(t)


class _Inverse(NamedTuple):
    """The inverse of a Jacobian J at every voxel, where it is usable: see _inverse.

    ``cofactors[r][k]`` is the derivative of the determinant by the entry in row r and column k, ``scale`` is
    1 / determinant, and ``good`` says where the inverse is usable; each is [B, D, H, W].
    """

    cofactors: tuple[tuple[Tensor, Tensor, Tensor], ...]
    scale: Tensor
    good: Tensor

    def transposed(self, vector: Tensor) -> Tensor:
        """J^-T times [B, 3, D, H, W]."""
        x, y, z = vector.unbind(1)
        rows = [(row[0] * x + row[1] * y + row[2] * z) * self.scale for row in self.cofactors]
        return torch.stack(rows, 1)

    def __call__(self, vector: Tensor) -> Tensor:
        """J^-1 times [B, 3, D, H, W]."""
        x, y, z = vector.unbind(1)
        columns = zip(*self.cofactors, strict=True)
        return torch.stack([(c[0] * x + c[1] * y + c[2] * z) * self.scale for c in columns], 1)


def _inverse(g: Tensor, held: Tensor, continued: Tensor | None, sample_backward: SamplerBackward) -> _Inverse:
    """Inverse of the Jacobian of the interpolated g at ``held``.

    It is not usable on a fold, nor where it amplifies more than MAX_AMPLIFICATION. The columns of coordinates where
    ``continued`` [B, 3, D, H, W] is true, and those of axes of size 1, are the columns of the identity.
    """
    # On the border the slope is that of the adjacent cell, but border sampling would give 0: so step inside.
    held = _clamp(held, grid_limit(g) * (1 - 1e-6))
    ones = held.new_ones((held.shape[0], 1, *held.shape[2:]))
    rows = []
    for channel in range(3):
        row = sample_backward(ones, g[:, channel : channel + 1].contiguous(), held, 0, 0, False, True)[1]
        entries = []
        for k in range(3):
            unit = float(k == channel)
            entry = torch.full_like(row[:, k], unit) if g.shape[4 - k] == 1 else row[:, k]
            entries.append(entry if continued is None else torch.where(continued[:, k], unit, entry))
        rows.append(entries)
    (a, b, c), (d, e, f), (h, i, j) = rows
    cofactors = (
        (e * j - f * i, f * h - d * j, d * i - e * h),
        (c * i - b * j, a * j - c * h, b * h - a * i),
        (b * f - c * e, c * d - a * f, a * e - b * d),
    )
    det = a * cofactors[0][0] + b * cofactors[0][1] + c * cofactors[0][2]
    size = sum((entry.square() for row in cofactors for entry in row), torch.zeros_like(det)).sqrt()
    good = (det > 0) & (size <= MAX_AMPLIFICATION * det)
    return _Inverse(cofactors, 1 / torch.where(good, det, 1.0), good)


def _newton(
    g: Tensor, u: Tensor, advanced: Tensor, limit: Tensor, sample_backward: SamplerBackward
) -> Tensor:
    """The u after a Newton step where the inverse Jacobian is usable, otherwise ``advanced``, after a plain step."""
    inverse = _inverse(g, torch.clamp(u, -limit, limit), u.abs() > limit, sample_backward)
    rest = advanced - u
    return torch.where(inverse.good[:, None], u + inverse(rest), advanced)


def _may_look() -> bool:
    """Whether the number of steps may depend on the data. If not, all steps run, and the last ones move no voxel."""
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def _steps(
    g: Tensor,
    t: Tensor,
    limit: Tensor,
    iterations: int,
    tolerance: float,
    sample: Sampler,
    newton: SamplerBackward | None = None,
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """For each step of the recursion: u before it, the voxels that still move (None means all), and u after it."""
    u = identity_grid(t.shape[2:], t).expand_as(t)
    voxels = _half_extent(g)
    moving = None
    for _ in range(iterations):
        advanced = _advance(g, t, u, limit, sample)
        if newton is not None:
            advanced = _newton(g, u, advanced, limit, newton)
        before, moved = u, moving
        u = advanced if moving is None else torch.where(moving, advanced, u)
        if tolerance > 0:
            goes_on = _norm((advanced - before).detach() * voxels) >= tolerance
            moving = goes_on if moving is None else moving & goes_on
        yield before, moved, u
        if moving is not None and _may_look() and not bool(moving.any()):
            return


def continued_inverse(
    g: Tensor,
    t: Tensor,
    limit: Tensor,
    iterations: int,
    tolerance: float,
    sample: Sampler | None = None,
    newton: SamplerBackward | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recursion: u [B, 3, D, H, W] and the update that would come next, both differentiable.

    With ``newton``, the adjoint of the sampler, it takes Newton steps, which are not differentiable.
    """
    sample = sample or border_sample
    u = t
    for _before, _moving, after in _steps(g, t, limit, iterations, tolerance, sample, newton):
        u = after
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
    newton: SamplerBackward | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Displacement, residual in moving voxels, and valid voxels of the recursion with step matrix ``matrix``.

    The remaining difference of the coordinates is multiplied by ``matrix`` as in eq. 7. ``ruler`` [B, 3, 3] turns that
    into normalised coordinates of the moving grid; None means that it is in those already. See continued_inverse for
    ``newton``.
    """
    work = compute_dtype(c_moving.dtype)
    c_moving, c_fixed = c_moving.to(work), c_fixed.to(work)
    limit = grid_limit(c_moving)
    u, rest = continued_inverse(
        matvec(matrix, c_moving), matvec(matrix, c_fixed), limit, iterations, tolerance, sample, newton
    )
    displacement = u - identity_grid(c_fixed.shape[2:], c_fixed)
    with torch.no_grad():
        difference = rest if ruler is None else matvec(ruler, rest)
        residual = _norm(difference * _half_extent(c_moving))
        valid = (u.abs() <= 1 + SLACK).all(1, keepdim=True) & (residual < 1)
    return displacement, residual, valid


def implicit_warp_backward(
    grad: Tensor,
    c_moving: Tensor,
    displacement: Tensor,
    valid: Tensor,
    matrix: Tensor,
    need_moving: bool = True,
    sample_backward: SamplerBackward = resample_backward,
) -> tuple[Tensor, Tensor]:
    """Gradients of the solution with respect to c_moving and c_fixed, by the implicit function theorem.

    At a solution, dc_moving(u) + J du = dc_fixed, where J is the Jacobian of the interpolated c_moving at u. So
    lambda = J^-T grad is the gradient with respect to c_fixed, and scattering -lambda at u gives the gradient with
    respect to c_moving. Both maps are multiplied by the step matrix first, which brings J near the identity. A voxel
    has no gradient if it is not valid, if it lies on a fold (where the recursion cannot converge), or if J^-1
    amplifies more than MAX_AMPLIFICATION. Without ``need_moving`` the gradient of c_moving is an empty tensor.
    """
    dtype = c_moving.dtype
    g = matvec(matrix, c_moving.to(grad.dtype))
    limit = grid_limit(g)
    u = displacement + identity_grid(displacement.shape[2:], displacement)
    inverse = _inverse(g, torch.clamp(u, -limit, limit), None, sample_backward)
    passes = valid & inverse.good[:, None]
    weight = torch.where(passes, inverse.transposed(torch.where(passes, grad, 0.0)), 0.0)
    transposed = matrix.transpose(1, 2)
    grad_fixed = matvec(transposed, weight).to(dtype)
    if not need_moving:
        return c_moving.new_empty(0), grad_fixed
    scattered = sample_backward(weight, g, _clamp(u, limit), 0, 0, True, False)[0]
    return -matvec(transposed, scattered).to(dtype), grad_fixed


def implicit_warp_unrolled_backward(
    grad: Tensor,
    c_moving: Tensor,
    c_fixed: Tensor,
    matrix: Tensor,
    iterations: int,
    tolerance: float,
    sample: Sampler | None = None,
    sample_backward: SamplerBackward = resample_backward,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the iterations with respect to c_moving, c_fixed and matrix, by reversing every step exactly.

    A gradient that is exactly 0 stays 0, whatever the maps hold there, even NaN.
    """
    moving_map, fixed_map = c_moving.to(grad.dtype), c_fixed.to(grad.dtype)
    g, t = matvec(matrix, moving_map), matvec(matrix, fixed_map)
    limit = grid_limit(g)
    path = [
        (u, moving) for u, moving, _ in _steps(g, t, limit, iterations, tolerance, sample or border_sample)
    ]
    by_g, by_t, incoming = torch.zeros_like(g), torch.zeros_like(t), grad
    for u, moving in reversed(path):
        passed = incoming if moving is None else torch.where(moving, incoming, 0.0)
        by_volume, by_place = sample_backward(passed.contiguous(), g, _clamp(u, limit), 0, 0, True, True)
        by_t += passed
        by_g -= by_volume
        # A gradient of 0 times a slope of NaN would be NaN.
        still = (u.abs() >= limit) | (passed == 0).all(1, keepdim=True)
        back = torch.where(still, 0.0, passed - by_place)
        incoming = back if moving is None else torch.where(moving, back, incoming)
    by_matrix = _outer(by_g, moving_map) + _outer(by_t, fixed_map)
    transposed = matrix.transpose(1, 2)
    return matvec(transposed, by_g).to(c_moving.dtype), matvec(transposed, by_t).to(c_fixed.dtype), by_matrix


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the voxels of a b^T: [B, 3, 3], as sums of products (see matvec). Where a is 0, b may be NaN."""
    b = torch.where((a == 0).all(1, keepdim=True), 0.0, b)
    return torch.stack([(a[:, i : i + 1] * b).sum((2, 3, 4)) for i in range(3)], 1)
