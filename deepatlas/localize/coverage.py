"""How much of each structure the field of view of an exam shows, found or not: what truncation left of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.localize.template.file import Template
from deepatlas.model.exam_map import ExamMap
from deepatlas.space.fit_affine import fit_affine
from deepatlas.space.grid import Grid

# Points that stand for a structure.
_POINTS = 400
_SEED = 0
# Voxels of the body from which the scale between coordinates and millimetres is fitted.
_FITTED = 20_000


def coverage(found: ExamMap, template: Template, grid: Grid) -> NDArray[np.float64]:
    """The share of the volume of each mask of a template that lies in the field of view of an exam: ``[K]`` in [0, 1].

    Points of the mask are looked up in the exam: each lies near the voxel of the body with the nearest coordinate. A
    mask that holds nothing has nan.

    Args:
        found: the coordinates of the exam.
        template: the masks.
        grid: the exam's own grid, whose field of view counts, but for empty slices at its ends; a network may see less
            of the exam.
    """
    # Slow to import.
    from scipy.spatial import cKDTree

    if not template.names:
        return np.zeros(0)
    points, owner = _points(template)
    coords = found.field.on(found.grid).double().cpu().numpy()
    body = found.body if found.body.any() else np.ones_like(found.body)
    place = np.argwhere(body)
    tree = cKDTree(coords[:, body].T, balanced_tree=False, compact_nodes=False)
    _, nearest = tree.query(points)
    there = coords[:, body].T[nearest]
    z, y, x = place[nearest].T
    # From the nearest voxel on, the map is that of the body on average: at the border of the exam its own slope may be
    # flat, and then a place far beyond would seem near.
    away = (points - there) @ mean_scale(coords, body, found.grid).T
    places = found.grid.voxel_to_world(np.stack([x, y, z], axis=1)) + away
    seen = grid.covers(places) & _between_ends(found, places, max(grid.spacing) / 2)
    shares = np.full(len(template.names), np.nan)
    for row in range(len(template.names)):
        if (mine := owner == row).any():
            shares[row] = seen[mine].mean()
    return shares


def _between_ends(found: ExamMap, places: NDArray[np.float64], slack_mm: float) -> NDArray[np.bool_]:
    """Which places ``[N, 3]`` lie along the body between the first and the last slice that shows any of it.

    Published exams are often padded with empty slices, which belong to the image and show nothing.
    """
    planes = np.flatnonzero(found.body.any(axis=(1, 2)))
    if not len(planes):
        return np.ones(len(places), dtype=bool)
    z = found.grid.world_to_voxel(places)[:, 2]
    slack = 0.5 + slack_mm / found.grid.spacing[2]
    result: NDArray[np.bool_] = (z >= planes[0] - slack) & (z <= planes[-1] + slack)
    return result


def mean_scale(coords: NDArray[np.float64], body: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """The linear part ``[3, 3]`` of the best affine map from coordinates ``[3, D, H, W]`` to millimetres, in a body."""
    inside = np.flatnonzero(body)
    if not len(inside):
        inside = np.arange(body.size)
    inside = inside[:: max(1, len(inside) // _FITTED)]
    z, y, x = np.unravel_index(inside, body.shape)
    places = grid.voxel_to_world(np.stack([x, y, z], axis=1))
    try:
        return fit_affine(coords.reshape(3, -1)[:, inside].T, places)[:3, :3]
    except DataError:
        # All coordinates lie in one plane: then there is no scale, and the size of the grid serves as one.
        return np.diag([e / 2 for e in grid.extent])


def _points(template: Template) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Coordinates ``[N, 3]`` of points inside the masks, and the row ``[N]`` of the mask that each belongs to."""
    generator = np.random.default_rng(_SEED)
    points, owner = [], []
    last = np.array(template.masks.shape[:0:-1]) - 1
    for row, (mask, level) in enumerate(zip(template.masks, template.thresholds, strict=True)):
        inside = np.flatnonzero(mask >= level)
        if len(inside) > _POINTS:
            inside = generator.choice(inside, _POINTS, replace=False)
        z, y, x = np.unravel_index(inside, mask.shape)
        points.append(np.stack([x, y, z], axis=1) / last * 2 - 1)
        owner.append(np.full(len(inside), row))
    return np.concatenate(points), np.concatenate(owner)
