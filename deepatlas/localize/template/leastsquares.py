"""The least-squares problem of eq. 14, solved by conjugate gradients.

    min_M  sum_j w_j (M(c_j) - m_j)^2  +  tikhonov |M|^2  +  laplacian |grad M|^2

``A``, which is ``ops.resample`` at the samples c_j, is linear in M. Its adjoint is the gradient of ``ops.resample``
with respect to its volume, so that the normal equations (A' W A + regulariser) M = A' W m need no matrix.

The data do not determine a template voxel that no sample reaches; the two small terms do. The Laplacian term fills such
voxels smoothly from their neighbours, and the Tikhonov term makes those far away 0. Both are relative to the mean
sampling density of the voxels that are reached, so that their weights mean the same for one exam and for a hundred.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepatlas.errors import DeepAtlasError
from deepatlas.space.at_points import at_points

TIKHONOV = 1e-4
LAPLACIAN = 2e-2


def sample(volume: Tensor, points: Tensor) -> Tensor:
    """A: the values ``[1, K, N]`` of a volume ``[1, K, D, H, W]`` at points ``[1, 3, N]``; 0 outside it."""
    return at_points(volume, points, padding="zeros")


def adjoint(values: Tensor, points: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A': values ``[1, K, N]``, splatted into ``[1, K, D, H, W]`` with the weights of :func:`sample`."""
    volume = values.new_zeros((1, values.shape[1], *shape), requires_grad=True)
    with torch.enable_grad():
        out = sample(volume, points)
    return torch.autograd.grad(out, volume, values)[0]


def laplacian(volume: Tensor) -> Tensor:
    """G'G for the forward differences G (with free ends) of ``[1, K, D, H, W]``; symmetric, positive semi-definite."""
    out = torch.zeros_like(volume)
    for axis in (2, 3, 4):
        n = volume.shape[axis]
        step = volume.diff(dim=axis)
        out.narrow(axis, 0, n - 1).sub_(step)
        out.narrow(axis, 1, n - 1).add_(step)
    return out


@dataclass
class Problem:
    """The samples of one structure over all exams, or of several structures that share their samples, in channels.

    Attributes:
        points: ``[1, 3, N]``, normalised to the corner-aligned grid of the unknown volume.
        values: ``[1, K, N]``, the labels at the points.
        shape: ``(D, H, W)`` of the unknown volume.
        weights: ``[1, 1, N]``; None for equal weights.
        tikhonov: weight of the Tikhonov term; positive.
        laplacian: weight of the Laplacian term; 0 or more.
        density: the mean sampling density of the voxels that are reached.

    Raises:
        DeepAtlasError: the shapes do not match, or a weight of the regulariser is out of range.
    """

    points: Tensor
    values: Tensor
    shape: tuple[int, int, int]
    weights: Tensor | None = None
    tikhonov: float = TIKHONOV
    laplacian: float = LAPLACIAN
    density: float = field(init=False, default=1.0)
    _diagonal: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n = self.values.shape[-1]
        if tuple(self.points.shape) != (1, 3, n):
            raise DeepAtlasError(
                f"Problem: points must be [1, 3, {n}] to match values, got {list(self.points.shape)}"
            )
        if self.tikhonov <= 0 or self.laplacian < 0:
            raise DeepAtlasError("Problem: tikhonov must be positive and laplacian not negative")
        # The row sums of A'WA, which are A'WA applied to a volume of ones.
        reached = adjoint(self.weighted(torch.ones_like(self.values[:, :1])), self.points, self.shape)
        count = int((reached > 0).sum())
        self.density = float(reached.sum(dtype=torch.float64)) / count if count else 1.0
        self._diagonal = reached + self.density * (self.tikhonov + 6 * self.laplacian)

    def weighted(self, values: Tensor) -> Tensor:
        """W: ``values`` times their weights."""
        return values if self.weights is None else values * self.weights

    def right_side(self) -> Tensor:
        """A' W m, the right side of the normal equations."""
        return adjoint(self.weighted(self.values), self.points, self.shape)

    def normal(self, volume: Tensor) -> Tensor:
        """(A' W A + regulariser) times a volume, by one forward and one backward pass of the resampling kernel."""
        volume = volume.detach().requires_grad_()
        with torch.enable_grad():
            out = sample(volume, self.points)
        product = torch.autograd.grad(out, volume, self.weighted(out.detach()))[0]
        volume = volume.detach()
        product += (self.density * self.tikhonov) * volume
        if self.laplacian:
            product += (self.density * self.laplacian) * laplacian(volume)
        return product

    def precondition(self, residual: Tensor) -> Tensor:
        """Divide by the row sums of the normal matrix, which are positive and close to its diagonal."""
        return residual / self._diagonal


@dataclass(frozen=True)
class Solution:
    """The solution of a :class:`Problem`."""

    volume: Tensor  # [1, K, D, H, W]
    iterations: int
    residual: float  # of the normal equations, relative to their right side
    converged: bool  # whether the residual is within the tolerance
    objective: tuple[float, ...]  # per iteration, relative to that of an empty template; it never rises


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


def conjugate_gradients(
    problem: Problem,
    iterations: int = 60,
    tolerance: float = 1e-4,
    callback: Callable[[int, float], None] | None = None,
) -> Solution:
    """Solve ``problem`` by preconditioned conjugate gradients, starting from zero.

    Args:
        problem: the samples and the weights of the regulariser.
        iterations: the largest number of iterations.
        tolerance: the solve ends when the residual of the normal equations, relative to their right side, is at most
            this.
        callback: called as ``callback(iteration, relative_residual)`` after every iteration.
    """
    b = problem.right_side()
    norm = _dot(b, b) ** 0.5
    x = torch.zeros_like(b)
    energy = _dot(problem.weighted(problem.values), problem.values)
    if norm == 0.0:
        return Solution(x, 0, 0.0, True, (1.0,))
    residual = b.clone()
    z = problem.precondition(residual)
    direction, rho, relative, objective = z.clone(), _dot(residual, z), 1.0, [1.0]
    step = 0
    while step < iterations and relative > tolerance:
        step += 1
        product = problem.normal(direction)
        curvature = _dot(direction, product)
        if not curvature > 0:
            # Only rounding can cause this, because the matrix is positive definite.
            break
        alpha = rho / curvature
        x += alpha * direction
        residual -= alpha * product
        relative = _dot(residual, residual) ** 0.5 / norm
        # With r = b - H x, the objective |A x - m|^2 + regulariser equals |m|^2 - x . (b + r) and needs no other pass.
        objective.append(1.0 - _dot(x, b + residual) / energy)
        if callback is not None:
            callback(step, relative)
        z = problem.precondition(residual)
        rho, previous = _dot(residual, z), rho
        direction = z + (rho / previous) * direction
    return Solution(x, step, relative, relative <= tolerance, tuple(objective))
