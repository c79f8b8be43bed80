"""An exam whose coordinates are known: all that finding points, boxes and masks in it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from deepatlas.model.engine import Engine, Exam, read_exam
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.field import CoordinateField
from deepatlas.model.fit import Fit
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume


@dataclass(frozen=True, eq=False)
class KnownExam:
    """The coordinates of one exam, and its image only where it was asked for.

    Attributes:
        name: what messages call the exam.
        grid: the exam's own grid.
        field: its coordinates.
        body: bool ``[S, S, S]``, the foreground of the exam on ``field.grid``.
        fit: how well the model knows the exam.
        image: the exam with values as the network takes them, on ``grid``; None where it was not kept.
    """

    name: str
    grid: Grid
    field: CoordinateField
    body: NDArray[np.bool_]
    fit: Fit
    image: Volume | None = None

    @classmethod
    def of(cls, found: ExamMap, grid: Grid, name: str, *, keep_image: bool = False) -> Self:
        """From what :meth:`Engine.map_exam <deepatlas.model.engine.Engine.map_exam>` gave of an exam on ``grid``."""
        image = found.image if keep_image else None
        return cls(name, grid, found.field, found.body, found.fit, image)

    def shows(self, places: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Bool ``[N]``: which places ``[N, 3]`` in RAS millimetres lie in the exam and in the network's view of it."""
        return self.grid.covers(places) & self.field.grid.covers(places)


def known_exam(model: Engine, exam: Exam, *, keep_image: bool = False) -> KnownExam:
    """One pass of the model over an exam.

    Raises :class:`~deepatlas.errors.DataError` if it cannot be read, or shows no patient.
    """
    volume = read_exam(exam)
    return KnownExam.of(model.map_exam(volume), volume.grid, volume.name, keep_image=keep_image)
