"""Which place of one exam belongs to which of another: c_moving(u) = c_fixed(v), solved for u (section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.model.field import CoordinateField, sample_at
from deepatlas.model.known import KnownExam
from deepatlas.model.native import extrapolated_grid
from deepatlas.space.grid import Grid

# A voxel's iteration ends where its step is shorter, in voxels of the moving map.
_TOLERANCE = 1e-3
_ITERATIONS = 30


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


def correspond(origin: KnownExam, goal: KnownExam, most: int) -> Matches:
    """Find the places in ``goal`` of the places of ``origin``, by ``ops.implicit_warp`` on their fields.

    Both fields are sampled as finely as their finest parts (see :func:`control_grid`).

    Args:
        origin: the exam whose places are asked for; the result is on a grid of it.
        goal: the exam in which they are found.
        most: at most so many voxels along an axis.
    """
    grid, wide = control_grid(origin.field, most), control_grid(goal.field, most)
    moving, wanted = goal.field.on(wide)[None], origin.field.on(grid)[None]
    body = torch.from_numpy(_mask_at(goal.body, goal.field.grid, wide))[None, None].to(moving)
    warp = ops.implicit_warp(
        moving, wanted, iterations=_ITERATIONS, tolerance=_TOLERANCE, step="newton", gradient="none",
        mask=body if body.any() else None,
    )  # fmt: skip
    identity = torch.from_numpy(grid.identity()).to(moving)
    coords = (identity + warp.displacement[0]).movedim(0, -1).double().cpu().numpy()
    places = np.moveaxis(wide.normalized_to_world(coords), -1, 0)
    own = _mask_at(origin.body, origin.field.grid, grid)
    # In voxels of the moving map; a voxel of the network's is the limit.
    limit = max(goal.field.grid.spacing) / max(wide.spacing)
    solved = own & (warp.residual[0, 0].cpu().numpy() < limit)
    seen = origin.field.inside(grid)
    shared = np.zeros(grid.shape, dtype=bool)
    z, y, x = np.nonzero(solved & seen)
    found, view = places[:, z, y, x].T, goal.field.grid
    shared[z, y, x] = view.covers(found) & (sample_at(_as_map(goal.body), view, found)[:, 0] > 0.5)
    return Matches(grid, places, seen, own, solved, shared, view)


def control_grid(field: CoordinateField, most: int) -> Grid:
    """A grid over the field of view of the network and a voxel beyond, as fine as the finest part of the field.

    Args:
        field: the coordinates of an exam.
        most: at most so many voxels along an axis, but never fewer than the network has.
    """
    wide = extrapolated_grid(field.grid)
    if not field.pieces:
        return wide
    counts = [
        1 + round((n - 1) * mm / field.spacing) for n, mm in zip(wide.shape, wide.spacing[::-1], strict=True)
    ]
    return wide.resized([max(n, min(most, count)) for n, count in zip(wide.shape, counts, strict=True)])


def _as_map(mask: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(mask)[None, None].float()


def _mask_at(mask: NDArray[np.bool_], source: Grid, grid: Grid) -> NDArray[np.bool_]:
    """A mask on ``source`` at the voxels of another grid; beyond its border it goes on."""
    theta = torch.from_numpy(source.theta_from(grid)).float()[None]
    found = ops.affine_resample(_as_map(mask), theta, grid.shape, padding="border")[0, 0] > 0.5
    return found.numpy()
