"""Boxes between the coordinates of the atlas and the millimetres of an exam, by an affine map (section 5.2.4).

The map between the two is bent. Over the places of one box it is replaced by the affine map that fits them best, by
reweighted least squares, so that a few places whose coordinates are wrong do not turn or stretch the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.errors import DataError
from deepatlas.model.field import CoordinateField
from deepatlas.space.box import Box
from deepatlas.space.fit_affine import fit_affine
from deepatlas.space.grid import Grid

# The places at which the exam is read along the longest side of the region that holds a box, and along every side.
_MOST, _LEAST = 40, 8
# The cells of a box along each edge. Every cell counts once, however many places of the exam it has.
_CELLS = 8
# A box that the exam shows in part is fitted to places around it as well: so many times its size at most.
_GROWTH = 1.0, 1.5, 2.0
# How often the region around a box is read more finely; the second time finds a box between the network's voxels.
_ZOOMS = 2
# The share of the length of every edge that the places must cover, so that the map does not hang on a thin layer.
_SPAN = 0.3
# The fewest places for a map.
_FEWEST = 30
# The places along each edge at which the coverage is counted, and at which a box of an exam is read.
_LATTICE = 24


@dataclass(frozen=True, eq=False)
class CarriedBox:
    """A box of the atlas in one exam.

    Attributes:
        box_mm: the box in RAS+ millimetres, with the shear of the affine map; ``box_mm.upright()`` takes it away.
        affine: float64 ``[4, 4]``, from coordinates (x, y, z) to RAS+ millimetres.
        coverage: the share of the box, in [0, 1], that lies inside the scan.
        shear_degrees: the shear that ``upright`` takes away.
        residual_mm: the median distance in mm between where the affine map and where the coordinates put a place.
    """

    box_mm: Box
    affine: NDArray[np.float64]
    coverage: float
    shear_degrees: float
    residual_mm: float

    @property
    def upright(self) -> Box:
        """The box with right angles that is nearest to ``box_mm``, in RAS+ millimetres."""
        return self.box_mm.upright()[0]


def carry_box(
    field: CoordinateField, box: Box, scan: Grid | None = None, body: NDArray[np.bool_] | None = None
) -> CarriedBox | None:
    """Carry a box of the atlas onto an exam: from B_T to B_n of section 5.2.4.

    The places of the exam whose coordinates lie in the box are gathered, and the affine map from their coordinates to
    where they are is fitted robustly; every part of the box counts the same. Of a box that the exam shows in part, the
    anatomy around it is used too.

    Args:
        field: the coordinates of the exam.
        box: the box in coordinates of the atlas.
        scan: the exam's own grid, whose outer faces bound the scan; None takes the field of view of the network.
        body: ``[S, S, S]``, the foreground of the exam on ``field.grid``, to which the fit is confined; None uses all
            places.

    Returns:
        The box in the exam; None where no place of the exam has coordinates in the box, or too few for a map.
    """
    scan = scan or field.grid
    places, own = _places(field, box, scan, body)
    reach = np.abs(own).max(axis=1, initial=0)
    if np.count_nonzero(reach <= 1) < _FEWEST:
        return None
    for growth in _GROWTH:
        near = reach <= growth
        low, high = np.percentile(own[near], (2, 98), axis=0)
        if (high - low).min() >= 2 * _SPAN:
            break
    cell = np.floor((own[near] / growth + 1) / 2 * _CELLS).clip(0, _CELLS - 1).astype(np.int64)
    number = np.ravel_multi_index(tuple(cell.T), (_CELLS,) * 3)
    weights = 1 / np.bincount(number, minlength=_CELLS**3)[number]
    try:
        # From the box's own coordinates, which are of the order of one.
        to_mm = fit_affine(own[near], places[near], weights)
        affine = to_mm @ np.linalg.inv(box.matrix)
        box_mm = box.moved(affine)
    except DataError:
        return None
    held = reach <= 1
    miss = np.linalg.norm(own[held] @ to_mm[:3, :3].T + to_mm[:3, 3] - places[held], axis=1)
    return CarriedBox(box_mm, affine, coverage(box_mm, scan), box_mm.upright()[1], float(np.median(miss)))


def box_in_atlas(
    field: CoordinateField, box_mm: Box, scan: Grid | None = None, body: NDArray[np.bool_] | None = None
) -> Box:
    """The box of the atlas that a box of an exam stands for: the inverse of :func:`carry_box`.

    Args:
        field: the coordinates of the exam.
        box_mm: the box in RAS+ millimetres of the exam.
        scan: the exam's own grid; None takes the field of view of the network.
        body: as in :func:`carry_box`. A box that holds next to nothing of the body is fitted to all of its places.

    Raises:
        DataError: less than a tenth of the box lies inside the exam, or its coordinates give no affine map.
    """
    scan = scan or field.grid
    own = _lattice(_LATTICE)
    places = box_mm.place(own)
    shown = scan.covers(places) & field.grid.covers(places)
    if shown.mean() < 0.1:
        raise DataError(
            f"box {box_mm.name}: {100 * shown.mean():.0f} % of it lie inside the exam; a box must lie in its exam "
            "(RAS+ millimetres; tools that use LPS have the signs of x and y exchanged)"
        )
    if body is not None:
        on_body = shown & _held(body, field.grid, places)
        if on_body.mean() >= 0.05:
            shown = on_body
    coords = field.at(places[shown])
    try:
        return Box(box_mm.name, np.zeros(3), np.eye(3)).moved(fit_affine(own[shown], coords))
    except DataError as error:
        raise DataError(f"box {box_mm.name}: its coordinates give no box of the atlas ({error})") from error


def coverage(box_mm: Box, scan: Grid) -> float:
    """The share of a box in RAS+ millimetres that lies between the outer faces of a grid, in [0, 1]."""
    return float(scan.covers(box_mm.place(_lattice(_LATTICE))).mean())


def mm_per_unit(field: CoordinateField, body: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The millimetres that a unit of the coordinates has in an exam, on the average over its body: ``[3]`` (x, y, z).

    Raises :class:`~deepatlas.errors.DataError` if its coordinates give no affine map.
    """
    grid = field.grid
    index = np.argwhere(body if body.any() else np.ones_like(body))[:: max(1, int(body.sum()) // 4096), ::-1]
    places = grid.voxel_to_world(index)
    scale: NDArray[np.float64] = np.linalg.norm(fit_affine(field.at(places), places)[:3, :3], axis=0)
    return scale


def _lattice(count: int) -> NDArray[np.float64]:
    """The centres of ``count``^3 equal cells of [-1, 1]^3, ``[N, 3]``."""
    axis = (np.arange(count) + 0.5) * (2 / count) - 1
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def _places(
    field: CoordinateField, box: Box, scan: Grid, body: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places ``[N, 3]`` in mm of the region that holds a box and its surroundings, with the box's coordinates there."""
    grid = field.grid
    for _ in range(_ZOOMS):
        near = _near(field, box, grid, body)
        if near is None:
            break
        grid = _around(grid, near)
    own = _own(field, box, grid)
    # Nobody asks for places further away.
    some = np.abs(own).max(axis=0) <= _GROWTH[-1]
    places = grid.voxel_to_world(np.argwhere(some)[:, ::-1])
    kept = scan.covers(places)
    if body is not None:
        kept &= _held(body, field.grid, places)
    return places[kept], own[:, some].T[kept]


def _own(field: CoordinateField, box: Box, grid: Grid) -> NDArray[np.float64]:
    """The box's own coordinates ``[3, D, H, W]`` of the voxels of a grid."""
    coords = field.on(grid).double().cpu().numpy()
    offset = coords.reshape(3, -1) - box.centre[:, None]
    found: NDArray[np.float64] = (np.linalg.inv(box.axes) @ offset).reshape(coords.shape)
    return found


def _near(
    field: CoordinateField, box: Box, grid: Grid, body: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    """Bool ``[D, H, W]``: the voxels of the body that lie in a box, or those next to it; None without a body."""
    reach = np.abs(_own(field, box, grid)).max(axis=0)
    inside = reach <= 1
    if body is not None:
        inside[inside] = _held(body, field.grid, grid.voxel_to_world(np.argwhere(inside)[:, ::-1]))
    if inside.any():
        return inside
    # A small box may lie between the voxels.
    if body is not None:
        places = grid.voxel_to_world(np.argwhere(np.ones(grid.shape, dtype=bool))[:, ::-1])
        reach[~_held(body, field.grid, places).reshape(grid.shape)] = np.inf
    nearest = reach.min()
    return reach == nearest if np.isfinite(nearest) else None


def _around(grid: Grid, near: NDArray[np.bool_]) -> Grid:
    """A finer grid of the region that holds a box and half of its size around it.

    Args:
        grid: where ``near`` is known.
        near: ``[D, H, W]``, the voxels that lie in the box.
    """
    region: NDArray[np.bool_] = ndimage.binary_dilation(near, iterations=2)
    parts, count = ndimage.label(region)
    if count > 1:
        # Coordinates that stray in elsewhere must not widen the region.
        sizes = np.bincount(parts[near], minlength=count + 1)
        region = parts == sizes[1:].argmax() + 1
    index = np.argwhere(region)[:, ::-1]
    edge = np.ptp(index, axis=0)
    low = np.maximum(index.min(axis=0) - edge / 2, -0.5)
    high = np.minimum(index.max(axis=0) + edge / 2, np.array(grid.shape[::-1]) - 0.5)
    size = (high - low) * np.array(grid.spacing)
    counts = np.ceil(size / (size.max() / _MOST)).clip(_LEAST, _MOST).astype(int)
    step = (high - low) / counts
    from_new = np.diag([*step, 1.0])
    from_new[:3, 3] = low + step / 2
    return Grid(tuple(counts[::-1].tolist()), grid.affine @ from_new)


def _held(mask: NDArray[np.bool_], grid: Grid, places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Bool ``[N]``: whether the voxel of a mask that is nearest to each place is set."""
    last = np.array(grid.shape[::-1]) - 1
    x, y, z = np.clip(np.rint(grid.world_to_voxel(places)), 0, last).astype(int).T
    held: NDArray[np.bool_] = mask[z, y, x]
    return held
