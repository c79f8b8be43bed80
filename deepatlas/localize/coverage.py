"""How much of each structure the field of view of an exam shows, found or not: what truncation left of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deepatlas.localize.template.file import Template
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.project_box import within
from deepatlas.space.grid import Grid

# Points that stand for a structure.
_POINTS = 400
_SEED = 0


def coverage(found: ExamMap, template: Template, grid: Grid) -> NDArray[np.float64]:
    """The share of the volume of each mask of a template that lies in the field of view of an exam: ``[K]`` in [0, 1].

    Points of the mask are looked up in the exam: each belongs to the voxel of the body with the nearest coordinate, and
    the map around that voxel tells where it lies from there. A mask that holds nothing has nan.

    Args:
        found: the coordinates of the exam.
        template: the masks.
        grid: the exam's own grid, whose field of view counts; a network may see less of the exam.
    """
    if not template.names:
        return np.zeros(0)
    points, owner = _points(template)
    coords = found.field.on(found.grid).double().cpu().numpy()
    body = found.body if found.body.any() else np.ones_like(found.body)
    place = np.argwhere(body)
    tree = cKDTree(coords[:, body].T)
    _, nearest = tree.query(points)
    z, y, x = place[nearest].T
    # [N, 3, 3]: d coords / d voxel (x, y, z).
    steps = np.gradient(coords, axis=(3, 2, 1))
    matrix = np.stack([step[:, z, y, x] for step in steps], axis=-1).transpose(1, 0, 2)
    away = (np.linalg.pinv(matrix, rcond=1e-3) @ (points - coords[:, z, y, x].T)[..., None])[..., 0]
    index = np.stack([x, y, z], axis=1) + away
    seen = within(grid, found.grid.voxel_to_world(index))
    shares = np.full(len(template.names), np.nan)
    for row in range(len(template.names)):
        if (mine := owner == row).any():
            shares[row] = seen[mine].mean()
    return shares


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
