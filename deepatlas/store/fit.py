"""Checking an exam against its label image, and resampling both to the form in which a store holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.space.check_input import check_input
from deepatlas.space.constants import FINE_SIZE, MODEL_SIZE
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import foreground_mask, labels_to_grid, pool_labels, pool_volume, to_fine_grid
from deepatlas.space.volume import Volume


class ExamError(DataError):
    """One exam of a cohort cannot be used; the others are not affected."""


@dataclass(frozen=True)
class PreparedExam:
    """The arrays of one exam as the store holds them (see :mod:`deepatlas.store.store`)."""

    hu: NDArray[np.int16]
    mask: NDArray[np.uint8]
    labels: NDArray | None
    labels_fine: NDArray | None
    has_label: list[bool]
    fine_grid: Grid
    native_grid: Grid
    notes: list[str]


def fit_exam(
    ct: Volume, seg: Volume | None, labels: dict[str, int], crop: str | None = None, notes: Sequence[str] = ()
) -> PreparedExam:
    """Resample one exam to the form in which the store holds it (paper 5.5.2 and 5.5.3).

    Args:
        ct: Hounsfield units.
        seg: the label image on the grid of the CT, or None where no structures were drawn.
        labels: ``{name: id}`` of the structures that could have been drawn.
        crop: as in :func:`~deepatlas.space.preprocess.to_model_grid`.
        notes: lines about the exam that are stored with it.

    Raises :class:`ExamError` if the CT shows no patient or is not in Hounsfield units (see
    :func:`~deepatlas.space.check_input.check_input`).
    """
    try:
        checked, seen = check_input(ct)
        fine = to_fine_grid(checked, crop)
    except DataError as error:
        raise ExamError(error) from error
    pooled = pool_volume(fine, FINE_SIZE // MODEL_SIZE)
    mask = foreground_mask(pooled.array)
    if not mask.any():
        raise ExamError(
            f"{ct.name}: holds nothing but air (no region above -900 HU); check that it is in Hounsfield units"
        )
    labels_fine: NDArray | None = None
    labels_64: NDArray | None = None
    present: set[int] = set()
    if seg is not None:
        dtype = np.uint8 if max(labels.values()) < 256 else np.uint16
        labels_fine = labels_to_grid(seg, fine.grid).array.astype(dtype)
        labels_64 = pool_labels(labels_fine, FINE_SIZE // MODEL_SIZE)
        present = set(np.unique(seg.array).tolist())
    return PreparedExam(
        hu=np.rint(pooled.array).clip(-32768, 32767).astype(np.int16),
        mask=mask.astype(np.uint8),
        labels=labels_64,
        labels_fine=labels_fine,
        has_label=[value in present for value in labels.values()],
        fine_grid=fine.grid,
        native_grid=ct.grid,
        notes=[*notes, *seen],
    )


def check_labels(ct: Volume, seg: Volume, labels: dict[str, int]) -> None:
    """Check that a label image is on the grid of its CT, and that the label table ``labels`` contains all its ids.

    Raises :class:`~deepatlas.errors.DataError` otherwise.
    """
    path = seg.name or "labels"
    if seg.grid.shape != ct.grid.shape:
        raise DataError(
            f"{path}: {_shape(seg.grid)} voxels (x, y, z) do not match the {_shape(ct.grid)} of {ct.name}; "
            "draw or resample it on the CT's grid"
        )
    if not seg.grid.matches(ct.grid):
        apart = float(np.linalg.norm(seg.grid.corners() - ct.grid.corners(), axis=1).max())
        raise DataError(
            f"{path}: its geometry differs from {ct.name} (corners up to {apart:.1f} mm apart); "
            "draw or resample it on the CT's grid"
        )
    unknown = sorted(set(np.unique(seg.array).tolist()) - {0} - set(labels.values()))
    if unknown:
        some = ", ".join(map(str, unknown[:8])) + (" …" if len(unknown) > 8 else "")
        raise DataError(
            f"{path}: holds label ids that labels.json does not name ({some}); add them there or clear them"
        )


def _shape(grid: Grid) -> str:
    return " x ".join(map(str, reversed(grid.shape)))
