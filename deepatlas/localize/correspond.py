"""Which place of one exam belongs to which of another: c_moving(u) = c_fixed(v), solved for u (section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.model.engine import ExamMap
from deepatlas.model.field import CoordinateField, sample_at
from deepatlas.model.native import extrapolate, extrapolated_grid
from deepatlas.space.grid import Grid

# The iteration ends where a step is shorter, in voxels of the network's input.
_TOLERANCE = 1e-3
_ITERATIONS = 30
# Steps that polish a solution on the fine parts of a field, each at most so many millimetres long.
_POLISHING = 6
_LONGEST = 8.0


@dataclass(frozen=True)
class Matches:
    """The voxels of a grid in one exam, and their places in another.

    Attributes:
        grid: the grid, in the first exam.
        places: float64 ``[3, D, H, W]`` (x, y, z), RAS millimetres in the other exam.
        seen: bool ``[D, H, W]``, the field of view of the network in the first exam.
        body: bool ``[D, H, W]``, its foreground, which goes on beyond the field of view.
        solved: bool ``[D, H, W]``, the voxels of the foreground whose coordinates the other exam has, be it where its
            map is continued beyond its field of view.
        shared: bool ``[D, H, W]``, those of them that lie in the field of view and the foreground of both exams.
        view: the grid of the network in the other exam, whose outer faces are its field of view.
    """

    grid: Grid
    places: NDArray[np.float64]
    seen: NDArray[np.bool_]
    body: NDArray[np.bool_]
    solved: NDArray[np.bool_]
    shared: NDArray[np.bool_]
    view: Grid

    def pairs(self, most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """At most so many places of the shared foreground ``[N, 3]``, evenly spread, and those in the other exam."""
        z, y, x = np.nonzero(self.shared)
        some = slice(None, None, max(1, -(-len(z) // most)))
        index = np.stack([x, y, z], axis=-1)[some]
        return self.grid.voxel_to_world(index), self.places[:, z, y, x].T[some]


def correspond(origin: ExamMap, goal: ExamMap, grid: Grid) -> Matches:
    """Find the places in ``goal`` of the voxels of a grid in ``origin``.

    The maps of the whole exams are matched by ``ops.implicit_warp``; where the field of ``goal`` has pieces, Newton
    steps on all of it polish the result.

    Args:
        origin: the exam that the grid lies in.
        goal: the exam in which the places are to be found.
        grid: any grid; see :func:`control_grid`.
    """
    wide = extrapolated_grid(goal.grid)
    coords = extrapolate(goal.coords)
    body = torch.nn.functional.pad(
        torch.from_numpy(goal.body)[None, None].to(coords), (1,) * 6, mode="replicate"
    )
    wanted = origin.field.on(grid)[None]
    warp = ops.implicit_warp(
        coords, wanted, iterations=_ITERATIONS, tolerance=_TOLERANCE, step="newton", gradient="none",
        mask=body if body.any() else None,
    )  # fmt: skip
    identity = torch.from_numpy(grid.identity()).to(coords)[None]
    places = wide.normalized_to_world((identity + warp.displacement)[0].double().cpu().numpy().T).T
    error = warp.residual[0, 0].cpu().numpy() * max(goal.grid.spacing)
    own = _mask_at(origin.body, origin.grid, grid)
    if goal.pieces:
        z, y, x = np.nonzero(own & np.isfinite(error))
        aim = wanted[0, :, z, y, x].T.double().cpu().numpy()
        better, rest = polish(goal.field, aim, places[:, z, y, x].T)
        places[:, z, y, x], error[z, y, x] = better.T, rest
    solved = own & (error < max(goal.grid.spacing))
    seen = origin.field.inside(grid)
    shared = np.zeros(grid.shape, dtype=bool)
    z, y, x = np.nonzero(solved & seen)
    found = places[:, z, y, x].T
    shared[z, y, x] = goal.grid.covers(found) & (sample_at(_as_map(goal.body), goal.grid, found)[:, 0] > 0.5)
    return Matches(grid, places, seen, own, solved, shared, goal.grid)


def control_grid(exam: ExamMap, most: int) -> Grid:
    """A grid over the field of view of the network and a voxel beyond, as fine as the finest part of the field.

    Args:
        exam: the exam.
        most: at most so many voxels along an axis.
    """
    wide = extrapolated_grid(exam.grid)
    finest = exam.field.spacing
    shape = [
        min(max(most, n), 1 + round((n - 1) * max(1.0, mm / finest))) if exam.pieces else n
        for n, mm in zip(wide.shape, wide.spacing[::-1], strict=True)
    ]
    return wide.resized(shape)


def polish(
    field: CoordinateField, wanted: NDArray[np.float64], places_mm: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Newton steps on a field with all its pieces: ``field.at(place) = wanted``.

    The Jacobian is that of the map of the whole exam, which the pieces refine: a step lowers the distance without
    meeting it, and one that does not is halved.

    Args:
        field: the coordinates of an exam.
        wanted: ``[N, 3]``, coordinates.
        places_mm: ``[N, 3]``, where to begin, in RAS millimetres.

    Returns:
        The places ``[N, 3]``, and how far their coordinates are from those wanted, ``[N]`` in millimetres.
    """
    slope, grid = _slopes(field), extrapolated_grid(field.grid)

    def offset(place: NDArray[np.float64]) -> NDArray[np.float64]:
        matrix = sample_at(slope, grid, place).reshape(-1, 3, 3)
        rest = (wanted - field.at(place))[..., None]
        return (np.linalg.pinv(matrix, rcond=1e-3) @ rest)[..., 0]

    place = places_mm
    step = offset(place)
    damping = np.ones(len(place))
    for _ in range(_POLISHING):
        length = np.linalg.norm(step, axis=1)
        move = step * (np.minimum(1.0, _LONGEST / np.maximum(length, 1e-9)) * damping)[:, None]
        trial = place + move
        new = offset(trial)
        better = np.linalg.norm(new, axis=1) < length
        place, step = np.where(better[:, None], trial, place), np.where(better[:, None], new, step)
        damping = np.where(better, np.minimum(1.0, 2 * damping), damping / 2)
    return place, np.linalg.norm(step, axis=1)


def _slopes(field: CoordinateField) -> Tensor:
    """``[1, 9, D, H, W]``: d c_a / d mm_b (a varies slowly, b fast, both x, y, z) of the map of the whole exam."""
    padded = extrapolate(field.coords)
    dz, dy, dx = torch.gradient(padded[0], dim=(1, 2, 3))
    per_voxel = torch.stack([dx, dy, dz], dim=1)
    inverse = torch.from_numpy(np.linalg.inv(field.grid.affine[:3, :3])).to(padded)
    return torch.einsum("avzyx,vb->abzyx", per_voxel, inverse).flatten(0, 1)[None]


def _as_map(mask: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(mask)[None, None].float()


def _mask_at(mask: NDArray[np.bool_], source: Grid, grid: Grid) -> NDArray[np.bool_]:
    """A mask on ``source`` at the voxels of another grid; at its border it goes on."""
    theta = torch.from_numpy(source.theta_from(grid)).float()[None]
    found: NDArray[np.bool_] = (
        ops.affine_resample(_as_map(mask), theta, grid.shape, padding="border")[0, 0].numpy() > 0.5
    )
    return found
