"""The drawing tools of the phantom: implicit shapes in mm, and a voxel canvas on which they are painted.

A shape is a bounding box and a function of open coordinate arrays (x, y, z). The function is negative inside and
approximates the distance in mm from the surface, so that shells and margins need only a subtraction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator

from deepatlas.space.grid import Grid

Array = NDArray[np.float32]
Distance = Callable[[Array, Array, Array], Array]
FAR = np.float32(1e3)


@dataclass(frozen=True)
class Shape:
    """``distance(x, y, z)`` in mm, negative inside; it is valid in the box from ``low`` to ``high`` (x, y, z)."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    distance: Distance

    def __and__(self, other: Shape) -> Shape:
        return Shape(
            np.maximum(self.low, other.low),
            np.minimum(self.high, other.high),
            lambda x, y, z: np.maximum(self.distance(x, y, z), other.distance(x, y, z)),
        )

    def __sub__(self, other: Shape) -> Shape:
        return Shape(
            self.low, self.high, lambda x, y, z: np.maximum(self.distance(x, y, z), -other.distance(x, y, z))
        )

    def grown(self, mm: float) -> Shape:
        """The shape with its surface moved outward by ``mm`` (inward when negative)."""
        return Shape(self.low - mm, self.high + mm, lambda x, y, z: self.distance(x, y, z) - np.float32(mm))

    def mirrored(self) -> Shape:
        """The shape reflected to the other side of the body (x to -x)."""
        low, high = self.low.copy(), self.high.copy()
        low[0], high[0] = -self.high[0], -self.low[0]
        return Shape(low, high, lambda x, y, z: self.distance(-x, y, z))


def union(*shapes: Shape, blend: float = 0.0) -> Shape:
    """The union of shapes. With ``blend`` > 0 (in mm) the transitions between them are smooth."""

    def distance(x: Array, y: Array, z: Array) -> Array:
        total = shapes[0].distance(x, y, z)
        for shape in shapes[1:]:
            other = shape.distance(x, y, z)
            if blend > 0:
                h = np.clip(0.5 + (other - total) / np.float32(2 * blend), 0, 1)
                total = other + (total - other) * h - np.float32(blend) * h * (1 - h)
            else:
                total = np.minimum(total, other)
        return total

    pad = blend / 4
    return Shape(
        np.min([s.low for s in shapes], axis=0) - pad,
        np.max([s.high for s in shapes], axis=0) + pad,
        distance,
    )


def ellipsoid(
    centre: ArrayLike,
    radii: ArrayLike,
    *,
    yaw: float = 0,
    pitch: float = 0,
    roll: float = 0,
    power: float = 2,
) -> Shape:
    """An ellipsoid with semi-axes ``radii`` in mm, rotated by ``yaw``, ``pitch``, ``roll`` degrees about z, x, y.

    A ``power`` above 2 makes it more similar to a box.
    """
    middle, semi = np.asarray(centre, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    turn = rotation(pitch, roll, yaw)
    m = (turn.T / semi[:, None]).astype(np.float32)
    reach = np.abs(turn) @ semi if power > 2 else np.sqrt((turn**2) @ semi**2)
    c = middle.astype(np.float32)
    inverse = (1 / semi).astype(np.float32)

    def distance(x: Array, y: Array, z: Array) -> Array:
        x, y, z = x - c[0], y - c[1], z - c[2]
        parts = [row[0] * x + row[1] * y + row[2] * z for row in m]
        if power != 2:
            level = sum(np.abs(p) ** np.float32(power) for p in parts) ** np.float32(1 / power)
            return (level - 1) * np.float32(semi.min())
        level = np.sqrt(sum(p * p for p in parts))
        slope = np.sqrt(sum((p * i) ** 2 for p, i in zip(parts, inverse, strict=True))) + np.float32(1e-6)
        return level * (level - 1) / slope

    return Shape(middle - reach, middle + reach, distance)


def rotation(about_x: float, about_y: float, about_z: float) -> NDArray[np.float64]:
    """The 3x3 matrix of a rotation about x, then y, then z, in degrees."""
    (cx, cy, cz), (sx, sy, sz) = (
        np.cos(np.deg2rad([about_x, about_y, about_z])),
        np.sin(np.deg2rad([about_x, about_y, about_z])),
    )
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return rz @ ry @ rx


def tube(points: ArrayLike, radius: float | Sequence[float], *, steps: int = 12) -> Shape:
    """A tube along a spline through ``points`` [n, 3], with one ``radius`` in mm or one for each point.

    It is the union of ``steps`` capsules with linearly varying radius.
    """
    nodes = np.asarray(points, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(nodes))
    if len(nodes) > 2:
        length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(nodes, axis=0), axis=1))]
        at = np.linspace(0, length[-1], steps + 1)
        nodes, radii = CubicSpline(length, nodes)(at), PchipInterpolator(length, radii)(at)
    segments = [
        (
            a.astype(np.float32),
            (b - a).astype(np.float32),
            np.float32(1 / max(((b - a) ** 2).sum(), 1e-6)),
            ra,
            rb - ra,
        )
        for a, b, ra, rb in zip(nodes[:-1], nodes[1:], radii[:-1], radii[1:], strict=True)
    ]

    def distance(x: Array, y: Array, z: Array) -> Array:
        total: Array | None = None
        for a, d, inverse, r, dr in segments:
            px, py, pz = x - a[0], y - a[1], z - a[2]
            t = np.clip((px * d[0] + py * d[1] + pz * d[2]) * inverse, 0, 1)
            px, py, pz = px - t * d[0], py - t * d[1], pz - t * d[2]
            each = np.sqrt(px * px + py * py + pz * pz) - (np.float32(r) + np.float32(dr) * t)
            total = each if total is None else np.minimum(total, each)
        assert total is not None, "a tube needs at least two points"
        return total

    reach = radii[:, None]
    return Shape((nodes - reach).min(axis=0), (nodes + reach).max(axis=0), distance)


def stack(sections: ArrayLike, *, low: float | None = None, high: float | None = None) -> Shape:
    """A trunk of super-elliptic cross-sections, given as rows ``(z, half width, half depth, centre y, power)``.

    The rows may be in any order of z; between them the values are interpolated by monotone cubics. The trunk has flat
    ends at ``low`` and ``high``, by default the smallest and the largest z.
    """
    rows = np.asarray(sections, dtype=np.float64)
    rows = rows[np.argsort(rows[:, 0])]
    profile = PchipInterpolator(rows[:, 0], rows[:, 1:])
    low, high = rows[0, 0] if low is None else low, rows[-1, 0] if high is None else high

    def distance(x: Array, y: Array, z: Array) -> Array:
        values = profile(np.clip(z, rows[0, 0], rows[-1, 0])).astype(np.float32)
        a, b, c, n = (values[..., i] for i in range(4))
        y = y - c
        level = ((np.abs(x) / a) ** n + (np.abs(y) / b) ** n) ** (1 / n) + np.float32(1e-6)
        # Outside, the distance along the ray from the axis. Inside, where that ray may have no length, the distance
        # to the nearer wall.
        radial = np.sqrt(x * x + y * y) * (1 - 1 / level)
        side = np.where(level < 1, (level - 1) * np.minimum(a, b), radial)
        return np.maximum(side, np.maximum(np.float32(low) - z, z - np.float32(high)))

    widest, deepest = rows[:, 1].max(), rows[:, 2].max()
    return Shape(
        np.array([-widest, rows[:, 3].min() - deepest, low]),
        np.array([widest, rows[:, 3].max() + deepest, high]),
        distance,
    )


def halfspace(normal: ArrayLike, offset: float) -> Shape:
    """The points p with ``normal . p <= offset``."""
    n = np.asarray(normal, dtype=np.float64)
    n, offset = n / np.linalg.norm(n), offset / float(np.linalg.norm(n))
    everywhere = np.full(3, float(FAR))
    return Shape(
        -everywhere,
        everywhere,
        lambda x, y, z: (
            (np.float32(n[0]) * x + np.float32(n[1]) * y + np.float32(n[2]) * z) - np.float32(offset)
        ),
    )


class Canvas:
    """Tissue and structure ids on a grid, painted shape by shape; later shapes cover earlier ones.

    A structure that ``structures`` does not name is painted as tissue without a label.
    """

    def __init__(self, grid: Grid, tissues: Sequence[str], structures: dict[str, int]) -> None:
        self.grid = grid
        self.tissue_ids = {name: i for i, name in enumerate(tissues)}
        self.structures = structures
        self.tissue = np.zeros(grid.shape, dtype=np.uint8)
        self.label = np.zeros(grid.shape, dtype=np.uint8)
        self._spacing = np.array(grid.spacing)
        self._origin = grid.affine[:3, 3]

    def axes(self, box: tuple[slice, slice, slice]) -> tuple[Array, Array, Array]:
        """World coordinates x, y, z in mm of a box of voxels (slices in z, y, x), as open arrays."""
        z, y, x = (
            (self._origin[2 - i] + self._spacing[2 - i] * np.arange(s.start, s.stop)).astype(np.float32)
            for i, s in enumerate(box)
        )
        return x[None, None, :], y[None, :, None], z[:, None, None]

    def box(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[slice, slice, slice]:
        """The voxels (slices in z, y, x) between ``low`` and ``high`` (x, y, z in mm), clipped to the grid."""
        first = np.floor((np.asarray(low) - self._origin) / self._spacing).astype(int)
        last = np.ceil((np.asarray(high) - self._origin) / self._spacing).astype(int) + 1
        return tuple(  # type: ignore[return-value]
            slice(int(np.clip(first[a], 0, n)), int(np.clip(last[a], 0, n)))
            for a, n in zip((2, 1, 0), self.grid.shape, strict=True)
        )

    def measure(self, shape: Shape) -> tuple[tuple[slice, slice, slice], Array]:
        """The voxels of the bounding box of a shape, and the distances in mm from its surface there."""
        box = self.box(shape.low, shape.high)
        size = tuple(s.stop - s.start for s in box)
        return box, np.broadcast_to(shape.distance(*self.axes(box)).astype(np.float32, copy=False), size)

    def paint(
        self,
        shape: Shape,
        *layers: str | tuple[float, str],
        label: str | None = None,
        keep_label: bool = False,
        over: Sequence[str] = (),
        inside: str | None = None,
        free: bool = False,
    ) -> None:
        """Fill ``shape`` with tissue.

        Args:
            shape: the voxels to paint.
            layers: the tissue, followed by ``(depth in mm, tissue)`` for each deeper layer.
            label: the structure of these voxels; None clears their label.
            keep_label: leave the labels unchanged instead.
            over: paint only voxels of these tissues, if any are given.
            inside: paint only voxels of this structure, if one is given.
            free: paint only voxels without a label.
        """
        box, distance = self.measure(shape)
        mask = distance < 0
        tissue, labels = self.tissue[box], self.label[box]
        if over:
            mask &= np.isin(tissue, [self.tissue_ids[name] for name in over])
        if inside is not None:
            mask &= labels == self.structures[inside]
        if free:
            mask &= labels == 0
        for layer in layers:
            depth, name = (0.0, layer) if isinstance(layer, str) else layer
            tissue[mask if depth == 0 else mask & (distance < -depth)] = self.tissue_ids[name]
        if not keep_label:
            labels[mask] = 0 if label is None else self.structures.get(label, 0)
