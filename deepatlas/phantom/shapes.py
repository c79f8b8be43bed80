"""Implicit shapes in millimetres and a voxel canvas to paint them on: the drawing kit of the phantom.

A shape is a bounding box and a function of open coordinate arrays (x, y, z) that is negative inside and close
to the distance in mm from the surface, so that shells, margins and smooth unions are one subtraction away.
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
    """``distance(x, y, z)`` in mm, negative inside, holds within the box ``low``..``high`` (x, y, z)."""

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
    """Union of shapes; with ``blend`` mm the seams are filled smoothly."""

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
    """Ellipsoid with semi-axes ``radii`` in mm; ``yaw``, ``pitch``, ``roll`` turn it about z, x, y (degrees).

    ``power`` above 2 squares it off, towards a box.
    """
    centre, radii = np.asarray(centre, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    turn = rotation(pitch, roll, yaw)
    m = (turn.T / radii[:, None]).astype(np.float32)
    reach = np.abs(turn) @ radii if power > 2 else np.sqrt((turn**2) @ radii**2)
    c = centre.astype(np.float32)
    inverse = (1 / radii).astype(np.float32)

    def distance(x: Array, y: Array, z: Array) -> Array:
        x, y, z = x - c[0], y - c[1], z - c[2]
        parts = [row[0] * x + row[1] * y + row[2] * z for row in m]
        if power != 2:
            level = sum(np.abs(p) ** np.float32(power) for p in parts) ** np.float32(1 / power)
            return (level - 1) * np.float32(radii.min())
        level = np.sqrt(sum(p * p for p in parts))
        slope = np.sqrt(sum((p * i) ** 2 for p, i in zip(parts, inverse, strict=True))) + np.float32(1e-6)
        return level * (level - 1) / slope

    return Shape(centre - reach, centre + reach, distance)


def rotation(about_x: float, about_y: float, about_z: float) -> NDArray[np.float64]:
    """3x3 rotation: about x, then y, then z, in degrees."""
    (cx, cy, cz), (sx, sy, sz) = (
        np.cos(np.deg2rad([about_x, about_y, about_z])),
        np.sin(np.deg2rad([about_x, about_y, about_z])),
    )
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return rz @ ry @ rx


def tube(
    points: ArrayLike, radius: float | Sequence[float], *, steps: int = 12, smooth: bool = True
) -> Shape:
    """Tube along a spline through ``points`` [n, 3], its ``radius`` in mm given once or at each point.

    It is the union of ``steps`` round-ended capsules with linearly varying radius; ``smooth=False`` joins the
    points with straight pieces instead.
    """
    points = np.asarray(points, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(points))
    if smooth and len(points) > 2:
        length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
        at = np.linspace(0, length[-1], steps + 1)
        points, radii = CubicSpline(length, points)(at), PchipInterpolator(length, radii)(at)
    segments = [
        (
            a.astype(np.float32),
            (b - a).astype(np.float32),
            np.float32(1 / max(((b - a) ** 2).sum(), 1e-6)),
            ra,
            rb - ra,
        )
        for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)
    ]

    def distance(x: Array, y: Array, z: Array) -> Array:
        total = None
        for a, d, inverse, r, dr in segments:
            px, py, pz = x - a[0], y - a[1], z - a[2]
            t = np.clip((px * d[0] + py * d[1] + pz * d[2]) * inverse, 0, 1)
            px, py, pz = px - t * d[0], py - t * d[1], pz - t * d[2]
            each = np.sqrt(px * px + py * py + pz * pz) - (np.float32(r) + np.float32(dr) * t)
            total = each if total is None else np.minimum(total, each)
        return total

    reach = radii[:, None]
    return Shape((points - reach).min(axis=0), (points + reach).max(axis=0), distance)


def stack(sections: ArrayLike, *, low: float | None = None, high: float | None = None) -> Shape:
    """A trunk of super-elliptic cross-sections, from rows ``(z, half width, half depth, centre y, power)``.

    Rows run upward or downward in z; values between them are monotone cubic. It ends flat at ``low`` and
    ``high`` (the first and last z by default).
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
        # Along the ray from the axis outside; inside, where that ray may have no length, to the nearer wall.
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
    """The points with ``normal . p <= offset``."""
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
    """Tissue and structure ids on a grid, painted shape by shape: a later shape covers an earlier one."""

    def __init__(self, grid: Grid, tissues: Sequence[str], structures: dict[str, int]) -> None:
        self.grid = grid
        self.tissue_ids = {name: i for i, name in enumerate(tissues)}
        self.structures = structures
        self.tissue = np.zeros(grid.shape, dtype=np.uint8)
        self.label = np.zeros(grid.shape, dtype=np.uint8)
        self._spacing = np.array(grid.spacing)
        self._origin = grid.affine[:3, 3]

    def axes(self, box: tuple[slice, slice, slice]) -> tuple[Array, Array, Array]:
        """Open world coordinates x, y, z in mm of a box of voxels (slices in z, y, x)."""
        z, y, x = (
            (self._origin[2 - i] + self._spacing[2 - i] * np.arange(s.start, s.stop)).astype(np.float32)
            for i, s in enumerate(box)
        )
        return x[None, None, :], y[None, :, None], z[:, None, None]

    def box(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[slice, slice, slice]:
        """The voxels (slices in z, y, x) within ``low``..``high`` mm, clipped to the grid."""
        first = np.floor((np.asarray(low) - self._origin) / self._spacing).astype(int)
        last = np.ceil((np.asarray(high) - self._origin) / self._spacing).astype(int) + 1
        return tuple(  # type: ignore[return-value]
            slice(int(np.clip(first[a], 0, n)), int(np.clip(last[a], 0, n)))
            for a, n in zip((2, 1, 0), self.grid.shape, strict=True)
        )

    def measure(self, shape: Shape) -> tuple[tuple[slice, slice, slice], Array]:
        """The shape's box and its distances in mm there."""
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
    ) -> None:
        """Fill ``shape`` with tissue.

        ``layers`` is a tissue, followed by ``(depth in mm, tissue)`` for what lies deeper. ``label`` names
        the structure (none: the label is cleared, unless ``keep_label``). ``over`` restricts the brush to
        voxels of those tissues, ``inside`` to voxels of that structure.
        """
        box, distance = self.measure(shape)
        mask = distance < 0
        tissue, labels = self.tissue[box], self.label[box]
        if over:
            mask &= np.isin(tissue, [self.tissue_ids[name] for name in over])
        if inside is not None:
            mask &= labels == self.structures[inside]
        for layer in layers:
            depth, name = (0.0, layer) if isinstance(layer, str) else layer
            tissue[mask if depth == 0 else mask & (distance < -depth)] = self.tissue_ids[name]
        if not keep_label:
            labels[mask] = 0 if label is None else self.structures[label]
