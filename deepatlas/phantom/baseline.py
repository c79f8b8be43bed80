"""The accuracy of a single affine map between two phantoms: the baseline that a trained model must exceed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deepatlas.phantom.patients import PhantomExam

# So many voxels of the source are matched at most; of more, every second or third along each axis is taken.
MOST_SOURCE = 2_000_000


def best_affine(source: PhantomExam, target: PhantomExam, *, points: int = 20000) -> NDArray[np.float64]:
    """The affine map that fits best, a 4x4 matrix from target to source mm: least squares over the foreground.

    Each target voxel is matched with the source voxel whose *true* template coordinate is nearest. Target voxels
    without a match within two voxels, which are outside the field of view of the source, are omitted. About
    ``points`` target voxels are used. Raises ValueError if fewer than 100 of them have a match.
    """
    index = np.argwhere(target.foreground)
    index = index[:: max(1, len(index) // points)]
    step = int(np.ceil(max(1, source.foreground.sum() / MOST_SOURCE) ** (1 / 3)))
    where = np.argwhere(source.foreground[::step, ::step, ::step]) * step
    tree = cKDTree(source.coords[:, *where.T].T)
    distance, match = tree.query(target.coords[:, *index.T].T)
    close = distance < 2 * step * max(source.volume.grid.spacing)
    if close.sum() < 100:
        raise ValueError(f"affine_baseline: {source.id} and {target.id} show no common part of the body")
    x = target.volume.grid.voxel_to_world(index[close][:, ::-1])
    y = source.volume.grid.voxel_to_world(where[match[close]][:, ::-1])
    homogeneous = np.column_stack([x, np.ones(len(x))])
    matrix = np.eye(4)
    matrix[:3] = np.linalg.lstsq(homogeneous, y, rcond=None)[0].T
    return matrix


def affine_baseline(source: PhantomExam, target: PhantomExam) -> dict[str, float]:
    """Dice of each structure when the labels of ``source`` are carried to ``target`` by :func:`best_affine`.

    Structures that are not visible in both exams are omitted.
    """
    m = np.linalg.inv(source.volume.grid.affine) @ best_affine(source, target) @ target.volume.grid.affine
    moved = np.empty(target.volume.grid.shape, source.labels.array.dtype)
    j, i = np.ix_(*(np.arange(n) for n in moved.shape[1:]))
    shape = source.volume.grid.shape
    # Slice by slice: the indices of a fine exam take a gigabyte.
    for k in range(len(moved)):
        at = [np.rint(m[r, 0] * i + m[r, 1] * j + m[r, 2] * k + m[r, 3]).astype(int) for r in (2, 1, 0)]
        inside = np.logical_and.reduce([(a >= 0) & (a < n) for a, n in zip(at, shape, strict=True)])
        index = tuple(a.clip(0, n - 1) for a, n in zip(at, shape, strict=True))
        moved[k] = source.labels.array[index] * inside
    bins = max(target.names.values()) + 1
    sizes = [
        np.bincount(a.ravel(), minlength=bins) for a in (moved, target.labels.array, source.labels.array)
    ]
    common = np.bincount(moved[moved == target.labels.array], minlength=bins)
    return {
        name: float(2 * common[k] / (sizes[0][k] + sizes[1][k]))
        for name, k in target.names.items()
        if sizes[1][k] and sizes[2][k]
    }
