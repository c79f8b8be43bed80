"""What a model of coordinates says about one exam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepatlas.model.field import CoordinateField, Piece
from deepatlas.model.fit import Fit
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume


@dataclass(frozen=True)
class ExamMap:
    """The coordinates of one exam, and what they were made from.

    Attributes:
        coords: ``[1, 3, S, S, S]``, float32 on the model's device, in [-1, 1].
        grid: the grid of these S^3 voxels: cropped as in training, along the axes of the patient, which are oblique
            where the patient lies turned.
        hu: the exam in Hounsfield units on that grid, or on the scale of :mod:`deepatlas.space.intensity`.
        body: ``[S, S, S]``, the foreground of the exam (paper 5.5.3).
        fit: how well the model knows the exam.
        pieces: what the networks of regions say (section 5.2.4); empty where there are none.
        image: the whole exam with values as the network takes them, on its own grid; None where it was not kept.
    """

    coords: Tensor
    grid: Grid
    hu: Volume
    body: NDArray[np.bool_]
    fit: Fit
    pieces: tuple[Piece, ...] = ()
    image: Volume | None = None

    @property
    def field(self) -> CoordinateField:
        """The coordinates as one map, which can be sampled on any grid and at any place."""
        return CoordinateField(self.coords, self.grid, self.pieces)
