"""Reading an exam, however it is stored. Every other part of the package reads exams through this module."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Literal, overload

from deepatlas.errors import DataWarning
from deepatlas.exams.exam_file import ExamFile
from deepatlas.exams.kind import Kind, kind_of
from deepatlas.exams.mask_files import read_masks
from deepatlas.io.codec import read_image
from deepatlas.io.dicom.read import read_folder
from deepatlas.io.values import as_hounsfield, as_labels
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume
from deepatlas.store.fit import check_labels


@overload
def read_volume(
    path: str | os.PathLike[str],
    *,
    labels: Literal[False] = False,
    notes: list[str] | None = None,
    kind: Kind | None = None,
) -> Volume: ...


@overload
def read_volume(
    path: str | os.PathLike[str],
    *,
    labels: Literal[True],
    notes: list[str] | None = None,
    kind: Kind | None = None,
) -> Labels: ...


def read_volume(
    path: str | os.PathLike[str],
    *,
    labels: bool = False,
    notes: list[str] | None = None,
    kind: Kind | None = None,
) -> Volume:
    """Read an exam or a label image.

    Args:
        path: an image (``.nii``, ``.nii.gz``, ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``); for a CT also a folder
            with a DICOM series or an enhanced multi-frame DICOM file; or an exam file of a dataset (``.h5``), which
            holds a CT and, where something was drawn, its labels. Of several DICOM series, the axial soft-tissue
            reconstruction with the most slices is read (see :func:`deepatlas.io.dicom.read.read_folder`).
        labels: read labels; otherwise a CT in Hounsfield units.
        notes: a list to which remarks on an unusual but usable exam are appended. Without it they are issued as
            :class:`~deepatlas.errors.DataWarning`.
        kind: what the path holds, if that is known; otherwise :func:`~deepatlas.exams.kind.kind_of` finds out.

    Returns:
        The volume in the voxel order of the file (z, y, x): float32 Hounsfield units; or
        :class:`~deepatlas.space.labels.Labels`, ids in the smallest of uint8, uint16 and int32 that holds them, with
        what they hide where structures overlap.

    Raises:
        DataError: the file is missing, empty, damaged, truncated, not 3-D, not scalar, too thin, sheared or constant;
            it holds values that are NaN or infinite; or its labels are not integers of at least 0. The message names
            the file, the problem and the cure in one line.
    """
    path = Path(path)
    found: list[str] = []
    kind = kind or kind_of(path, is_exam=True)
    if kind is Kind.EXAM_FILE:
        with ExamFile(path) as exam:
            volume = exam.labels() if labels else exam.volume()
        volume.array = as_labels(volume.array, path) if labels else as_hounsfield(volume.array, path, found)
    elif kind is Kind.DICOM and not labels:
        reading = read_folder(path)
        volume, found = reading.volume, [*reading.corrections, *reading.warnings]
    else:
        volume, found = read_image(path, labels=labels)
        volume = Labels.of(volume) if labels else volume
    if notes is None:
        for note in found:
            warnings.warn(f"{path}: {note}", DataWarning, stacklevel=2)
    else:
        notes.extend(found)
    return volume


def read_labels_for(ct: Volume, path: Path, labels: dict[str, int], notes: list[str] | None = None) -> Labels:
    """Read a segmentation, overlaps included, and check it against its CT and the table of labels.

    Args:
        ct: the CT of the exam.
        path: the segmentation, the exam file that holds it, or a folder with a mask for each structure.
        labels: ``{name: id}`` of the structures.
        notes: as in :func:`read_volume`.

    Raises:
        DataError: the file cannot be read, is not on the grid of the CT, or holds an id that ``labels`` lacks.
    """
    if path.is_dir():
        return read_masks(path, ct, labels, [] if notes is None else notes)
    seg = read_volume(path, labels=True, notes=notes)
    check_labels(ct, seg, labels)
    return seg
