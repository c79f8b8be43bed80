"""Places of an exam that have given coordinates: the inverse of its map, by damped Newton steps (section 2.2)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.model.field import CoordinateField
from deepatlas.model.native import extrapolate, extrapolated_grid
from deepatlas.space.at_points import at_points

NEWTON_STEPS = 12
# The longest Newton step, in voxels.
MAX_STEP = 2.0
# An offset in voxels that is nothing.
_SOLVED = 1e-4
# The steps on the field of several networks, after those on the network of the whole exam.
POLISHING = 12


def invert(
    field: CoordinateField, body: NDArray[np.bool_], wanted: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The places of an exam at which it has the coordinates that are asked for.

    c(u) = ``wanted`` is solved on the network of the whole exam by damped Newton steps from two starts: the solution of
    ``ops.implicit_warp``, and the voxel whose coordinate is nearest. The solution with the smaller residual is taken.
    Where networks of regions see the exam too, it is polished by Newton steps on the whole field, whose slope is
    taken by finite differences.

    Args:
        field: the coordinates of the exam.
        body: ``[S, S, S]``, the foreground of the exam on ``field.grid``, in which starts are searched.
        wanted: ``[N, 3]``.

    Returns:
        The places ``[N, 3]`` in RAS millimetres, and how far each of them is from the coordinates that were asked for
        in millimetres, ``[N]``.
    """
    if len(wanted) == 0:
        return np.zeros((0, 3)), np.zeros(0)
    coords, grid = field.coords, field.grid
    target = torch.from_numpy(np.ascontiguousarray(wanted.T)).to(coords)
    padded = extrapolate(coords)
    jacobian = _jacobian(padded)
    candidates = [_newton(padded, jacobian, target, start) for start in _starts(coords, body, target)]
    affine = torch.from_numpy(np.array(grid.affine[:3, :3])).to(coords)
    residuals = torch.stack([(affine @ rest).norm(dim=0) for _, rest in candidates])
    choice = residuals.argmin(dim=0)
    many = torch.arange(len(wanted), device=choice.device)
    best = torch.stack([index for index, _ in candidates])[choice, :, many]
    residual = residuals.amin(dim=0).double().cpu().numpy()
    # The extrapolated map has one more voxel on every side, so that its indices are larger by 1.
    places = grid.voxel_to_world((best - 1).double().cpu().numpy())
    return _polished(field, wanted, places) if field.pieces else (places, residual)


def _polished(
    field: CoordinateField, wanted: NDArray[np.float64], places: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Newton steps on the whole field from ``places``; the same results as :func:`invert`."""
    # Within half a voxel of the finest network the map is linear.
    half = field.spacing / 4
    shifts = np.concatenate([np.zeros((1, 3)), half * np.eye(3), -half * np.eye(3)])

    def offset(at: NDArray[np.float64]) -> NDArray[np.float64]:
        around = field.at((at + shifts[:, None]).reshape(-1, 3)).reshape(7, len(at), 3)
        slope = np.moveaxis((around[1:4] - around[4:7]) / (2 * half), 0, -1)
        inverse = _inverse(torch.from_numpy(slope)).numpy()
        step: NDArray[np.float64] = (inverse @ (wanted - around[0])[..., None])[..., 0]
        return step

    longest = MAX_STEP * max(field.grid.spacing)
    step = offset(places)
    damping = np.ones(len(places))
    for _ in range(POLISHING):
        length = np.linalg.norm(step, axis=1)
        scale = np.minimum(longest / np.maximum(length, 1e-12), 1) * damping
        trial = places + step * scale[:, None]
        new = offset(trial)
        # What leaves the network of the whole exam has no slope any more.
        better = (np.linalg.norm(new, axis=1) < length) & extrapolated_grid(field.grid).covers(trial)
        places = np.where(better[:, None], trial, places)
        step = np.where(better[:, None], new, step)
        damping = np.where(better, np.minimum(2 * damping, 1), damping / 2)
        if np.linalg.norm(step, axis=1).max() < 1e-3:
            break
    return places, np.linalg.norm(step, axis=1)


def _sample(volume: Tensor, index: Tensor) -> Tensor:
    """Values ``[C, N]`` of ``[1, C, D, H, W]`` at fractional voxels ``[3, N]`` (x, y, z), by linear interpolation."""
    size = torch.tensor(volume.shape[:1:-1], dtype=index.dtype, device=index.device)[:, None]
    coords = 2 * index / (size - 1).clamp_min(1) - 1
    return at_points(volume, coords.to(volume.dtype)[None])[0]


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
        return (_inverse(matrix) @ difference)[..., 0].T.to(index.dtype)

    index = start.clone()
    best = offset(index)
    error = best.norm(dim=0)
    damping = torch.ones_like(error)
    for _ in range(NEWTON_STEPS):
        if error.max() < _SOLVED:
            break
        length = best.norm(dim=0).clamp_min(1e-12)
        step = best * (MAX_STEP / length).clamp_max(1) * damping
        trial = torch.minimum((index + step).clamp_min(0), limit)
        new = offset(trial)
        better = new.norm(dim=0) < error
        index, best = torch.where(better, trial, index), torch.where(better, new, best)
        error = best.norm(dim=0)
        damping = torch.where(better, (2 * damping).clamp_max(1), damping / 2)
    return index, best


def _inverse(matrix: Tensor) -> Tensor:
    """The inverses of matrices ``[N, 3, 3]``.

    Where the map is flat or folded a matrix has none. The pseudoinverse then gives the shortest step.
    """
    inverse, _ = torch.linalg.inv_ex(matrix)
    condition = torch.linalg.matrix_norm(matrix) * torch.linalg.matrix_norm(inverse)
    bad = ~(condition < 1e3)
    if bad.any():
        inverse[bad] = torch.linalg.pinv(matrix[bad], rtol=1e-3)
    return inverse


def _starts(coords: Tensor, body: NDArray[np.bool_], wanted: Tensor) -> list[Tensor]:
    """Starts of the Newton steps, voxels ``[3, N]`` of the extrapolated map: implicit warp and nearest coordinate."""
    # Slow to import.
    from scipy.spatial import cKDTree

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
    # A tree that is split at the middles is built in half the time, and answers a few questions as fast.
    tree = cKDTree(coords[0][:, inside].T.double().cpu().numpy(), balanced_tree=False, compact_nodes=False)
    _, nearest = tree.query(wanted.T.double().cpu().numpy())
    return [solved, where[torch.from_numpy(nearest).to(where.device)].flip(1).T.to(u.dtype) + 1]
