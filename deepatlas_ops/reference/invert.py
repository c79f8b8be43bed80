"""Solve c_moving(u) = c_fixed(v) in PyTorch: the recursion of eqs 5-7 and its two gradients.

With the step matrix S and its inverse A, the recursion over the continued map is

    u <- u + S (c_fixed(v) - c_moving(clamp u) - A (u - clamp u)) = t - g(clamp u) + clamp u,

where g = S c_moving and t = S c_fixed: one resampling and two sums a step. ``clamp`` holds u on the moving
grid; beyond it the map goes on linearly with slope A, so that every u is finite and means something. An axis
of size 1 has no extent: its clamp is 0 and the map is linear, with slope A, along all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .jacobian import _difference_adjoint
from .resample import batch_first, compute_dtype, identity_grid, resample_backward

STEPS = ("moving", "fixed", "direction_cosine", "newton")
SLACK = 1e-5  # rounding allowed on |u| <= 1, so that the faces of an identity map count as inside
MAX_AMPLIFICATION = 20.0  # what 20 unrolled steps could amplify at most; beyond it a solution is not resolved

Sampler = Callable[[Tensor, Tensor], Tensor]
SamplerBackward = Callable[..., tuple[Tensor, Tensor]]  # the arguments of resample_backward


def border_sample(volume: Tensor, coords: Tensor) -> Tensor:
    """Linear sampling with border padding: the default sampler of the recursion.

    It skips the NaN rule of resample, which the recursion does not need: its sums carry the NaN of a
    coordinate.
    """
    grid = batch_first(coords.movedim(1, -1))
    return F.grid_sample(batch_first(volume), grid, padding_mode="border", align_corners=True)


def matvec(matrix: Tensor, field: Tensor) -> Tensor:
    """matrix [B, 3, 3] times field [B, 3, D, H, W], without a matrix unit that may round to TF32."""
    m = matrix[..., None, None, None]
    x, y, z = field[:, :1], field[:, 1:2], field[:, 2:]
    return m[:, :, 0] * x + m[:, :, 1] * y + m[:, :, 2] * z


def mean_jacobian(field: Tensor, mask: Tensor | None) -> Tensor:
    """Weighted mean of the local Jacobians: [B, 3, 3], rows the field's channels, columns x, y, z.

    The mean of the differences along an axis telescopes: without weights only its faces are read, and with
    weights the difference is taken of those, which have one channel.
    """
    everywhere = torch.stack([_mean_difference(field, axis) for axis in (4, 3, 2)], -1)
    if mask is None:
        return everywhere
    field = field.to(everywhere.dtype)
    weight = mask.to(field.dtype)
    total = weight.sum((2, 3, 4))[..., None]
    shares = torch.cat(
        [
            torch.zeros_like(weight) if field.shape[axis] == 1 else _difference_adjoint(weight, axis)
            for axis in (4, 3, 2)
        ],
        1,
    )
    # where no weight asks for a value it may be anything, NaN included
    values = torch.where((shares != 0).any(1, keepdim=True), field, 0.0)
    mean = _outer(values, shares) / torch.where(total == 0, 1.0, total)
    long = torch.tensor([field.shape[axis] > 1 for axis in (4, 3, 2)], device=field.device)
    return torch.where((total == 0) | ~long, everywhere, mean)  # an empty mask counts as none


def _mean_difference(field: Tensor, axis: int) -> Tensor:
    """Mean of the central differences (one-sided at the borders) along an axis: [B, 3]."""
    n = field.shape[axis]

    def face(i: int) -> Tensor:
        return field.select(axis, i).to(compute_dtype(field.dtype)).mean((2, 3))

    if n == 1:  # no difference to take: the identity's column
        return face(0) * 0 + torch.eye(3, dtype=face(0).dtype, device=field.device)[4 - axis]
    if n == 2:
        return (face(1) - face(0)) / 2
    return (1.5 * (face(n - 1) - face(0)) + 0.5 * (face(1) - face(n - 2))) * ((n - 1) / (2 * n))


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
    if step in ("moving", "newton"):
        return inverse_or_identity(mean_jacobian(c_moving, mask))
    mean = mean_jacobian(c_fixed, None)
    if step == "fixed":
        return inverse_or_identity(mean)
    squared = mean.square().sum(1, keepdim=True)
    cosines = mean / torch.where(squared > 0, squared, 1.0).sqrt()  # no root of 0: its slope is infinite
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


class _Inverse(NamedTuple):
    """Cofactors, 1 / determinant and worth of a field of Jacobians: see _inverse."""

    cofactors: tuple[tuple[Tensor, Tensor, Tensor], ...]  # [r][k]: derivative of det by row r, column k
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
    """Inverse of the Jacobian of the interpolated g at ``held``, where it is worth having.

    It is not on a fold, nor where it amplifies more than MAX_AMPLIFICATION. Columns of ``continued``
    coordinates [B, 3, D, H, W], and those of axes of size 1, are the identity's.
    """
    # On the border the interpolant's slope is that of the cell inside; border sampling would report 0.
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
    size = sum(entry.square() for row in cofactors for entry in row).sqrt()
    good = (det > 0) & (size <= MAX_AMPLIFICATION * det)
    return _Inverse(cofactors, 1 / torch.where(good, det, 1.0), good)


def _newton(
    g: Tensor, u: Tensor, advanced: Tensor, limit: Tensor, sample_backward: SamplerBackward
) -> Tensor:
    """The Newton step where the Jacobian has an inverse worth having, else the plain one."""
    inverse = _inverse(g, torch.clamp(u, -limit, limit), u.abs() > limit, sample_backward)
    rest = advanced - u
    return torch.where(inverse.good[:, None], u + inverse(rest), advanced)


def _may_look() -> bool:
    """Whether the number of steps may depend on the data; all steps give the same, since no voxel moves."""
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
    """The recursion, a step at a time: u before, which voxels still moved (None: all), u after."""
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

    ``newton``: take Newton steps, with this adjoint of the sampler; those are not differentiable.
    """
    sample = sample or border_sample
    u = t
    for _, _, u in _steps(g, t, limit, iterations, tolerance, sample, newton):  # noqa: B007
        pass
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
    """displacement, residual (moving voxels) and valid of the recursion with step matrix ``matrix``.

    ``ruler`` [B, 3, 3] turns what is left in the frame of ``matrix`` into a difference on the moving grid;
    None: it is one already. See continued_inverse for ``newton``.
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

    At a solution, dc_moving(u) + J du = dc_fixed with J the Jacobian of the interpolated c_moving there; so
    lambda = J^-T grad is the gradient of c_fixed, and -lambda scattered at u that of c_moving. Everything is
    measured in the frame of the step matrix, where J is near the identity. A voxel passes nothing on when it
    is not valid, when it lies on a fold (the recursion cannot settle there), or when J^-1 amplifies more than
    MAX_AMPLIFICATION. Without ``need_moving`` its gradient is an empty tensor.
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
    """Gradients of the iterations with respect to c_moving, c_fixed and matrix: their exact reverse.

    A gradient of exactly zero stays zero, whatever the maps hold there, NaN included.
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
        # zero times the slope of a NaN would be NaN
        still = (u.abs() >= limit) | (passed == 0).all(1, keepdim=True)
        back = torch.where(still, 0.0, passed - by_place)
        incoming = back if moving is None else torch.where(moving, back, incoming)
    by_matrix = _outer(by_g, moving_map) + _outer(by_t, fixed_map)
    transposed = matrix.transpose(1, 2)
    return matvec(transposed, by_g).to(c_moving.dtype), matvec(transposed, by_t).to(c_fixed.dtype), by_matrix


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the voxels of a b^T: [B, 3, 3]; where a is 0, b may be NaN. No matrix unit rounds it."""
    b = torch.where((a == 0).all(1, keepdim=True), 0.0, b)
    return torch.stack([(a[:, i : i + 1] * b).sum((2, 3, 4)) for i in range(3)], 1)
