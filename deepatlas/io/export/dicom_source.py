"""The series that a DICOM object is derived from: what it has to say about the patient, and what it refers to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from deepatlas.errors import DataError
from deepatlas.io.dicom.header import Header
from deepatlas.io.dicom.magic import looks_like_dicom
from deepatlas.io.dicom.read import find_series
from deepatlas.io.dicom.series import DicomSeries

# Elements that every object of a study must have, though their values may be empty.
_REQUIRED = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
    "ReferringPhysicianName"
).split()


@dataclass(frozen=True)
class Source:
    """A series that an object refers to.

    Attributes:
        name: what messages call it.
        series: the series.
        images: an entry for each of its files, without pixels: the first is the whole header, the others hold what a
            reference needs.
    """

    name: str
    series: DicomSeries
    images: list[Dataset]

    @property
    def header(self) -> Dataset:
        """The whole header of the first image, without pixels."""
        return self.images[0]

    @property
    def positions(self) -> NDArray[np.float64]:
        """``[frames, 3]``, LPS mm of the first pixel of every frame, in the order of the files."""
        return np.concatenate([header.positions for header in self.series.headers])  # type: ignore[misc]

    def reference(self, frame: int) -> Dataset:
        """A reference to the image that holds a frame, counted as :attr:`positions` counts them."""
        for header in self.series.headers:
            if frame < header.frames:
                item = Dataset()
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.sop_class, header.sop_uid
                if header.frames > 1:
                    item.ReferencedFrameNumber = frame + 1
                return item
            frame -= header.frames
        raise IndexError(frame)


def source_of(source: DicomSeries | str | os.PathLike[str], what: str) -> Source:
    """The series that an object is to refer to.

    Args:
        source: the series, or the path that an exam was read from.
        what: what messages call the object, such as ``"a DICOM-SEG"``.

    Raises:
        DataError: the path holds no DICOM series, or a series that no object can refer to, since it has several
            SeriesInstanceUIDs or none, no frame of reference, or a header that cannot be read.
    """
    if not isinstance(source, DicomSeries):
        path = Path(source)
        if not os.fspath(source) or not (path.is_dir() or (path.is_file() and looks_like_dicom(path))):
            raise DataError(
                f"{os.fspath(source) or 'exam'}: is no DICOM series, and {what} must refer to one; give the folder of "
                "the series, or write NIfTI or NRRD"
            )
        source, _ = find_series(path)
    name = str(source.slices[0].path if len(source.slices) == 1 else source.slices[0].path.parent)
    cure = "export it again, or write NIfTI or NRRD"
    if len(source.uids) > 1:
        raise DataError(
            f"{name}: its slices carry {len(source.uids)} SeriesInstanceUIDs, and {what} refers to one; {cure}"
        )
    if not source.frame:
        raise DataError(f"{name}: has no FrameOfReferenceUID, and {what} needs one; {cure}")
    try:
        whole = pydicom.dcmread(source.slices[0].path, stop_before_pixels=True, force=True)
        for keyword in _REQUIRED:
            if keyword not in whole:
                setattr(whole, keyword, "")
        # Reading a series gives names of its own to what has none, which are no UIDs.
        lost = [key for key in ("StudyInstanceUID", "SeriesInstanceUID") if not whole.get(key)]
        # What was resolved from the headers, so that all entries agree.
        if not lost and source.headers[0].frames == 1:
            whole.update(_lean(source, source.headers[0]))
    except Exception as error:
        raise DataError(
            f"{name}: the header of its first image cannot be read ({type(error).__name__}); {cure}"
        ) from error
    if lost or not all(header.sop_uid for header in source.headers):
        key = lost[0] if lost else "SOPInstanceUID"
        raise DataError(f"{name}: has no {key}, and {what} needs one; {cure}")
    return Source(name, source, [whole, *(_lean(source, header) for header in source.headers[1:])])


def _lean(series: DicomSeries, header: Header) -> Dataset:
    """What a reference to a single-frame image needs, from its header that was read before."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = header.sop_class, header.sop_uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = series.study, header.series
    ds.FrameOfReferenceUID = series.frame
    ds.Rows, ds.Columns = header.rows, header.columns
    assert header.positions is not None and header.spacing is not None
    # One orientation for all: slices that differ by the rounding of their numbers are one stack.
    ds.ImageOrientationPatient = _decimals(series.headers[0].orientation)
    ds.ImagePositionPatient = _decimals(header.positions[0])
    ds.PixelSpacing = _decimals(series.headers[0].spacing[::-1])  # type: ignore[index]
    ds.SliceThickness = header.thickness
    ds.Modality = header.modality
    return ds


def _decimals(values: Any) -> list[str]:
    return [format_number_as_ds(float(v)) for v in values]
