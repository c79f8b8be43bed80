"""Find points of one exam in another through the coordinates that both share (section 2.2).

Points are RAS+ millimetres (x to the right, y to the front, z to the head), as NIfTI affines give them. Tools that use
LPS (ITK, DICOM) differ in the signs of x and y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DeepAtlasError
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.estimate import ExamTrust, exam_trust
from deepatlas.model.engine import Engine, ExamMap
from deepatlas.model.fit import Fit
from deepatlas.model.native import extrapolate
from deepatlas.space.volume import Volume

NEWTON_STEPS = 12
# The longest Newton step, in voxels.
MAX_STEP = 2.0


@dataclass(frozen=True, repr=False)
class Located:
    """The points of one exam in another.

    Attributes:
        points: ``[N, 3]``, RAS millimetres in the target: the best guess where a point was not found, and nan where the
            given point lies outside the source exam.
        inversion_mm: ``[N]``, how far the target's coordinates at the point are from those asked for, in millimetres.
            This is the error of the inversion alone. The coordinates themselves have errors of several millimetres,
            which it does not show.
        found: ``[N]``, whether the model knows both exams, the given point lies in the body of the source, and the
            point lies in the body and the field of view of the target, at the coordinates asked for.
        reason: ``[N]``, why a point was not found; empty where it was.
        fit: how well the model knows the target.
        error_mm: ``[N]``, the expected error of the coordinates of both exams at the point, in mm, where it was asked
            for; nan where nobody can tell.
        bound_mm: ``[N]``, the error that nine of ten such points stay below.
    """

    points: NDArray[np.float64]
    inversion_mm: NDArray[np.float64]
    found: NDArray[np.bool_]
    reason: list[str]
    fit: Fit
    error_mm: NDArray[np.float64] | None = None
    bound_mm: NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        return f"Located({int(self.found.sum())} of {len(self.found)} points found, {self.fit!r})"


def locate(
    model: Engine,
    points_mm: ArrayLike,
    source: Volume,
    target: Volume,
    *,
    origin: ExamMap | None = None,
    trusted: Template | None = None,
    origin_trust: ExamTrust | None = None,
) -> Located:
    """Find points of one exam in another (section 2.2).

    The coordinate c of a point is read from the source by linear interpolation. Then c_target(u) = c is solved by
    damped Newton steps from two starts: the solution of ``ops.implicit_warp``, and the voxel of the target whose
    coordinate is nearest to c. The solution with the smaller residual is taken.

    Args:
        model: a trained model.
        points_mm: ``[N, 3]`` in RAS millimetres of ``source``.
        source: the exam that the points are in, in Hounsfield units.
        target: the exam in which they are to be found, in Hounsfield units.
        origin: ``model.map_exam(source)``, for callers that look into several targets.
        trusted: a template with a calibration, which tells the expected errors; None asks for none.
        origin_trust: the trust of the source, for callers that look into several targets.

    Returns:
        The points in RAS millimetres of ``target``, and which of them were found.

    Raises:
        DeepAtlasError: the points are not ``[N, 3]`` or not finite.
    """
    points = np.asarray(points_mm, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise DeepAtlasError(f"locate: points must be finite and [N, 3] (RAS mm), got shape {points.shape}")
    n = len(points)
    origin = origin or model.map_exam(source)
    goal = model.map_exam(target)
    if n == 0:
        none = None if trusted is None else np.zeros(0)
        return Located(np.zeros((0, 3)), np.zeros(0), np.zeros(0, dtype=bool), [], goal.fit, none, none)
    place = origin.grid.world_to_voxel(points)
    # The extrapolated map has one more voxel on every side, so that its indices are larger by 1.
    source_index = torch.from_numpy(place.T + 1).to(origin.coords)
    wanted = _sample(extrapolate(origin.coords), source_index)
    given = _within(source.grid.world_to_voxel(points), source.grid.shape)
    given &= _within(place, origin.grid.shape)

    coords, grid = goal.coords, goal.grid
    padded = extrapolate(coords)
    jacobian = _jacobian(padded)
    candidates = [_newton(padded, jacobian, wanted, start) for start in _starts(coords, goal.body, wanted)]
    affine = torch.from_numpy(np.array(grid.affine[:3, :3])).to(coords)
    residuals = torch.stack([(affine @ rest).norm(dim=0) for _, rest in candidates])
    choice = residuals.argmin(dim=0)
    best = torch.stack([index for index, _ in candidates])[choice, :, torch.arange(n, device=choice.device)]
    residual = residuals.amin(dim=0).double().cpu().numpy()
    index = (best - 1).double().cpu().numpy()
    located = grid.voxel_to_world(index)
    # The first reason that holds for a point is given.
    obstacles = [
        (~given, "outside the source exam"),
        (np.full(n, origin.fit.known is False), "the model does not know the source exam"),
        (np.full(n, goal.fit.known is False), "the model does not know the target exam"),
        (~_near(origin.body, place), "outside the body in the source exam"),
        (~_within(index, grid.shape), "outside the field of view of the target exam"),
        (~_within(target.grid.world_to_voxel(located), target.grid.shape), "outside the target exam"),
        (~(residual < max(grid.spacing)), "no place of the target exam has these coordinates"),
        (~_near(goal.body, index), "outside the body in the target exam"),
    ]
    reason = [next((why for bad, why in obstacles if bad[i]), "") for i in range(n)]
    located[~given], residual[~given] = math.nan, math.nan
    error, bound = None, None
    if trusted is not None:
        before = origin_trust or exam_trust(model, origin, trusted)
        error, bound = _both(
            before.millimetres(points), exam_trust(model, goal, trusted).millimetres(located)
        )
        error[~given], bound[~given] = math.nan, math.nan
    return Located(located, residual, np.array([not why for why in reason]), reason, goal.fit, error, bound)


def _both(
    first: tuple[NDArray[np.float64], NDArray[np.float64]],
    second: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The expected error of two maps, one after the other, and its bound: errors of two exams are independent."""
    error = np.hypot(first[0], second[0])
    # What each bound adds to its error is independent as well.
    return error, error + np.hypot(first[1] - first[0], second[1] - second[0])


def _sample(volume: Tensor, index: Tensor) -> Tensor:
    """Values ``[C, N]`` of ``[1, C, D, H, W]`` at fractional voxels ``[3, N]`` (x, y, z), by linear interpolation."""
    size = torch.tensor(volume.shape[:1:-1], dtype=index.dtype, device=index.device)[:, None]
    coords = 2 * index / (size - 1).clamp_min(1) - 1
    return ops.resample(volume, coords.to(volume.dtype).reshape(1, 3, -1, 1, 1))[0, :, :, 0, 0]


def _jacobian(padded: Tensor) -> Tensor:
    """``[1, 9, D, H, W]``: d c_a / d index_b by central differences (a varies slowly, b fast, both in x, y, z)."""
    dz, dy, dx = torch.gradient(padded[0], dim=(1, 2, 3))
    return torch.stack([dx, dy, dz], dim=1).flatten(0, 1)[None]


def _newton(padded: Tensor, jacobian: Tensor, wanted: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Solve c(index) = wanted ``[3, N]`` from ``start``; returns the index and the remaining offset in voxels."""
    limit = torch.tensor(padded.shape[:1:-1], dtype=start.dtype, device=start.device)[:, None] - 1

    def offset(index: Tensor) -> Tensor:
        matrix = _sample(jacobian, index).reshape(3, 3, -1).movedim(-1, 0).double()
        difference = (wanted - _sample(padded, index)).T[..., None].double()
        # Where the map is flat or folded the matrix has no inverse. The pseudoinverse then gives the shortest step.
        return (torch.linalg.pinv(matrix, rtol=1e-3) @ difference)[..., 0].T.to(index.dtype)

    index = start.clone()
    best = offset(index)
    error = best.norm(dim=0)
    damping = torch.ones_like(error)
    for _ in range(NEWTON_STEPS):
        length = best.norm(dim=0).clamp_min(1e-12)
        step = best * (MAX_STEP / length).clamp_max(1) * damping
        trial = torch.minimum((index + step).clamp_min(0), limit)
        new = offset(trial)
        better = new.norm(dim=0) < error
        index, best = torch.where(better, trial, index), torch.where(better, new, best)
        error = best.norm(dim=0)
        damping = torch.where(better, (2 * damping).clamp_max(1), damping / 2)
    return index, best


def _within(index: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Bool ``[N]``: which fractional voxels ``[N, 3]`` (x, y, z) lie between the outer faces of the grid."""
    inside: NDArray[np.bool_] = (index >= -0.5) & (index <= np.array(shape[::-1]) - 0.5)
    return np.logical_and.reduce(inside, axis=1)


def _near(body: NDArray[np.bool_], index: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Bool ``[N]``: which fractional voxels ``[N, 3]`` (x, y, z) are at most a voxel away from a mask ``[D, H, W]``."""
    nearby = ndimage.binary_dilation(body)
    last = np.array(body.shape[::-1]) - 1
    x, y, z = np.clip(np.rint(index), 0, last).astype(int).T
    result: NDArray[np.bool_] = nearby[z, y, x]
    return result


def _starts(coords: Tensor, body: NDArray[np.bool_], wanted: Tensor) -> list[Tensor]:
    """Starts of the Newton steps, voxels ``[3, N]`` of the extrapolated map: implicit warp and nearest coordinate."""
    n, shape = wanted.shape[1], coords.shape[2:]
    inside = torch.from_numpy(body).to(coords.device)
    if not inside.any():
        inside = torch.ones_like(inside)
    warp = ops.implicit_warp(
        coords, wanted.reshape(1, 3, n, 1, 1), gradient="none", mask=inside[None, None].to(coords.dtype)
    )
    # The fixed "map" is a column of N points, so that only z varies in its identity.
    identity = torch.zeros_like(wanted)
    identity[2] = torch.linspace(-1, 1, n, device=wanted.device, dtype=wanted.dtype) if n > 1 else 0
    u = identity + warp.displacement[0, :, :, 0, 0]
    size = torch.tensor(shape[::-1], dtype=u.dtype, device=u.device)[:, None]
    solved = (u + 1) / 2 * (size - 1) + 1
    solved = torch.minimum(torch.nan_to_num(solved).clamp_min(0), size + 1)

    # Coordinates of the background have no meaning, so only the foreground is searched.
    where = inside.nonzero()
    tree = cKDTree(coords[0][:, inside].T.double().cpu().numpy())
    _, nearest = tree.query(wanted.T.double().cpu().numpy())
    return [solved, where[torch.from_numpy(nearest).to(where.device)].flip(1).T.to(u.dtype) + 1]
