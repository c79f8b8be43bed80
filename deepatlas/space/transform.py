"""Maps from the places of one exam to those of another: an affine map, and what remains of a deformation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DataError
from deepatlas.space.affine import affine_coords
from deepatlas.space.at_points import at_points
from deepatlas.space.constants import AIR
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.volume import Volume

# The number of voxels that are moved at once: their coordinates fit into the cache of a processor's core.
_CHUNK = 1 << 18


@dataclass(frozen=True, eq=False, repr=False)
class Transform:
    """Where each place x of one exam, the fixed one, lies in another, the moving one: ``matrix (x + residual(x))``.

    It pulls: a voxel of the fixed exam takes the value that the moving exam has at the place.

    Attributes:
        matrix: float64 ``[4, 4]``, from RAS+ millimetres of the fixed exam to those of the moving one.
        residual: float64 ``[3, D, H, W]`` (x, y, z), displacements in RAS millimetres of the fixed exam, which come
            before ``matrix``; None for an affine map. It is 0 on all six sides, since beyond its grid it counts as 0.
        grid: the grid of ``residual``, in the space of the fixed exam.

    Raises:
        DataError: the matrix is not 4x4 and invertible, or the residual is not on its grid or not 0 on its sides.
    """

    matrix: NDArray[np.float64]
    residual: NDArray[np.float64] | None = None
    grid: Grid | None = None

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
            raise DataError("transform: needs a matrix of 4x4 finite numbers that can be inverted")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)
        if self.residual is None:
            return
        if self.grid is None or self.residual.shape != (3, *self.grid.shape):
            raise DataError(
                f"transform: a residual of shape {self.residual.shape} is not on its grid {self.grid}"
            )
        sides = [self.residual.take(i, axis) for axis in (1, 2, 3) for i in (0, -1)]
        if not np.isfinite(self.residual).all() or any(side.any() for side in sides):
            raise DataError("transform: a residual must be finite, and 0 on the six sides of its grid")

    def __repr__(self) -> str:
        kind = "affine" if self.residual is None else f"affine and a residual on {self.grid!r}"
        return f"{type(self).__name__}({kind})"

    def inverse_of_affine(self) -> Transform:
        """The inverse of an affine map; DataError for one with a residual, whose inverse must be solved for."""
        if self.residual is not None:
            raise DataError("transform: a deformation has no inverse that could be written down")
        return Transform(np.asarray(np.linalg.inv(self.matrix), dtype=np.float64))

    def apply(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """The places ``[N, 3]`` in the moving exam of places ``[N, 3]`` of the fixed one, in RAS millimetres."""
        points = np.asarray(points_mm, dtype=np.float64)
        if self.residual is not None and self.grid is not None and len(points):
            place = torch.from_numpy(np.ascontiguousarray(self.grid.world_to_normalized(points).T))
            field = torch.from_numpy(self.residual)[None]
            points = points + at_points(field, place[None])[0].T.numpy()
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def slabs(self, fixed: Grid, moving: Grid, chunk: int = _CHUNK) -> Iterator[tuple[slice, Tensor]]:
        """Yield ``(z slice, [1, 3, d, H, W])``: normalised coordinates on ``moving`` of the voxels of ``fixed``."""
        to_moving = np.linalg.inv(moving.normalized_affine) @ self.matrix
        field = None
        if self.residual is not None:
            scaled = np.tensordot(to_moving[:3, :3], self.residual, axes=1)
            field = torch.from_numpy(scaled).float()[None]
        depth, height, width = fixed.shape
        step = max(1, chunk // (height * width))
        for start in range(0, depth, step):
            z = slice(start, min(start + step, depth))
            part = fixed.cropped((z.start, 0, 0), (z.stop - z.start, height, width))
            theta = torch.from_numpy((to_moving @ part.normalized_affine)[:3]).float()[None]
            place = affine_coords(theta, part.shape)
            if field is not None and self.grid is not None:
                on_part = torch.from_numpy(self.grid.theta_from(part)).float()[None]
                place += ops.affine_resample(field, on_part, part.shape, padding="border")
            yield z, place

    def pull(self, volume: Volume, grid: Grid, outside: float = AIR) -> Volume:
        """The moving exam on a grid of the fixed one.

        Args:
            volume: an image, which is interpolated linearly, or :class:`~deepatlas.space.labels.Labels`, of which the
                nearest are taken, overlaps included.
            grid: any grid in the space of the fixed exam.
            outside: the value of an image beyond the outer faces of its voxels. Labels are 0 there.
        """
        if isinstance(volume, Labels):
            return self._pull_labels(volume, grid)
        values = torch.from_numpy(np.array(volume.array, dtype=np.float32))[None, None]
        array = np.empty(grid.shape, dtype=np.float32)
        for z, place in self.slabs(grid, volume.grid):
            part = ops.resample(values, place)[0, 0]
            part[~within_faces(place, volume.grid)] = outside
            array[z] = part.numpy()
        return replace(volume, array=array, grid=grid)

    def _pull_labels(self, labels: Labels, grid: Grid) -> Labels:
        masks = {identity: labels.mask(identity) for identity in labels.hidden}
        # float32 holds all ids exactly.
        values = torch.from_numpy(np.stack([labels.array, *masks.values()]).astype(np.float32))[None]
        array = np.empty((1 + len(masks), *grid.shape), dtype=labels.array.dtype)
        for z, place in self.slabs(grid, labels.grid):
            part = ops.resample(values, place, mode="nearest")[0]
            part[:, ~within_faces(place, labels.grid)] = 0
            array[:, z] = part.numpy()
        hidden = {}
        for identity, mask in zip(masks, array[1:].astype(bool), strict=True):
            below = mask & (array[0] != identity)
            if below.any():
                hidden[identity] = BoxMask.of(below)
        return Labels(array[0], grid, labels.name, hidden)

    def jacobian(self) -> NDArray[np.float64]:
        """The determinant of the transform, by which factor volumes grow from the fixed exam to the moving one.

        Float64 ``[D, H, W]`` on :attr:`grid`, by central differences; at most 0 where the transform folds.

        Raises:
            DataError: the transform is affine, so that the determinant of its matrix is all.
        """
        if self.residual is None or self.grid is None:
            raise DataError("transform: an affine map has no map of determinants; take that of its matrix")
        inverse = np.linalg.inv(self.grid.affine[:3, :3])
        # d residual / d mm_b, b in x, y, z: for each a field of vectors.
        per_voxel = [np.gradient(self.residual, axis=axis) for axis in (3, 2, 1)]
        x, y, z = (sum(per_voxel[v] * inverse[v, b] for v in range(3)) for b in range(3))
        x[0] += 1
        y[1] += 1
        z[2] += 1
        determinant: NDArray[np.float64] = (
            x[0] * (y[1] * z[2] - y[2] * z[1])
            + x[1] * (y[2] * z[0] - y[0] * z[2])
            + x[2] * (y[0] * z[1] - y[1] * z[0])
        )
        return determinant * np.linalg.det(self.matrix[:3, :3])


def within_faces(place: Tensor, grid: Grid) -> Tensor:
    """Bool ``[d, H, W]``: which normalised coordinates ``[1, 3, d, H, W]`` lie between the outer faces of a grid."""
    reach = torch.tensor([n / max(n - 1, 1) for n in grid.shape[::-1]], dtype=place.dtype)
    return (place[0].abs() <= reach[:, None, None, None]).all(dim=0)
