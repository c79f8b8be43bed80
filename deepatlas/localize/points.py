"""Find points of one exam in another through the coordinates that both share (section 2.2).

Points are RAS+ millimetres (x to the right, y to the front, z to the head), as NIfTI affines give them. Tools that use
LPS (ITK, DICOM) differ in the signs of x and y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from deepatlas.errors import DeepAtlasError
from deepatlas.localize.invert import invert
from deepatlas.model.engine import Engine
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.fit import Fit
from deepatlas.model.known import KnownExam, known_exam
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

# For every point whether something keeps it from being found, and what.
_Obstacles = list[tuple[NDArray[np.bool_], str]]


@dataclass(frozen=True, repr=False)
class Located:
    """The points of one exam in another.

    Attributes:
        points: ``[N, 3]``, RAS millimetres in the target: the best guess where a point was not found, and nan where the
            given point lies outside the source exam.
        inversion_mm: ``[N]``, how far the target's coordinates at the point are from those asked for, in millimetres.
            This is the error of the inversion alone. The coordinates themselves have errors of several millimetres,
            which it does not show.
        found: ``[N]``, whether the model knows both exams, the given point lies in the body of the source, and the
            point lies in the body and the field of view of the target, at the coordinates asked for.
        reason: ``[N]``, why a point was not found; empty where it was.
        fit: how well the model knows the target.
        error_mm: ``[N]``, the expected error of the point in mm, where that was asked for; nan where nobody can tell.
        bound_mm: ``[N]``, the error that nine of ten such points stay below.
    """

    points: NDArray[np.float64]
    inversion_mm: NDArray[np.float64]
    found: NDArray[np.bool_]
    reason: list[str]
    fit: Fit
    error_mm: NDArray[np.float64] | None = None
    bound_mm: NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        return f"Located({int(self.found.sum())} of {len(self.found)} points found, {self.fit!r})"


@dataclass(frozen=True, eq=False)
class Wanted:
    """Coordinates that are looked for.

    Attributes:
        coords: ``[N, 3]``; nan where there are none.
        missing: ``[N]``, why a point cannot be found whatever the target is; empty where it can.
    """

    coords: NDArray[np.float64]
    missing: list[str]


def locate(
    model: Engine, points_mm: ArrayLike, source: Volume, target: Volume, *, origin: ExamMap | None = None
) -> Located:
    """Find points of one exam in another (section 2.2).

    The coordinate c of a point is read from the source by linear interpolation. Then c_target(u) = c is solved (see
    :func:`~deepatlas.localize.invert.invert`).

    Args:
        model: a trained model.
        points_mm: ``[N, 3]`` in RAS millimetres of ``source``.
        source: the exam that the points are in, in Hounsfield units.
        target: the exam in which they are to be found, in Hounsfield units.
        origin: ``model.map_exam(source)``, for callers that look into several targets.

    Returns:
        The points in RAS millimetres of ``target``, and which of them were found.

    Raises:
        DeepAtlasError: the points are not ``[N, 3]`` or not finite.
    """
    points = checked_points(points_mm)
    known = KnownExam.of(origin or model.map_exam(source), source.grid, source.name)
    return look_for(known_exam(model, target), coordinates_of(known, points))


def checked_points(points_mm: ArrayLike) -> NDArray[np.float64]:
    """Points as float64 ``[N, 3]``; :class:`~deepatlas.errors.DeepAtlasError` for any other shape or a nan."""
    points = np.asarray(points_mm, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise DeepAtlasError(f"locate: points must be finite and [N, 3] (RAS mm), got shape {points.shape}")
    return points


def coordinates_of(source: KnownExam, points: NDArray[np.float64]) -> Wanted:
    """The coordinates of points ``[N, 3]`` of an exam in RAS millimetres, and why some of them have none."""
    obstacles: _Obstacles = [
        (~source.shows(points), "outside the source exam"),
        (np.full(len(points), source.fit.known is False), "the model does not know the source exam"),
        (~near(source.body, source.field.grid, points), "outside the body in the source exam"),
    ]
    coords = source.field.at(points)
    coords[~source.shows(points)] = math.nan
    return Wanted(coords, _first(obstacles, len(points)))


def look_for(target: KnownExam, wanted: Wanted) -> Located:
    """Find the places of an exam that have the coordinates that are looked for."""
    given: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(wanted.coords), axis=1)
    count = len(given)
    located, residual = np.full((count, 3), math.nan), np.full(count, math.nan)
    located[given], residual[given] = invert(target.field, target.body, wanted.coords[given])
    places = np.where(given[:, None], located, 0)
    obstacles: _Obstacles = [
        (np.array([bool(why) for why in wanted.missing], dtype=bool), ""),
        (np.full(count, target.fit.known is False), "the model does not know the target exam"),
        (~target.field.grid.covers(places), "outside the field of view of the target exam"),
        (~target.grid.covers(places), "outside the target exam"),
        (
            np.logical_not(np.less(residual, max(target.field.grid.spacing))),
            "no place of the target exam has these coordinates",
        ),
        (~near(target.body, target.field.grid, places), "outside the body in the target exam"),
    ]
    reason = [w or r for w, r in zip(wanted.missing, _first(obstacles, count), strict=True)]
    return Located(located, residual, np.array([not why for why in reason], dtype=bool), reason, target.fit)


def near(body: NDArray[np.bool_], grid: Grid, places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Bool ``[N]``: which places ``[N, 3]`` in RAS millimetres are at most a voxel away from a mask on a grid."""
    nearby = ndimage.binary_dilation(body)
    last = np.array(body.shape[::-1]) - 1
    x, y, z = np.clip(np.rint(grid.world_to_voxel(places)), 0, last).astype(int).T
    result: NDArray[np.bool_] = nearby[z, y, x]
    return result


def _first(obstacles: _Obstacles, count: int) -> list[str]:
    """The first reason that holds for each point."""
    return [next((why for bad, why in obstacles if bad[i]), "") for i in range(count)]
