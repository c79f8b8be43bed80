"""Open RTSTRUCT and DICOM-SEG files: once for their header, and once more to draw what they hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataelem import RawDataElement

from deepatlas.errors import DataError
from deepatlas.io.dicom.header import RTSTRUCT, SEGMENTATIONS
from deepatlas.io.dicom.series import DicomSeries
from deepatlas.io.structures.contents import LabelContents
from deepatlas.io.structures.dicom_seg import read_dicom_seg, segmentation_contents
from deepatlas.io.structures.drawing import LabelSource, dicom_errors
from deepatlas.io.structures.rtstruct import read_rtstruct, rtstruct_contents

_DEFLATED = "1.2.840.10008.1.2.1.99"
# Length of an element that ends with a delimiter.
_UNDEFINED = 0xFFFFFFFF
# Groups of contours, frames and pixels, which hold no identifying text.
_BULK = (0x3006, 0x5200, 0x7FE0)
_IDENTIFYING = (
    "PatientID OtherPatientIDs AccessionNumber PatientBirthDate StudyID PatientAddress PatientTelephoneNumbers "
    "InstitutionName InstitutionAddress StationName"
).split()


def contents_of(dataset: Any, size: int) -> LabelContents:
    """What an RTSTRUCT or DICOM-SEG (a pydicom data set, pixels not needed) of ``size`` bytes holds.

    It never raises: the reason why a file cannot be used becomes :attr:`LabelContents.problem`.
    """
    try:
        kind, identifiers = _checked(dataset, size)
        contents = rtstruct_contents(dataset) if kind == RTSTRUCT else segmentation_contents(dataset)
    except DataError as error:
        return LabelContents(problem=str(error))
    return replace(contents, identifiers=tuple(identifiers))


def open_label_object(path: Path, series: DicomSeries | None = None) -> LabelSource:
    """The structures of an RTSTRUCT or DICOM-SEG file, ready to be drawn.

    Raises :class:`~deepatlas.errors.DataError` for a file that is neither, is damaged or truncated, or was drawn on
    another series or in another frame of reference than ``series``.
    """
    with dicom_errors("the file"):
        # Some structure sets lack the preamble, so pydicom must not ask for it. Other files have no SOP class then.
        with open(path, "rb") as handle:
            dataset = pydicom.dcmread(handle, force=True)
        kind, identifiers = _checked(dataset, path.stat().st_size)
    read = read_rtstruct if kind == RTSTRUCT else read_dicom_seg
    source = read(dataset, series)
    source.identifiers += identifiers
    return source


def _checked(dataset: Any, size: int) -> tuple[str, list[str]]:
    """The SOP class of a complete RTSTRUCT or DICOM-SEG, and the identifying values of its header."""
    with dicom_errors("the file"):
        kind = str(dataset.get("SOPClassUID") or "")
        if kind != RTSTRUCT and kind not in SEGMENTATIONS:
            raise DataError(
                "neither an RTSTRUCT nor a DICOM-SEG; structures come as one of these, or as label images"
            )
        _check_whole(dataset, size)
        return kind, _identifying(dataset)


def _check_whole(dataset: Any, size: int) -> None:
    """Raise if an element reaches beyond the end of the file: pydicom reads what is there without an error."""
    if dataset.file_meta.get("TransferSyntaxUID") == _DEFLATED:
        # Offsets are those of the inflated stream, and zlib notices if that is cut short.
        return
    for tag in dataset.keys():
        raw = dataset.get_item(tag)
        if isinstance(raw, RawDataElement) and raw.length != _UNDEFINED:
            end = raw.value_tell + raw.length
            if end > size:
                raise DataError(f"truncated, {size} of at least {end} bytes are there; copy it again")


def _identifying(dataset: Any) -> list[str]:
    """Values of a header that name the patient, or the people and the place of the examination."""
    elements = (dataset[tag] for tag in dataset.keys() if tag.group not in _BULK)
    values = [str(element.value) for element in elements if element.VR == "PN" and element.value]
    values += [str(dataset.get(keyword) or "") for keyword in _IDENTIFYING]
    for item in dataset.get("RTROIObservationsSequence") or []:
        values.append(str(item.get("ROIInterpreter") or ""))
    return values
