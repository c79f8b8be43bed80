"""Reading an exam, however it is stored. Every other part of the package reads exams through this module."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from deepatlas.errors import DataError, DataWarning
from deepatlas.exams.exam_file import ExamFile
from deepatlas.exams.kind import Kind, kind_of
from deepatlas.exams.mask_files import read_masks
from deepatlas.io.codec import read_image
from deepatlas.io.segments import Segments, read_segment_masks, read_segments
from deepatlas.io.values import as_hounsfield, as_labels
from deepatlas.names.meet import compact
from deepatlas.space.labels import Labels, stacked
from deepatlas.space.volume import Volume
from deepatlas.store.fit import check_labels

if TYPE_CHECKING:
    from deepatlas.io.dicom.series import DicomSeries, Reading


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
        labels: read labels; otherwise a CT in Hounsfield units. The segments of a layered ``.seg.nrrd`` of 3D Slicer
            have their label values as ids, or, where several have one value, their places in the header from 1 on.
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
        volume.array = as_labels(volume.array, path) if labels else as_hounsfield(volume.array, path)
    elif kind is Kind.DICOM and not labels:
        reading = _read_series(path)
        volume, found = reading.volume, [*reading.corrections, *reading.warnings]
    else:
        segments = read_segments(path) if labels and path.is_file() else None
        if segments is not None and segments.layered:
            volume, found = _segmented(path, segments, segments.numbers)
        else:
            volume, found = read_image(path, labels=labels)
            volume = Labels.of(volume) if labels else volume
    if notes is None:
        for note in found:
            warnings.warn(f"{path}: {note}", DataWarning, stacklevel=2)
    else:
        notes.extend(found)
    return volume


def read_with_series(
    path: str | os.PathLike[str], *, kind: Kind | None = None
) -> tuple[Volume, DicomSeries | None]:
    """An exam as :func:`read_volume` reads it, and the DICOM series that it was read from; None for other files."""
    kind = kind or kind_of(path, is_exam=True)
    if kind is not Kind.DICOM:
        return read_volume(path, kind=kind), None
    reading = _read_series(path)
    for note in (*reading.corrections, *reading.warnings):
        warnings.warn(f"{path}: {note}", DataWarning, stacklevel=2)
    return reading.volume, reading.series


def _read_series(path: str | os.PathLike[str]) -> Reading:
    # pydicom is slow to import, and most exams are no DICOM.
    from deepatlas.io.dicom.read import read_folder

    return read_folder(path)


def read_labels_for(ct: Volume, path: Path, labels: dict[str, int], notes: list[str] | None = None) -> Labels:
    """Read a segmentation, overlaps included, and check it against its CT and the table of labels.

    Args:
        ct: the CT of the exam.
        path: the segmentation, the exam file that holds it, or a folder with a mask for each structure.
        labels: ``{name: id}`` of the structures. The segments that the header of a ``.seg.nrrd`` of 3D Slicer names get
            the ids of their names, whatever their label values are; case, spaces and punctuation do not count. Where
            all of them have the names that 3D Slicer gives by itself, the label values are the ids.
        notes: as in :func:`read_volume`.

    Raises:
        DataError: the file cannot be read, is not on the grid of the CT, or holds an id or a segment that ``labels``
            lack.
    """
    if path.is_dir():
        return read_masks(path, ct, labels, [] if notes is None else notes)
    if (segments := read_segments(path)) and (ids := _ids_by_name(path, segments, labels)):
        seg, found = _segmented(path, segments, ids)
        if notes is not None:
            notes.extend(found)
    else:
        seg = read_volume(path, labels=True, notes=notes)
    check_labels(ct, seg, labels)
    return seg


def _segmented(path: Path, segments: Segments, ids: Sequence[int | None]) -> tuple[Labels, list[str]]:
    """The segments of a file as labels with these ids, the smaller one on top, and a line for each oddity.

    Raises :class:`~deepatlas.errors.DataError` if a segment with voxels has no id.
    """
    masks, grid, notes = read_segment_masks(path, segments.segments)
    drawn = {}
    for segment, identity, mask in zip(segments.segments, ids, masks, strict=True):
        if mask.packed.size and identity is None:
            raise DataError(
                f"{path}: labels.json does not name its segment {segment.name[:40]!r}; add it there or delete it"
            )
        if mask.packed.size and identity is not None:
            drawn[segment.name] = identity, mask
    order = stacked({name: mask.count() for name, (_, mask) in drawn.items()})
    dtype = np.uint8 if max((i for i, _ in drawn.values()), default=0) < 256 else np.uint16
    return Labels.painted((drawn[name] for name in order), grid, dtype, str(path)), notes


def _ids_by_name(path: Path, segments: Segments, labels: dict[str, int]) -> list[int | None] | None:
    """The id in ``labels`` of each segment, by its name; None where label values are the ids, as nobody named one."""
    spelled = {compact(name): identity for name, identity in labels.items()}
    ids = [spelled.get(compact(segment.name)) for segment in segments.segments]
    known = [identity for identity in ids if identity is not None]
    if not known and not segments.layered and segments.unnamed:
        return None
    if len(set(known)) < len(known):
        raise DataError(f"{path}: two of its segments have one name in labels.json; rename or join them")
    return ids
