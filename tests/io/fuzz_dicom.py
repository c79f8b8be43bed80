"""The DICOM files of the fuzz test: series, enhanced multi-frame, RTSTRUCT and DICOM-SEG."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import drawn_objects
import numpy as np
import pydicom
import SimpleITK as sitk
from drawn_segmentations import segmentation
from fuzz_damage import Arrays, Format
from make_dicom import uid, write_ct
from numpy.typing import NDArray
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from deepatlas.errors import DataError
from deepatlas.intake.structures.read import read_structures
from deepatlas.io.dicom.choose import choose_series
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.read import read_series
from deepatlas.io.dicom.scan import scan_dicom
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHAPE = (6, 12, 14)


def _affine() -> NDArray[np.float64]:
    affine = np.diag([-0.9, -1.1, 2.5, 1.0])
    affine[:3, 3] = 40.5, -22.25, -130.0
    return affine


def make_series(syntax: str, multiframe: bool = False) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        hu = np.random.default_rng(3).integers(-1000, 1500, _SHAPE)
        study, series = uid("study"), uid("series")
        write_ct(folder, hu, _affine(), study=study, series=series, syntax=syntax, multiframe=multiframe)

    return make


def read_dicom(folder: Path) -> tuple[Arrays, list[str]]:
    """As ``deepatlas prepare`` reads it: the series of the largest exam is chosen, and the rest becomes notes."""
    scan = scan_dicom([Found(p, p.name) for p in sorted(folder.iterdir())])
    exams = sorted(scan.exams().values(), key=lambda series: -sum(len(s.slices) for s in series))
    if not exams:
        raise DataError(scan.refusals[0].reason if scan.refusals else "nothing in it is DICOM")
    choice = choose_series(exams[0])
    if choice.taken is None:
        raise DataError("; ".join(map(str, choice.reasons.values())))
    reading = read_series(choice.taken)
    notes = [r.reason for r in scan.refusals] + reading.corrections + reading.warnings
    notes += [str(other) for other in exams[1:]] + [f"{f.name} is not DICOM" for f in scan.rest]
    notes += [str(reason) for reason in list(choice.reasons.values())[1:]]
    return {"voxels": reading.volume.array, "affine": reading.volume.grid.affine}, notes


def dicom_truth(folder: Path) -> Arrays:
    """The images that pydicom reads, stacked along their normal."""
    planes = []
    for path in sorted(folder.iterdir()):
        ds = pydicom.dcmread(path, force=True)
        # A CT without this element has one sample per pixel.
        ds.SamplesPerPixel = ds.get("SamplesPerPixel", 1)
        # GDCM, which returns scaled values, decodes the JPEG for which pydicom has no decoder.
        scaled = ds.get("file_meta", ds).get("TransferSyntaxUID") == JPEGLosslessSV1
        pixels = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
            if scaled
            else ds.pixel_array
        )
        for index, frame in enumerate(pixels if pixels.ndim == 3 else [pixels]):
            if "PerFrameFunctionalGroupsSequence" in ds:
                own = ds.PerFrameFunctionalGroupsSequence[index]
                shared = ds.SharedFunctionalGroupsSequence[0]
                position = own.PlanePositionSequence[0].ImagePositionPatient
                orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
                spacing = shared.PixelMeasuresSequence[0].PixelSpacing
                scale = own.PixelValueTransformationSequence[0]
            else:
                position, orientation, spacing = (
                    ds.ImagePositionPatient,
                    ds.ImageOrientationPatient,
                    ds.PixelSpacing,
                )
                scale = ds
            x, y = np.array(orientation, float).reshape(2, 3)
            hu = frame.astype(float)
            hu = hu if scaled else hu * float(scale.RescaleSlope) + float(scale.RescaleIntercept)
            position = np.array(position, float)
            planes.append((float(np.cross(x, y) @ position), position, x, y, spacing, hu))
    planes.sort(key=lambda plane: plane[0])
    _, first, x, y, spacing, _ = planes[0]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = x * float(spacing[1]), y * float(spacing[0])
    affine[:3, 2] = (planes[-1][1] - first) / (len(planes) - 1)
    affine[:3, 3] = first
    return {"voxels": np.stack([plane[-1] for plane in planes]), "affine": _LPS @ affine}


def before_pixels(name: str, data: bytes) -> int:
    at = data.rfind(b"\xe0\x7f\x10\x00")
    return at + 12 if at > 0 else len(data)


# -- structures -------------------------------------------------------------------------------------

_LABELS = {"liver": 1, "lung": 2}


def _slices() -> list[pydicom.Dataset]:
    return drawn_objects.ct_headers(Grid((8, 24, 26), _LPS @ np.diag([1.0, 1.2, 3.0, 1.0])))


def _with_fixed_uids(make: Callable[[list], pydicom.Dataset]) -> tuple[pydicom.Dataset, list]:
    """The object with numbered UIDs and a fixed date, so that its bytes are the same in every run."""
    numbers = count()
    plain = drawn_objects.generate_uid
    drawn_objects.generate_uid = lambda: uid("fixed", next(numbers))
    try:
        slices = _slices()
        ds = make(slices)
    finally:
        drawn_objects.generate_uid = plain
    known = {s.SOPInstanceUID for s in slices} | {slices[0].SeriesInstanceUID, slices[0].FrameOfReferenceUID}
    known.add(slices[0].StudyInstanceUID)
    names: dict[str, str] = {}

    def fix(_: pydicom.Dataset, element: pydicom.DataElement) -> None:
        if element.VR == "UI" and str(element.value).startswith("2.25.") and element.value not in known:
            element.value = names.setdefault(str(element.value), uid("own", len(names)))
        elif element.VR in ("DA", "TM", "DT") and element.value:
            element.value = {"DA": "20200101", "TM": "101112", "DT": "20200101101112"}[element.VR]

    ds.walk(fix)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds, slices


def _rtstruct(slices: list) -> pydicom.Dataset:
    grid = Grid((8, 24, 26), _LPS @ np.diag([1.0, 1.2, 3.0, 1.0]))
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return drawn_objects.rtstruct(
        slices,
        {
            "Liver": [drawn_objects.on_slice(grid, 5 * circle + (8, 9), z) for z in range(1, 5)],
            "Lung": [drawn_objects.on_slice(grid, 4 * circle + (18, 14), z) for z in range(2, 7)],
        },
    )


def make_rtstruct(folder: Path) -> None:
    ds, _ = _with_fixed_uids(_rtstruct)
    ds.save_as(folder / "rs.dcm", enforce_file_format=True)


def make_segmentation(folder: Path) -> None:
    masks = np.zeros((8, 24, 26, 2), dtype=bool)
    masks[1:5, 4:14, 3:12, 0] = masks[2:7, 10:20, 14:22, 1] = True

    ds, _ = _with_fixed_uids(lambda slices: segmentation(slices, masks))
    for item, name in zip(ds.SegmentSequence, ("Liver", "Lung"), strict=True):
        item.SegmentLabel = name
    ds.save_as(folder / "seg.dcm", enforce_file_format=True)


def read_drawn(path: Path) -> tuple[Arrays, list[str]]:
    grid = Grid((8, 24, 26), _LPS @ np.diag([1.0, 1.2, 3.0, 1.0]))
    ct = Volume(np.zeros(grid.shape, np.int16), grid)
    _, slices = _with_fixed_uids(_rtstruct)
    read = read_structures([Found(path, path.name)], ct, _LABELS, series=drawn_objects.series_of(slices))
    if not read.present and read.refused:
        raise DataError(read.refused[0].reason)
    notes = read.warnings + [f"{k}: {v}" for k, v in read.ignored.items()] + [r.reason for r in read.refused]
    notes += [f"no {name}" for name in _LABELS if name not in read.present]
    return {"labels": read.labels.array, "present": np.array(read.present)}, notes


def read_structure_file(folder: Path) -> tuple[Arrays, list[str]]:
    return read_drawn(next(folder.iterdir()))


def rtstruct_truth(folder: Path) -> Arrays:
    """The contours that pydicom reads from the damaged file, written into a new file."""
    damaged = pydicom.dcmread(folder / "rs.dcm", force=True)
    drawn = {int(item.ReferencedROINumber): item for item in damaged.ROIContourSequence}
    structures = {
        str(roi.ROIName): [
            np.array(c.ContourData, float).reshape(-1, 3) for c in drawn[int(roi.ROINumber)].ContourSequence
        ]
        for roi in damaged.StructureSetROISequence
    }
    clean, _ = _with_fixed_uids(lambda slices: drawn_objects.rtstruct(slices, structures))
    clean.save_as(folder / "clean.dcm", enforce_file_format=True)
    return read_drawn(folder / "clean.dcm")[0]


def segmentation_truth(folder: Path) -> Arrays:
    """The label map that highdicom reads from the damaged file, on the grid of the CT."""
    import highdicom as hd

    seg = hd.seg.segread(folder / "seg.dcm")
    names = [str(item.SegmentLabel).lower() for item in seg.SegmentSequence]
    volume = seg.get_volume(segment_numbers=[1, 2], skip_overlap_checks=True)
    grid = np.diag([1.0, 1.2, 3.0, 1.0])
    labels = np.zeros((8, 24, 26), np.uint8)
    inside = np.moveaxis(volume.array, -1, 0)
    for mask, name in zip(inside, names, strict=True):
        for index in np.argwhere(mask):
            place = np.linalg.inv(grid) @ volume.affine @ [*index, 1]
            x, y, z = np.rint(place[:3]).astype(int)
            labels[z, y, x] = _LABELS[name]
    return {"labels": labels, "present": np.array([n for n in _LABELS if (labels == _LABELS[n]).any()])}


DICOM = {
    name: Format(make_series(syntax, multiframe), read_dicom, dicom_truth, before_pixels, may_warn=".dcm")
    for name, syntax, multiframe in [
        ("dicom-explicit", ExplicitVRLittleEndian, False),
        ("dicom-implicit", ImplicitVRLittleEndian, False),
        ("dicom-deflated", DeflatedExplicitVRLittleEndian, False),
        ("dicom-rle", RLELossless, False),
        ("dicom-jpegls", JPEGLSLossless, False),
        ("dicom-jpeg", JPEGLosslessSV1, False),
        ("dicom-jpeg2000", JPEG2000Lossless, False),
        ("dicom-multiframe", ExplicitVRLittleEndian, True),
    ]
} | {
    "rtstruct": Format(
        make_rtstruct, read_structure_file, rtstruct_truth, lambda name, data: len(data), may_warn=".dcm"
    ),
    "dicom-seg": Format(
        make_segmentation, read_structure_file, segmentation_truth, before_pixels, may_warn=".dcm"
    ),
}
