"""The structures of an exam in the format that is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deepatlas.errors import WriteError
from deepatlas.io.codec import image_suffix, write_volume
from deepatlas.io.export.algorithm import Algorithm
from deepatlas.io.export.seg_nrrd import SUFFIX as SEGMENTATION
from deepatlas.io.export.seg_nrrd import write_seg_nrrd
from deepatlas.space.labels import Labels

if TYPE_CHECKING:
    from deepatlas.io.dicom.series import DicomSeries

# The formats by name, with the suffix that a command gives them, and the suffixes that each may have.
FORMATS = {
    "nifti": ".nii.gz", "nrrd": ".nrrd", "seg-nrrd": SEGMENTATION, "dicom-seg": ".seg.dcm",
    "rtstruct": ".rtstruct.dcm",
}  # fmt: skip
_SUFFIXES = {
    "nifti": (".nii.gz", ".nii"), "seg-nrrd": (SEGMENTATION,), "nrrd": (".nrrd", SEGMENTATION), "dicom-seg": (".dcm",),
    "rtstruct": (".dcm",),
}  # fmt: skip
# Those that refer to the DICOM series of the exam.
DICOM = ("dicom-seg", "rtstruct")


def write_labels(
    path: str | os.PathLike[str],
    labels: Labels,
    names: Mapping[str, int],
    format: str | None = None,
    *,
    source: DicomSeries | str | os.PathLike[str] = "",
    labelmap: bool = False,
    algorithm: Algorithm | None = None,
    remarks: Mapping[str, str] | None = None,
) -> list[str]:
    """Write the structures of an exam.

    Args:
        path: the file.
        labels: the structures.
        names: ``{name: id}`` of the structures.
        format: one of :data:`FORMATS`; None takes that of the suffix, which for ``.dcm`` is a DICOM-SEG. Label images
            show one structure a voxel; ``"seg-nrrd"`` and DICOM hold whole masks.
        source: the series that the exam was read from, or its path, for DICOM.
        labelmap: for a DICOM-SEG, write the newer form, one value a voxel.
        algorithm: what made the structures, for DICOM.
        remarks: what is said of structures, by their names, in files that have a place for it: segmentations and DICOM.

    Returns a line for everything that the file lacks.

    Raises:
        WriteError: the format is unknown or does not have the suffix, or the file cannot be written.
        DataError, DeepAtlasError: as :func:`~deepatlas.io.export.dicom_seg.write_dicom_seg` and
            :func:`~deepatlas.io.export.rtstruct.write_rtstruct` raise them.
    """
    path = Path(path)
    segmentation = path.name.lower().endswith(SEGMENTATION)
    suffix = SEGMENTATION if segmentation else image_suffix(path) or path.suffix.lower()
    if format is None:
        format = next((f for f, own in _SUFFIXES.items() if suffix in own), None)
    elif format not in FORMATS:
        raise WriteError(f"{path}: no format {format!r}; use one of {', '.join(FORMATS)}")
    elif suffix not in _SUFFIXES[format]:
        raise WriteError(
            f"{path}: a {format} file ends with {' or '.join(_SUFFIXES[format])}; give such a name"
        )
    # Each format is imported where it is written: pydicom and highdicom are slow to start.
    if format == "dicom-seg":
        from deepatlas.io.export.dicom_seg import write_dicom_seg

        return write_dicom_seg(
            path, labels, names, source, labelmap=labelmap, algorithm=algorithm, remarks=remarks
        )
    if format == "rtstruct":
        from deepatlas.io.export.rtstruct import write_rtstruct

        return write_rtstruct(path, labels, names, source, algorithm=algorithm, remarks=remarks)
    if format in ("nrrd", "seg-nrrd"):
        write_seg_nrrd(path, labels, names, remarks)
        return []
    # MetaImage has no name of its own among the formats; its suffix says enough.
    write_volume(path, labels)
    return []
