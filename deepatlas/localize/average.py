"""Places that were marked in several exams, brought to one: robust means in the coordinates of the atlas."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.space.box import Box
from deepatlas.space.fit_affine import tukey
from deepatlas.space.markup import Polyline

_ROUNDS = 20


def robust_mean(values: NDArray[np.float64], scale: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The mean of ``values [E, M, 3]`` over the exams, in which exams that lie far from the others count less.

    Args:
        values: M places in each of E exams, in coordinates.
        scale: ``[3]``, millimetres per unit of the coordinates, in which distances are measured.

    Returns:
        The mean ``[M, 3]``, and the median distance of the exams from it in millimetres.
    """
    mean = values.mean(axis=0) if len(values) < 3 else np.median(values, axis=0)
    base = np.ones(len(values))

    def distance() -> NDArray[np.float64]:
        away: NDArray[np.float64] = np.linalg.norm((values - mean) * scale, axis=2).max(axis=1)
        return away

    # Of two exams nobody can say which is the one that errs.
    for _ in range(_ROUNDS if len(values) > 2 else 0):
        weights = tukey(distance(), base)
        if weights.sum() <= 0:
            break
        new = np.tensordot(weights / weights.sum(), values, axes=1)
        done = np.abs(new - mean).max() < 1e-9
        mean = new
        if done:
            break
    return mean, float(np.median(distance()))


def mean_line(name: str, lines: Sequence[Polyline], scale: NDArray[np.float64]) -> tuple[Polyline, float]:
    """The mean of a line that was drawn in several exams, and the spread in millimetres.

    Lines with as many points as each other are averaged point by point, others after each was divided evenly by its
    length. One that runs the other way is turned round, and a closed one begins at the point nearest to the first's.

    Raises:
        DataError: some are closed and others are not.
    """
    closed = lines[0].closed
    if any(line.closed != closed for line in lines):
        raise DataError(f"line {name!r}: is closed in some exams and open in others; draw it alike")
    count = max(len(line.points) for line in lines)
    even = any(len(line.points) != count for line in lines)
    drawn = [_even(line.points * scale, count, closed) / scale if even else line.points for line in lines]
    first = drawn[0]
    turned = [first, *(_as_it_runs(first, points, closed, scale) for points in drawn[1:])]
    mean, spread = robust_mean(np.stack(turned), scale)
    return Polyline(name, mean, closed), spread


def mean_box(name: str, boxes: Sequence[Box], scale: NDArray[np.float64]) -> tuple[Box, float]:
    """The mean of a box that was drawn in several exams, and the spread of its corners in millimetres.

    The axes of the boxes are put in the order and the direction of those of the first.
    """
    first = boxes[0]
    aligned = [first, *(_like(first, box) for box in boxes[1:])]
    corners = np.stack([box.corners() for box in aligned])
    mean, spread = robust_mean(corners, scale)
    # The corners of parallelepipeds average to those of one.
    own = Box(name, np.zeros(3), np.eye(3)).corners()
    axes = np.stack([(mean * own[:, a, None]).mean(axis=0) for a in range(3)], axis=1)
    return Box(name, mean.mean(axis=0), axes), spread


def _far(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.abs(one - other).sum())


def _as_it_runs(
    first: NDArray[np.float64], points: NDArray[np.float64], closed: bool, scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The same line in the direction, and a closed one from the point, in which it is nearest to ``first``."""
    starts = range(len(points)) if closed else (0,)
    ways = (np.roll(way, -start, axis=0) for way in (points, points[::-1]) for start in starts)
    return min(ways, key=lambda way: float(np.square((way - first) * scale).sum()))


def _even(points: NDArray[np.float64], count: int, closed: bool) -> NDArray[np.float64]:
    """A line as ``count`` points at equal distances along it."""
    path = np.concatenate([points, points[:1]]) if closed else points
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    at = np.linspace(0, along[-1], count, endpoint=not closed)
    return np.stack([np.interp(at, along, path[:, axis]) for axis in range(3)], axis=1)


def _like(first: Box, box: Box) -> Box:
    """The same box with its axes in the order and the direction that resemble those of ``first`` most."""
    best, near = box, np.inf
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            axes = box.axes[:, order] * np.array(signs)
            away = _far(axes, first.axes)
            if away < near and np.linalg.det(axes) > 0:
                best, near = Box(box.name, box.centre, axes), away
    return best
