"""The one door through which exams are read, whatever they are stored as."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from deepatlas.errors import DataWarning
from deepatlas.exams.exam_file import ExamFile
from deepatlas.exams.kind import Kind, kind_of
from deepatlas.io.codec import as_hounsfield, as_labels, read_image
from deepatlas.io.dicom.read import read_folder
from deepatlas.space.volume import Volume
from deepatlas.store.fit import check_labels


def read_volume(
    path: str | os.PathLike[str],
    *,
    labels: bool = False,
    notes: list[str] | None = None,
    kind: Kind | None = None,
) -> Volume:
    """Read a 3-D scalar image.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``; or, for a CT, a folder that holds
            a DICOM series (of several the axial soft-tissue reconstruction with the most slices is taken, see
            :func:`deepatlas.io.dicom.read.read_folder`) or an enhanced multi-frame DICOM file; or an exam file
            of a dataset (``.h5``), which holds a CT and, where something was drawn, its labels.
        labels: the file is a label image; otherwise a CT in Hounsfield units.
        notes: oddities that do not forbid use are appended here; without it they become
            :class:`~deepatlas.errors.DataWarning`.
        kind: what the path is, where the caller knows it; otherwise :func:`~deepatlas.exams.kind.kind_of` is asked.

    Returns:
        A :class:`~deepatlas.space.volume.Volume` in the file's own voxel order (z, y, x): float32 Hounsfield units, or
        labels in the smallest of uint8, uint16 and int32 that holds them.

    Raises:
        DataError: one line that names the file, what is wrong and the cure, for a file that is missing, empty,
            damaged, truncated, not 3-D, not scalar, too thin, sheared, constant, holding NaN or infinite values, or
            (labels) not made of integers of at least 0.
    """
    path = Path(path)
    found: list[str] = []
    kind = kind or kind_of(path, is_exam=True)
    if kind is Kind.EXAM_FILE:
        with ExamFile(path) as exam:
            volume = exam.labels() if labels else exam.volume()
        array = as_labels(volume.array, path) if labels else as_hounsfield(volume.array, path, found)
        volume = Volume(array, volume.grid, name=str(path))
    elif kind is Kind.DICOM and not labels:
        reading = read_folder(path)
        volume, found = reading.volume, [*reading.corrections, *reading.warnings]
    else:
        volume, found = read_image(path, labels=labels)
    if notes is None:
        for note in found:
            warnings.warn(f"{path}: {note}", DataWarning, stacklevel=2)
    else:
        notes.extend(found)
    return volume


def read_labels_for(ct: Volume, path: Path, labels: dict[str, int], notes: list[str] | None = None) -> Volume:
    """Read a segmentation and check it against its CT and the label table.

    Raises :class:`~deepatlas.errors.DataError` if it is not on the CT's grid or holds an id the table lacks.
    """
    seg = read_volume(path, labels=True, notes=notes)
    check_labels(ct, seg, labels)
    return seg
