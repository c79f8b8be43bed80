"""Structures as a DICOM RT Structure Set (RTSTRUCT): contours on the slices of the series that they were found in.

A contour runs half-way between the centres of voxels inside and outside, so that a reader which takes the voxels with
their centre inside an odd number of contours (the even-odd rule) gets the mask again, voxel by voxel. A hole is a
contour of its own, of the other sense of rotation.
"""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import contourpy
import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from deepatlas.errors import DataError
from deepatlas.files import atomic_path
from deepatlas.io.dicom.header import RTSTRUCT
from deepatlas.io.dicom.series import DicomSeries
from deepatlas.io.export.algorithm import Algorithm
from deepatlas.io.export.codes import coded, sequence_item
from deepatlas.io.export.dicom_source import Source, source_of
from deepatlas.io.export.segments import LONGEST, dicom_name, segments_of
from deepatlas.pictures.draw import colour
from deepatlas.space.constants import LPS_SIGNS
from deepatlas.space.grid import Grid
from deepatlas.space.labels import Labels

_WHAT = "an RTSTRUCT"
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
_SERIES_NUMBER = 901
# How far slices may be from parallel to those of the source, as a cosine: a tenth of a voxel over 700.
_PARALLEL = 1 - 1e-8
# An image belongs to a contour if its plane is so near, in slices.
_SAME_PLANE = 0.1
# The longest text that a description of a ROI holds (value representation ST).
_LONGEST_TEXT = 1024
_CONTOUR_DATA = Tag(0x3006, 0x0050)


def write_rtstruct(
    path: str | os.PathLike[str],
    labels: Labels,
    names: Mapping[str, int],
    source: DicomSeries | str | os.PathLike[str],
    *,
    algorithm: Algorithm | None = None,
    remarks: Mapping[str, str] | None = None,
) -> list[str]:
    """Write structures as an RT Structure Set.

    Args:
        path: the file, usually ``….rtstruct.dcm``. It names the patient as the source does.
        labels: the structures, on the grid of the source, or on another whose slices are parallel to its slices.
        names: ``{name: id}`` of the structures in ``labels``, which become the names of the ROIs.
        source: the series that the exam was read from, or the path of it.
        algorithm: what made the structures.
        remarks: what is said of structures, by their names; the descriptions of their ROIs.

    Returns:
        A line for each structure that is left out, because it has no voxel.

    Raises:
        DataError: the source is no DICOM series, or none that can be referred to; the slices of ``labels`` are not
            parallel to its slices; no structure has a voxel; or two names are the same in the first 64 letters.
        WriteError: the file cannot be written.
    """
    path = Path(path)
    found, notes = segments_of(labels, names, path)
    origin = source_of(source, _WHAT)
    slices = _Slices(labels.grid, origin)
    algorithm = algorithm or Algorithm("DeepATLAS", "unknown")
    made_by = f"{algorithm.name} {algorithm.version} {algorithm.model}".strip()
    ds = _structure_set(origin, algorithm)
    boxes = labels.boxes()
    for number, (name, identity) in enumerate(found.items(), 1):
        box = boxes[identity]
        roi, drawn, seen = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, dicom_name(name)
        roi.ReferencedFrameOfReferenceUID = origin.series.frame
        roi.ROIGenerationAlgorithm = "AUTOMATIC"
        roi.ROIGenerationDescription = made_by[:LONGEST]
        if remarks and name in remarks:
            roi.ROIDescription = remarks[name][:_LONGEST_TEXT]
        drawn.ReferencedROINumber = seen.ReferencedROINumber = number
        drawn.ROIDisplayColor = list(bytes.fromhex(colour(identity)[1:]))
        drawn.ContourSequence = [
            slices.item(index, contour, number)
            for number, (index, contour) in enumerate(_contours(labels, identity, box, slices.axis), 1)
        ]
        seen.ObservationNumber, seen.ROIInterpreter = number, ""
        seen.RTROIInterpretedType = _interpreted(name)
        meaning = coded(name)
        kind = sequence_item(meaning.type)
        if meaning.side is not None:
            kind.SegmentedPropertyTypeModifierCodeSequence = [sequence_item(meaning.side)]
        seen.RTROIIdentificationCodeSequence = [kind]
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
        ds.RTROIObservationsSequence.append(seen)
    with atomic_path(path) as temporary:
        ds.save_as(temporary, enforce_file_format=True)
    return notes


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The closed contours around a mask ``[rows, columns]``, each ``[N, 2]``: x (column) and y (row) in voxels.

    The first point is not repeated. Every vertex lies half-way between a centre inside and one outside.
    """
    rows, columns = mask.shape
    lines = contourpy.contour_generator(
        np.arange(-1, columns + 1), np.arange(-1, rows + 1), np.pad(mask, 1).astype(np.float64)
    ).lines(0.5)
    found = []
    for line in lines:
        points = np.asarray(line, dtype=np.float64)[:-1]
        before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
        # Vertices within a straight run are left out. All numbers are multiples of one half, so this is exact.
        found.append(points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]])
    return found


def _contours(
    labels: Labels, identity: int, box: tuple[slice, slice, slice], axis: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Every contour of the whole mask of a structure: its slice along ``axis`` (x, y, z), and its voxels ``[N, 3]``."""
    part = np.moveaxis(labels.mask_in(identity, box), 2 - axis, 0)
    u, v = [other for other in range(3) if other != axis]
    first, low_u, low_v = (box[2 - a].start for a in (axis, u, v))
    for offset, plane in enumerate(part):
        for line in outlines(plane):
            points = np.empty((len(line), 3))
            points[:, axis], points[:, u], points[:, v] = (
                first + offset,
                line[:, 0] + low_u,
                line[:, 1] + low_v,
            )
            yield first + offset, points


class _Slices:
    """The slices of a grid that are parallel to those of the source: where they lie, and which images they are."""

    def __init__(self, grid: Grid, source: Source) -> None:
        self.grid = grid
        cosines = np.array(source.series.headers[0].orientation).reshape(2, 3) * LPS_SIGNS
        normal = np.cross(*cosines)
        along = np.abs(normal @ (grid.affine[:3, :3] / np.array(grid.spacing)))
        self.axis = int(along.argmax())
        if along[self.axis] < _PARALLEL:
            raise DataError(
                f"{source.name}: the slices of the labels are not parallel to those of this series, on which an "
                "RTSTRUCT has to be drawn; give the series that the exam was read from"
            )
        # Frames by their slice, as a fraction.
        places = grid.world_to_voxel(source.positions * LPS_SIGNS)[:, self.axis]
        self._frames: dict[int, int] = {}
        for frame, place in enumerate(places):
            if abs(place - round(place)) <= _SAME_PLANE:
                self._frames.setdefault(round(place), frame)
        self._source = source
        # Far finer than a voxel, and no longer than a decimal string may be.
        self._decimals = min(6, max(3, 3 - math.floor(math.log10(min(grid.spacing)))))

    def item(self, index: int, voxels: NDArray[np.float64], number: int) -> Dataset:
        """A contour on the slice ``index``."""
        ds = Dataset()
        frame = self._frames.get(index)
        if frame is not None:
            # Slices between the images of an uneven series belong to none.
            ds.ContourImageSequence = [self._source.reference(frame)]
        ds.ContourGeometricType = "CLOSED_PLANAR"
        ds.NumberOfContourPoints = len(voxels)
        ds.ContourNumber = number
        places = self.grid.voxel_to_world(voxels) * LPS_SIGNS
        text = "\\".join(f"{v:.{self._decimals}f}" for v in places.ravel()).encode()
        text += b" " * (len(text) % 2)
        # The bytes are made here: pydicom makes an object of every number, which takes ten times as long.
        ds[_CONTOUR_DATA] = RawDataElement(_CONTOUR_DATA, "DS", len(text), text, 0, True, True)
        return ds


def _interpreted(name: str) -> str:
    """The type of an ROI: that of planning volumes from their names; everything else is an organ."""
    for kind in ("GTV", "CTV", "PTV", "ITV"):
        if name.upper().startswith(kind):
            # An internal target volume has no word of its own.
            return "PTV" if kind == "ITV" else kind
    return "ORGAN"


def _structure_set(source: Source, algorithm: Algorithm) -> Dataset:
    """The object without its structures: patient and study of the source, and what it refers to."""
    ds, head = Dataset(), source.header
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = RTSTRUCT, generate_uid()
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                    "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
        setattr(ds, keyword, str(head.get(keyword) or ""))
    now = datetime.datetime.now()
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = (
        "RTSTRUCT",
        generate_uid(),
        _SERIES_NUMBER,
        1,
    )
    ds.SeriesDescription, ds.OperatorsName = algorithm.title, ""
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = (
        "DeepATLAS",
        "deepatlas",
        algorithm.version,
    )
    ds.StructureSetLabel = ds.StructureSetName = "DeepATLAS"
    if algorithm.caution:
        ds.StructureSetDescription = algorithm.title
    ds.StructureSetDate = ds.InstanceCreationDate = now.strftime("%Y%m%d")
    ds.StructureSetTime = ds.InstanceCreationTime = now.strftime("%H%M%S")
    ds.ApprovalStatus = "UNAPPROVED"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = source.series.frame, ""
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = head.SeriesInstanceUID
    series.ContourImageSequence = [_image(ds_) for ds_ in source.images]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, head.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = source.series.frame
    frame.RTReferencedStudySequence = [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    return ds


def _image(image: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return item
