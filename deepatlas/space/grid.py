"""The physical space of a voxel array: its shape and affine, which stay exact through every operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepatlas.errors import DataError

# Largest cosine between two axes that still counts as a right angle (0.06 degrees).
SHEAR_TOLERANCE = 1e-3

Shape = tuple[int, int, int]


def axis_cosine(affine: NDArray[np.float64]) -> float:
    """The largest absolute cosine of the angle between two voxel axes of a 4x4 affine; 0 means right angles."""
    with np.errstate(all="ignore"):
        axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def _halves(shape: Shape) -> NDArray[np.float64]:
    """Voxels per unit of normalised coordinate, (x, y, z).

    An axis of size 1 has its voxel at 0. Half a voxel per unit keeps the map invertible.
    """
    return np.array([max(n - 1, 1) / 2 for n in reversed(shape)], dtype=np.float64)


def _centre(shape: Shape) -> NDArray[np.float64]:
    return np.array([(n - 1) / 2 for n in reversed(shape)], dtype=np.float64)


def _triple(value: int | Sequence[int], what: str) -> Shape:
    values = (value,) * 3 if isinstance(value, int | np.integer) else tuple(value)
    if len(values) != 3:
        raise ValueError(f"Grid: {what} must be one integer or three (z, y, x), got {value!r}")
    return tuple(int(v) for v in values)  # type: ignore[return-value]


@dataclass(frozen=True, eq=False, repr=False)
class Grid:
    """The position of a voxel array in physical space.

    ``shape`` is (D, H, W), in the order of the array's axes z, y, x. ``affine`` is the 4x4 float64 matrix
    from voxel indices (x, y, z) to RAS+ millimetres (x to the right, y to the front, z to the head), which
    is nibabel's affine of the array transposed to x, y, z. Points are always ``[..., 3]`` in the order x, y,
    z.

    Normalised coordinates are corner-aligned: -1 is the centre of the first voxel of an axis, +1 the centre
    of the last; an axis of size 1 has coordinate 0.

    Raises :class:`~deepatlas.errors.DataError` if the shape has no voxels, or the affine is not finite,
    not invertible or sheared.
    """

    shape: Shape
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = _triple(self.shape, "shape")
        if min(shape) < 1:
            raise DataError(f"grid of shape {shape} (z, y, x) holds no voxel; every axis needs at least one")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise DataError(f"grid affine must be 4x4, got shape {affine.shape}")
        if not np.isfinite(affine).all():
            raise DataError(
                "grid affine holds NaN or infinite numbers; write the file again with a valid geometry"
            )
        if not np.allclose(affine[3], (0, 0, 0, 1)):
            raise DataError(f"grid affine must end in the row 0 0 0 1, got {affine[3].tolist()}")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if spacing.min() < 1e-9:
            raise DataError(
                f"grid spacing {np.round(spacing, 6).tolist()} mm (x, y, z) holds a zero; "
                "write the file again with the true voxel size"
            )
        shear = axis_cosine(affine)
        if shear > SHEAR_TOLERANCE:
            raise DataError(
                f"grid axes are not at right angles (cosine {shear:.4f}), as after a gantry tilt; "
                "resample the exam to orthogonal axes first (dcm2niix does it on conversion)"
            )
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __repr__(self) -> str:
        depth, height, width = self.shape
        x, y, z = self.spacing
        return (
            f"Grid({width} x {height} x {depth} voxels of {x:.4g} x {y:.4g} x {z:.4g} mm, axes {self.axes})"
        )

    @property
    def axes(self) -> str:
        """Where the array's axes x, y, z lead, to the nearest axis of the patient: ``"RAS"``, ``"LPS"``, …"""
        _, order, flips = self.canonical()
        # The canonical axis z, y or x, and the array's axis (z, y, x) that it is.
        letters = [""] * 3
        for axis, (towards, away) in enumerate((("S", "I"), ("A", "P"), ("R", "L"))):
            letters[order[axis]] = away if axis in flips else towards
        return "".join(reversed(letters))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and bool(np.array_equal(self.affine, other.affine))

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @classmethod
    def from_spacing(
        cls, shape: Shape, spacing: ArrayLike = (1.0, 1.0, 1.0), origin: ArrayLike = (0.0, 0.0, 0.0)
    ) -> Grid:
        """An axis-aligned RAS+ grid; ``spacing`` and ``origin`` (the centre of the first voxel) are x, y, z in mm."""
        affine = np.diag([*np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3), 1.0])
        affine[:3, 3] = origin
        return cls(shape, affine)

    # -- measures ---------------------------------------------------------------------------------

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (x, y, z) in mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))  # type: ignore[return-value]

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in cubic millimetres."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def extent(self) -> tuple[float, float, float]:
        """Size of the field of view (x, y, z) in mm, between the outer faces of the voxels."""
        return tuple(s * n for s, n in zip(self.spacing, reversed(self.shape), strict=True))  # type: ignore

    def corners(self) -> NDArray[np.float64]:
        """World positions ``[8, 3]`` in mm of the centres of the eight corner voxels."""
        last = np.array([n - 1 for n in reversed(self.shape)])
        return self.voxel_to_world(np.array(list(np.ndindex(2, 2, 2))) * last)

    def places(self) -> NDArray[np.float64]:
        """World positions ``[D, H, W, 3]`` (x, y, z) in mm of the centres of all voxels."""
        z, y, x = np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij")
        return self.voxel_to_world(np.stack([x, y, z], axis=-1))

    def matches(self, other: Grid, tolerance: float = 0.1) -> bool:
        """Whether the shapes are equal and every voxel is within ``tolerance`` voxels of its counterpart."""
        if self.shape != other.shape:
            return False
        return bool(
            np.abs(self.world_to_voxel(other.corners()) - self.world_to_voxel(self.corners())).max()
            < tolerance
        )

    # -- point maps -------------------------------------------------------------------------------

    @property
    def normalized_affine(self) -> NDArray[np.float64]:
        """4x4 matrix from normalised coordinates (x, y, z) to millimetres."""
        to_voxel = np.diag([*_halves(self.shape), 1.0])
        to_voxel[:3, 3] = _centre(self.shape)
        return self.affine @ to_voxel

    def voxel_to_world(self, points: ArrayLike) -> NDArray[np.float64]:
        """Convert voxel indices ``[..., 3]`` (x, y, z), which may be fractional, to mm."""
        return _apply(self.affine, points)

    def world_to_voxel(self, points: ArrayLike) -> NDArray[np.float64]:
        """Convert mm ``[..., 3]`` to fractional voxel indices (x, y, z)."""
        return _apply(np.linalg.inv(self.affine), points)

    def normalized_to_world(self, coords: ArrayLike) -> NDArray[np.float64]:
        """Convert normalised coordinates ``[..., 3]`` (x, y, z) to mm."""
        return _apply(self.normalized_affine, coords)

    def world_to_normalized(self, points: ArrayLike) -> NDArray[np.float64]:
        """Convert mm ``[..., 3]`` to normalised coordinates (x, y, z), which are beyond ±1 outside the grid."""
        return _apply(np.linalg.inv(self.normalized_affine), points)

    def theta_from(self, target: Grid) -> NDArray[np.float64]:
        """The ``[3, 4]`` matrix from the normalised coordinates of ``target`` to those of this grid.

        ``ops.affine_resample(volume_on_self, theta, target.shape)`` resamples a volume on this grid to ``target``.
        """
        return (np.linalg.inv(self.normalized_affine) @ target.normalized_affine)[:3]

    def identity(self) -> NDArray[np.float32]:
        """Normalised coordinates ``[3, D, H, W]`` (channels x, y, z) of the voxel centres."""
        axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in self.shape]
        return np.stack(np.meshgrid(*axes, indexing="ij")[::-1]).astype(np.float32)

    # -- derived grids ----------------------------------------------------------------------------

    def resized(self, shape: int | Sequence[int]) -> Grid:
        """The grid after a corner-aligned resize, which keeps the world position of every normalised coordinate."""
        shape = _triple(shape, "shape")
        if min(shape) < 1:
            raise DataError(
                f"cannot resize a grid to shape {shape} (z, y, x); every axis needs at least one voxel"
            )
        from_new = np.diag([*1 / _halves(shape), 1.0])
        from_new[:3, 3] = -_centre(shape) / _halves(shape)
        return Grid(shape, self.normalized_affine @ from_new)

    def pooled(self, kernel: int | Sequence[int]) -> Grid:
        """The grid after average pooling with stride = ``kernel`` (an integer or (z, y, x)).

        Incomplete blocks at the end of an axis are dropped. A pooled voxel is at the centre of its block, so
        that the first voxel moves inward by (k - 1) / 2 input voxels.
        """
        kernel = _triple(kernel, "kernel")
        if min(kernel) < 1 or any(k > n for k, n in zip(kernel, self.shape, strict=True)):
            raise DataError(f"cannot pool a grid of shape {self.shape} by {kernel} (z, y, x)")
        k = np.array(kernel[::-1], dtype=np.float64)
        from_new = np.diag([*k, 1.0])
        from_new[:3, 3] = (k - 1) / 2
        d, h, w = (n // s for n, s in zip(self.shape, kernel, strict=True))
        return Grid((d, h, w), self.affine @ from_new)

    def divided(self, kernel: int | Sequence[int]) -> Grid:
        """The finer grid that :meth:`pooled` by ``kernel`` (an integer or (z, y, x)) makes into this one."""
        kernel = _triple(kernel, "kernel")
        if min(kernel) < 1:
            raise DataError(f"cannot divide the voxels of a grid by {kernel} (z, y, x)")
        k = np.array(kernel[::-1], dtype=np.float64)
        from_new = np.diag([*1 / k, 1.0])
        from_new[:3, 3] = -(k - 1) / 2 / k
        d, h, w = (n * s for n, s in zip(self.shape, kernel, strict=True))
        return Grid((d, h, w), self.affine @ from_new)

    def covers(self, points: ArrayLike, margin: float = 0.5) -> NDArray[np.bool_]:
        """Bool ``[...]``: which places ``[..., 3]`` in mm lie between the outer faces of the voxels.

        ``margin`` is how far beyond the outermost centres the grid reaches, in voxels.
        """
        index = self.world_to_voxel(points)
        last = np.array(self.shape[::-1]) - 1
        held: NDArray[np.bool_] = (index >= -margin) & (index <= last + margin)
        return np.logical_and.reduce(held, axis=-1)

    def cropped(self, start: Sequence[int], shape: Sequence[int]) -> Grid:
        """The grid of ``array[z0:z0+d, y0:y0+h, x0:x0+w]``; ``start`` may be negative (padding)."""
        from_new = np.eye(4)
        from_new[:3, 3] = _triple(start, "start")[::-1]
        return Grid(_triple(shape, "shape"), self.affine @ from_new)

    def canonical(self) -> tuple[Grid, Shape, tuple[int, ...]]:
        """The closest RAS+ grid that permuting and flipping the axes can give.

        Returns ``(grid, axes, flips)``: ``grid`` is the grid of ``np.flip(array.transpose(axes), flips)``. Its
        voxel axes x, y, z run to the right, to the front and to the head, as closely as an oblique grid allows.
        """
        cosines = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        # source[w] is the old voxel axis that best follows world axis w. Rounding makes the choice at 45 degrees
        # reproducible.
        source = max(
            permutations(range(3)), key=lambda p: round(sum(abs(cosines[w, p[w]]) for w in range(3)), 6)
        )
        from_new = np.zeros((4, 4))
        from_new[3, 3] = 1
        flipped = []
        for world, old in enumerate(source):
            negative = cosines[world, old] < 0
            from_new[old, world] = -1 if negative else 1
            from_new[old, 3] = self.shape[2 - old] - 1 if negative else 0
            if negative:
                flipped.append(2 - world)
        axes = (2 - source[2], 2 - source[1], 2 - source[0])
        shape = (self.shape[axes[0]], self.shape[axes[1]], self.shape[axes[2]])
        return Grid(shape, self.affine @ from_new), axes, tuple(sorted(flipped))


def _apply(matrix: NDArray, points: ArrayLike) -> NDArray[np.float64]:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim == 0 or points.shape[-1] != 3:
        raise ValueError(f"Grid: points must have shape [..., 3] (x, y, z), got {points.shape}")
    return points @ matrix[:3, :3].T + matrix[:3, 3]
