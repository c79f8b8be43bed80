"""Oriented boxes, in millimetres or in the coordinates of an atlas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepatlas.errors import DataError
from deepatlas.space.grid import Grid

# The least edge of a box, as a share of its longest one.
_FLAT = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class Box:
    """An oriented box: a centre and three half-edges.

    A box of an atlas is in its coordinates, where it may be turned; carried onto an exam by an affine map it is a
    parallelepiped in RAS+ millimetres. :meth:`upright` takes the shear away, which most formats and grids cannot hold.

    Attributes:
        name: what the box is called.
        centre: float64 ``[3]`` (x, y, z).
        axes: float64 ``[3, 3]``, the half-edges as columns: ``centre + axes @ u`` are the places of the box for u in
            [-1, 1]^3. They form a right-handed frame.

    Raises:
        DataError: the numbers are not finite, or the box has no volume, or its frame is left-handed.
    """

    name: str
    centre: NDArray[np.float64]
    axes: NDArray[np.float64]

    def __post_init__(self) -> None:
        centre = np.array(self.centre, dtype=np.float64)
        axes = np.array(self.axes, dtype=np.float64)
        if centre.shape != (3,) or axes.shape != (3, 3):
            raise DataError(
                f"box {self.name}: needs a centre of three numbers and axes of 3 x 3, got {centre.shape} and "
                f"{axes.shape}"
            )
        if not (np.isfinite(centre).all() and np.isfinite(axes).all()):
            raise DataError(f"box {self.name}: holds NaN or infinite numbers")
        edges = np.linalg.norm(axes, axis=0)
        volume = np.linalg.det(axes)
        if edges.min() <= _FLAT * edges.max() or abs(volume) <= _FLAT * edges.prod():
            raise DataError(f"box {self.name}: has no volume; give three edges that are longer than 0")
        if volume < 0:
            raise DataError(f"box {self.name}: its axes form a left-handed frame; exchange two of them")
        centre.setflags(write=False)
        axes.setflags(write=False)
        object.__setattr__(self, "centre", centre)
        object.__setattr__(self, "axes", axes)

    def __repr__(self) -> str:
        edges = " x ".join(f"{e:.4g}" for e in self.edges)
        return f"Box({self.name}, {edges} at {np.round(self.centre, 4).tolist()})"

    @classmethod
    def between(cls, name: str, low: Sequence[float], high: Sequence[float]) -> Box:
        """The box with axis-aligned edges from the corner ``low`` to the corner ``high`` (x, y, z)."""
        low_, high_ = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        if low_.shape != (3,) or high_.shape != (3,) or not (high_ > low_).all():
            raise DataError(
                f"box {name}: needs three numbers of which the first corner has the smaller, got {list(low)} and "
                f"{list(high)}"
            )
        return cls(name, (low_ + high_) / 2, np.diag((high_ - low_) / 2))

    @property
    def edges(self) -> NDArray[np.float64]:
        """The lengths of the whole edges, ``[3]``."""
        return 2 * np.linalg.norm(self.axes, axis=0)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """4x4: from the box's own coordinates in [-1, 1]^3 to places."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.axes, self.centre
        return matrix

    def corners(self) -> NDArray[np.float64]:
        """The eight corners, ``[8, 3]``."""
        return self.place(np.array(list(np.ndindex(2, 2, 2))) * 2.0 - 1)

    def place(self, own: ArrayLike) -> NDArray[np.float64]:
        """Places ``[..., 3]`` of the box's own coordinates ``[..., 3]``."""
        return np.asarray(own, dtype=np.float64) @ self.axes.T + self.centre

    def own(self, places: ArrayLike) -> NDArray[np.float64]:
        """The box's own coordinates ``[..., 3]`` of places; within [-1, 1] they lie in the box."""
        offset = np.asarray(places, dtype=np.float64) - self.centre
        return offset @ np.linalg.inv(self.axes).T

    def contains(self, places: ArrayLike) -> NDArray[np.bool_]:
        """Bool ``[...]``: which places ``[..., 3]`` lie in the box."""
        held: NDArray[np.bool_] = np.logical_and.reduce(np.abs(self.own(places)) <= 1, axis=-1)
        return held

    def moved(self, matrix: ArrayLike) -> Box:
        """The box under an affine map ``[4, 4]``, shear included. A mirroring map turns the first axis round."""
        map_ = np.asarray(matrix, dtype=np.float64)
        axes = map_[:3, :3] @ self.axes
        if np.linalg.det(axes) < 0:
            axes = axes * np.array([-1.0, 1.0, 1.0])
        return Box(self.name, map_[:3, :3] @ self.centre + map_[:3, 3], axes)

    def upright(self) -> tuple[Box, float]:
        """The box with right angles that is nearest to this one, and the shear that was taken away, in degrees.

        The directions are the rotation of the polar decomposition of the directions of the edges; each edge keeps its
        length. The shear is the largest angle between an edge and its direction in the result.
        """
        half = np.linalg.norm(self.axes, axis=0)
        left, _, right = np.linalg.svd(self.axes / half)
        rotation = left @ right
        cosine = ((self.axes / half) * rotation).sum(axis=0).clip(-1, 1)
        return Box(self.name, self.centre, rotation * half), float(np.degrees(np.arccos(cosine.min())))

    def grid(self, shape: int | Sequence[int]) -> Grid:
        """The voxel grid that fills the box: the outer faces of its voxels are the faces of the box.

        Args:
            shape: the number of voxels, one number or (z, y, x).

        Raises:
            DataError: the box is sheared (see :meth:`upright`).
        """
        sizes = (shape,) * 3 if isinstance(shape, int) else tuple(shape)
        voxel = 2 * self.axes / np.array(sizes[::-1], dtype=np.float64)
        affine = np.eye(4)
        affine[:3, :3] = voxel
        affine[:3, 3] = self.centre - self.axes.sum(axis=1) + voxel.sum(axis=1) / 2
        return Grid(sizes, affine)  # type: ignore[arg-type]
