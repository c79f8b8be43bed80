"""A box of the atlas as an oriented standard view of any exam, from its full resolution (section 5.2.4, Fig. 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.values import as_labels
from deepatlas.localize.template.edit import Around, box_around
from deepatlas.localize.template.file import Template
from deepatlas.model.fit import Fit
from deepatlas.model.known import KnownExam
from deepatlas.model.project_box import carry_box, coverage
from deepatlas.names.meet import chosen
from deepatlas.space.box import Box
from deepatlas.space.constants import AIR
from deepatlas.space.grid import Grid
from deepatlas.space.labels import Labels
from deepatlas.space.labels_back import labels_back
from deepatlas.space.resample_to import labels_resampled_to, resample_to
from deepatlas.space.volume import Volume

# The share of a view that must lie inside the scan, unless something else is asked for.
LEAST_COVERAGE = 0.5
# No view has more voxels than this along an axis.
_MOST = 1024


@dataclass(frozen=True)
class CropView:
    """How a box becomes a grid of voxels.

    Attributes:
        shape: the voxels along the box's axes, one number or (z, y, x); None takes as many as the box needs.
        spacing: the size of a voxel in mm, one number or (x, y, z); None takes what fits ``shape`` into the box. With
            both, the view has this shape and spacing around the centre of the box, however large the box is.
        margin: how far the view reaches beyond the box on every side, in mm.

    Raises :class:`~deepatlas.errors.DataError` if neither is given, or a number is out of range.
    """

    shape: int | Sequence[int] | None = 64
    spacing: float | Sequence[float] | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.shape is None and self.spacing is None:
            raise DataError("crop: needs a shape, a spacing, or both")
        shape = None if self.shape is None else np.broadcast_to(np.asarray(self.shape), 3)
        if shape is not None and not (shape.dtype.kind == "i" and shape.min() >= 1 and shape.max() <= _MOST):
            raise DataError(f"crop: shape must be whole numbers from 1 to {_MOST}, got {self.shape!r}")
        spacing = np.broadcast_to(np.asarray(1.0 if self.spacing is None else self.spacing, dtype=float), 3)
        if not (np.isfinite(spacing).all() and (spacing > 0).all()):
            raise DataError(f"crop: spacing must be numbers of mm above 0, got {self.spacing!r}")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise DataError(f"crop: margin must be a number of mm, 0 or more, got {self.margin!r}")

    def of(self, box: Box) -> Box:
        """The box in mm with right angles whose voxels :meth:`grid` has, from a box that may be sheared."""
        upright, _ = box.upright()
        half = upright.edges / 2 + self.margin
        if self.spacing is not None:
            spacing = np.broadcast_to(np.asarray(self.spacing, dtype=np.float64), 3)
            half = np.array(self._counts(half)) * spacing / 2
        return Box(box.name, upright.centre, upright.axes / np.linalg.norm(upright.axes, axis=0) * half)

    def grid(self, box: Box) -> Grid:
        """The grid of the view of a box in mm, which may be sheared."""
        x, y, z = self._counts(box.upright()[0].edges / 2 + self.margin)
        return self.of(box).grid((z, y, x))

    def _counts(self, half: np.ndarray) -> Sequence[int]:
        if self.shape is not None:
            counts: list[int] = np.broadcast_to(np.asarray(self.shape), 3)[::-1].tolist()
            return counts
        needed = np.ceil(2 * half / np.asarray(self.spacing, dtype=np.float64) - 1e-6).clip(min=1).astype(int)
        if needed.max() > _MOST:
            raise DataError(
                f"crop: a box of {np.round(2 * half).tolist()} mm at this spacing has {needed.max()} voxels along an "
                f"axis, more than {_MOST}; give a larger spacing"
            )
        found: list[int] = needed.tolist()
        return found


@dataclass(frozen=True, repr=False)
class Crop:
    """A standard view of one exam.

    Attributes:
        volume: the exam on the grid of the view, float32; what the scan does not show is air, or the lowest value of an
            exam whose values have no unit.
        box: the view as a box in RAS+ millimetres.
        coverage: the share of the view that lies inside the scan.
        residual_mm: the median distance between where the affine map and where the coordinates put a place of the box.
        shear_degrees: the shear of the affine map that the view leaves out.
        fit: how well the model knows the exam.
        exam_grid: the exam's own grid.
        labels: the labels of the exam on the same grid, where they were given.
    """

    volume: Volume
    box: Box
    coverage: float
    residual_mm: float
    shear_degrees: float
    fit: Fit
    exam_grid: Grid
    labels: Labels | None = None

    def __repr__(self) -> str:
        return f"Crop({self.box.name}, {self.volume.grid!r}, {self.coverage:.0%} in the scan, {self.fit!r})"

    def back(self, labels: Volume | NDArray) -> Labels:
        """Labels that were drawn or found on the view, on the exam's own grid (see
        :func:`~deepatlas.space.labels_back.labels_back`).

        Args:
            labels: a label image, or an array ``[D, H, W]`` of ids on the grid of the view.
        """
        if not isinstance(labels, Volume):
            labels = Volume(
                as_labels(np.asarray(labels), Path(f"labels of {self.box.name}")), self.volume.grid
            )
        return labels_back(labels, self.exam_grid)

    def to_dict(self) -> dict[str, Any]:
        """The numbers of results."""
        return {
            "box": self.box.name,
            "coverage": self.coverage,
            "residual_mm": self.residual_mm,
            "shear_degrees": self.shear_degrees,
            "shape": list(self.volume.grid.shape[::-1]),
            "spacing": list(self.volume.grid.spacing),
            "affine": self.volume.grid.affine.tolist(),
            **self.fit.to_dict(),
        }


def crop(
    exam: KnownExam,
    volume: Volume,
    box: Box,
    view: CropView,
    labels: Volume | None = None,
    intensity: str = "hu",
) -> Crop:
    """The view of a box of the atlas in an exam.

    Args:
        exam: the coordinates of the exam.
        volume: its voxels.
        box: a box of the atlas.
        view: the size of the view.
        labels: a label image on the grid of the exam.
        intensity: what the values of the exam are (``data.intensity``).

    Raises:
        DataError: no place of the exam lies in the box, or labels are on another grid.
    """
    name = exam.name or "exam"
    if labels is not None and not labels.grid.matches(volume.grid):
        raise DataError(f"{name}: its labels are on another grid than the exam; resample them to it first")
    carried = carry_box(exam.field, box, exam.grid, exam.body)
    if carried is None:
        raise DataError(f"{name}: no place of it lies in the box {box.name}, or too few to turn the view by")
    grid, placed = view.grid(carried.box_mm), view.of(carried.box_mm)
    outside = AIR if intensity == "hu" else float(volume.array.min())
    return Crop(
        resample_to(volume, grid, outside=outside),
        placed,
        coverage(placed, volume.grid),
        carried.residual_mm,
        carried.shear_degrees,
        exam.fit,
        volume.grid,
        None if labels is None else labels_resampled_to(labels, grid),
    )


def box_of(template: Template, name: str | Sequence[str], where: str = "template") -> Box:
    """A box of a template by its name, or the box around one or several of its structures.

    ``where`` is what a message calls the template, for example its file.
    """
    boxes = {box.name: box for box in template.marks.boxes}
    names = [name] if isinstance(name, str) else list(name)
    if len(names) == 1 and names[0] in boxes:
        return boxes[names[0]]
    found = chosen(names, [*boxes, *template.names], where, "box or structure")
    if len(found) == 1 and found[0] in boxes:
        return boxes[found[0]]
    if mixed := [n for n in found if n in boxes]:
        raise DataError(f"box {mixed[0]}: is a box of the template by itself; give it alone")
    return box_around(template, Around("+".join(found), tuple(found)))
