"""What is marked in an exam by hand or found there: points, lines and boxes, in RAS+ millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.space.box import Box


@dataclass(frozen=True, eq=False)
class Point:
    """A named place.

    Attributes:
        name: what it is called.
        position: float64 ``[3]`` (x, y, z), RAS+ millimetres; None where the place is not in the exam.
        note: a remark, such as why it is not in the exam.

    Raises :class:`~deepatlas.errors.DataError` if the position is not three finite numbers.
    """

    name: str
    position: NDArray[np.float64] | None
    note: str = ""

    def __post_init__(self) -> None:
        if self.position is not None:
            object.__setattr__(self, "position", _places(self.position, (3,), f"point {self.name!r}"))


@dataclass(frozen=True, eq=False)
class Polyline:
    """A named line through points.

    Attributes:
        name: what it is called.
        points: float64 ``[N, 3]`` (x, y, z), RAS+ millimetres, at least two.
        closed: whether the last point leads back to the first.

    Raises :class:`~deepatlas.errors.DataError` if the points are fewer than two, or not finite.
    """

    name: str
    points: NDArray[np.float64]
    closed: bool = False

    def __post_init__(self) -> None:
        points = np.asarray(self.points, dtype=np.float64)
        what = f"line {self.name!r}"
        if points.ndim != 2 or len(points) < 2:
            raise DataError(f"{what}: needs at least two points [N, 3] (RAS mm), got shape {points.shape}")
        object.__setattr__(self, "points", _places(points, (len(points), 3), what))


@dataclass(frozen=True)
class Markups:
    """What one file of markups holds, or one exam: points, lines and boxes, each in the order of the file."""

    points: tuple[Point, ...] = ()
    lines: tuple[Polyline, ...] = ()
    boxes: tuple[Box, ...] = ()

    def __len__(self) -> int:
        return len(self.points) + len(self.lines) + len(self.boxes)


def _places(values: object, shape: tuple[int, ...], what: str) -> NDArray[np.float64]:
    found = np.array(values, dtype=np.float64)
    if found.shape != shape or not np.isfinite(found).all():
        raise DataError(f"{what}: its position must be finite numbers of shape {shape} (RAS mm)")
    found.setflags(write=False)
    return found
