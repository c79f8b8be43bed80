"""Checking an exam against its label image, and resampling both to the form in which a store holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.space.check_input import check_input
from deepatlas.space.constants import FINE_SIZE, MODEL_SIZE
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.preprocess import foreground_mask, labels_to_grid, pool_drawn, pool_volume, to_fine_grid
from deepatlas.space.volume import Volume


class ExamError(DataError):
    """One exam of a cohort cannot be used; the others are not affected."""


@dataclass(frozen=True)
class PreparedExam:
    """The arrays of one exam as the store holds them (see :mod:`deepatlas.store.store`).

    ``hidden`` and ``hidden_fine`` are the voxels that ``labels`` and ``labels_fine`` hide of structures that overlap
    others (see :class:`~deepatlas.space.labels.Labels`). ``coords`` is there for the crop of a region alone.
    """

    hu: NDArray[np.int16]
    mask: NDArray[np.uint8]
    labels: NDArray | None
    labels_fine: NDArray | None
    has_label: list[bool]
    fine_grid: Grid
    native_grid: Grid
    notes: list[str]
    hidden: dict[int, BoxMask] = field(default_factory=dict)
    hidden_fine: dict[int, BoxMask] = field(default_factory=dict)
    coords: NDArray[np.float16] | None = None


def fit_exam(
    ct: Volume,
    seg: Labels | None,
    labels: dict[str, int],
    crop: str | None = None,
    notes: Sequence[str] = (),
    intensity: str = "hu",
) -> PreparedExam:
    """Resample one exam to the form in which the store holds it (paper 5.5.2 and 5.5.3).

    Args:
        ct: the exam.
        seg: the structures on the grid of the CT, or None where no structures were drawn.
        labels: ``{name: id}`` of the structures that could have been drawn.
        crop: as in :func:`~deepatlas.space.preprocess.to_model_grid`.
        notes: lines about the exam that are stored with it.
        intensity: what its values are (``data.intensity``).

    Raises :class:`ExamError` if the exam shows no patient or its values are of another kind (see
    :func:`~deepatlas.space.check_input.check_input`).
    """
    try:
        checked, seen = check_input(ct, intensity)
        fine = to_fine_grid(checked, crop, intensity)
    except DataError as error:
        raise ExamError(error) from error
    return fit_fine(fine, ct.grid, seg, labels, [*notes, *seen], intensity)


def fit_fine(
    fine: Volume,
    native: Grid,
    seg: Labels | None,
    labels: dict[str, int],
    notes: Sequence[str] = (),
    intensity: str = "hu",
) -> PreparedExam:
    """The form in which the store holds an exam, or a part of one, that is on its grid of 128³ voxels already.

    Args:
        fine: float32 ``[128, 128, 128]``; its grid may be oblique.
        native: the grid of the exam's own voxels.
        seg, labels, notes, intensity: as in :func:`fit_exam`.

    Raises :class:`ExamError` if it shows no patient.
    """
    pooled = pool_volume(fine, FINE_SIZE // MODEL_SIZE)
    mask = foreground_mask(pooled.array, intensity)
    if not mask.any():
        raise ExamError(
            f"{fine.name}: holds nothing but air (no region above -900 HU); check that it is in Hounsfield units"
        )
    small: Labels | None = None
    drawn: Labels | None = None
    present: set[int] = set()
    if seg is not None:
        drawn = labels_to_grid(seg, fine.grid)
        drawn.array = drawn.array.astype(np.uint8 if max(labels.values()) < 256 else np.uint16)
        small = pool_drawn(drawn, FINE_SIZE // MODEL_SIZE)
        present = seg.ids()
    return PreparedExam(
        hu=np.rint(pooled.array).clip(-32768, 32767).astype(np.int16),
        mask=mask.astype(np.uint8),
        labels=None if small is None else small.array,
        labels_fine=None if drawn is None else drawn.array,
        has_label=[value in present for value in labels.values()],
        fine_grid=fine.grid,
        native_grid=native,
        notes=list(notes),
        hidden={} if small is None else small.hidden,
        hidden_fine={} if drawn is None else drawn.hidden,
    )


def check_labels(ct: Volume, seg: Labels, labels: dict[str, int]) -> None:
    """Check that labels are on the grid of their CT, and that the label table ``labels`` contains all their ids.

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
    unknown = sorted(seg.ids() - set(labels.values()))
    if unknown:
        some = ", ".join(map(str, unknown[:8])) + (" …" if len(unknown) > 8 else "")
        raise DataError(
            f"{path}: holds label ids that labels.json does not name ({some}); add them there or clear them"
        )


def _shape(grid: Grid) -> str:
    return " x ".join(map(str, reversed(grid.shape)))
