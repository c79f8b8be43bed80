"""RTSTRUCT that is written: read back by our own reader and by a plain even-odd oracle, on turned grids."""

from __future__ import annotations

import errno
import os

import numpy as np
import pydicom
import pytest
from exported_series import NAMES, masks, series, structures, turned_affine
from matplotlib.path import Path as Outline

from deepatlas.errors import DataError, WriteError
from deepatlas.intake.structures.read import read_structures
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.read import read_folder
from deepatlas.io.export.algorithm import Algorithm
from deepatlas.io.export.rtstruct import outlines, write_rtstruct
from deepatlas.space.grid import Grid
from deepatlas.space.labels import Labels

PRESENT = ["liver", "kidney_left", "tumour (odd)", "gtv"]
GRIDS = {
    "axial": np.array([[-0.8, 0, 0, 40], [0, -0.7, 0, 30], [0, 0, 2.5, -100], [0, 0, 0, 1.0]]),
    "oblique": turned_affine(0),
    "small": turned_affine(5, (0.05, 0.08, 0.1)),
}


def back(path, reading, refused: bool = False):
    found = read_structures([Found(path, path.name)], reading.volume, NAMES, series=reading.series)
    assert not found.refused
    return {name: found.labels.mask(NAMES[name]) for name in found.present}, found.warnings


@pytest.mark.parametrize("grid", GRIDS)
def test_our_reader_gets_the_same_masks(grid, tmp_path):
    reading = read_folder(series(tmp_path / "ct", GRIDS[grid]))
    labels = structures(reading.volume.grid)
    notes = write_rtstruct(tmp_path / "a.dcm", labels, NAMES, reading.series)
    assert notes == ["spleen: has no voxel; left out"]
    got, warnings = back(tmp_path / "a.dcm", reading)
    assert sorted(got) == sorted(PRESENT) and not warnings
    for name, mask in got.items():
        np.testing.assert_array_equal(mask, masks(labels.grid.shape)[name], err_msg=name)


@pytest.mark.slow(1)
def test_every_contour_lies_on_its_image_and_encloses_the_mask(tmp_path):
    """Without our reader: pydicom, the geometry of the images, and matplotlib's test of points in polygons."""
    folder = series(tmp_path / "ct", GRIDS["oblique"])
    reading = read_folder(folder)
    labels = structures(reading.volume.grid)
    write_rtstruct(tmp_path / "a.dcm", labels, NAMES, folder, algorithm=Algorithm("DeepATLAS", "1.2", "abc"))
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    images = {i.SOPInstanceUID: i for i in map(pydicom.dcmread, folder.iterdir())}
    order = sorted(images.values(), key=lambda i: along(i, i.ImagePositionPatient))
    rank = {image.SOPInstanceUID: k for k, image in enumerate(order)}
    names = {int(roi.ROINumber): roi.ROIName for roi in ds.StructureSetROISequence}
    rows, columns = labels.grid.shape[1:]
    centres = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    for roi in ds.ROIContourSequence:
        drawn = np.zeros(labels.grid.shape, dtype=bool)
        for contour in roi.ContourSequence:
            image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            np.testing.assert_allclose([along(image, p) - along(image, image.ImagePositionPatient) for p in points], 0,
                                       atol=2e-3)  # fmt: skip
            inside = Outline(pixels(image, points)).contains_points(centres).reshape(rows, columns)
            drawn[rank[image.SOPInstanceUID]] ^= inside
        np.testing.assert_array_equal(drawn, labels.mask(NAMES[names[int(roi.ReferencedROINumber)]]))


def along(image, point) -> float:
    """How far a point lies along the normal of an image, in mm."""
    cosines = np.array(image.ImageOrientationPatient, dtype=float).reshape(2, 3)
    return float(np.cross(*cosines) @ np.array(point, dtype=float))


def pixels(image, points: np.ndarray) -> np.ndarray:
    """Columns and rows of points, by equation C.7.6.2.1-1 of DICOM."""
    cosines = np.array(image.ImageOrientationPatient, dtype=float).reshape(2, 3)
    offset = points - np.array(image.ImagePositionPatient, dtype=float)
    return (offset @ cosines.T) / [float(image.PixelSpacing[1]), float(image.PixelSpacing[0])]


def test_the_header_names_what_it_must(tmp_path):
    reading = read_folder(series(tmp_path / "ct", GRIDS["axial"]))
    write_rtstruct(tmp_path / "a.dcm", structures(reading.volume.grid), NAMES, reading.series)
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    assert ds.Modality == "RTSTRUCT" and str(ds.PatientName) == "Doe^Jane" and ds.StructureSetLabel
    frame = ds.ReferencedFrameOfReferenceSequence[0]
    assert frame.FrameOfReferenceUID == reading.series.frame
    referenced = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == reading.series.series
    uids = {image.ReferencedSOPInstanceUID for image in referenced.ContourImageSequence}
    assert uids == set(reading.series.sop_uids)
    seen = {o.ReferencedROINumber: o for o in ds.RTROIObservationsSequence}
    names = {roi.ROIName: roi.ROINumber for roi in ds.StructureSetROISequence}
    assert seen[names["gtv"]].RTROIInterpretedType == "GTV"
    kidney = seen[names["kidney_left"]].RTROIIdentificationCodeSequence[0]
    assert (
        kidney.CodeValue == "64033007"
        and kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
    )


@pytest.mark.slow(1)
@pytest.mark.parametrize("more", [{"tilt": 12.0}, {"multiframe": True}, {"moves": {4: (0, 0, 0.9)}}])
def test_tilted_enhanced_and_uneven_series(more, tmp_path):
    reading = read_folder(series(tmp_path / "ct", GRIDS["axial"], **more))
    labels = structures(reading.volume.grid)
    write_rtstruct(tmp_path / "a.dcm", labels, NAMES, reading.series)
    for name, mask in back(tmp_path / "a.dcm", reading)[0].items():
        np.testing.assert_array_equal(mask, labels.mask(NAMES[name]), err_msg=name)


def test_a_straight_run_has_two_vertices_and_a_hole_turns_the_other_way():
    mask = np.zeros((8, 9), dtype=bool)
    mask[1:7, 1:8] = True
    mask[3:5, 3:5] = False
    outer, inner = sorted(outlines(mask), key=len, reverse=True)[:2]
    assert len(outlines(mask)) == 2 and len(outer) == 8 and len(inner) == 8

    def area(line):
        return 0.5 * float(
            np.sum(line[:, 0] * np.roll(line[:, 1], -1) - np.roll(line[:, 0], -1) * line[:, 1])
        )

    assert area(outer) * area(inner) < 0


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    reading = read_folder(series(tmp_path / "ct", GRIDS["axial"]))
    labels = structures(reading.volume.grid)
    out = tmp_path / "out" / "a.dcm"
    (tmp_path / "ct.nii.gz").write_bytes(b"not a series")
    with pytest.raises(
        DataError, match=r"ct\.nii\.gz: is no DICOM series, and an RTSTRUCT must refer to one"
    ):
        write_rtstruct(out, labels, NAMES, tmp_path / "ct.nii.gz")
    empty = Labels(np.zeros(labels.grid.shape, np.uint8), labels.grid)
    with pytest.raises(DataError, match="none of the 5 structures has a voxel"):
        write_rtstruct(out, empty, NAMES, reading.series)
    askew = Grid(labels.grid.shape, turned_affine(3))
    with pytest.raises(DataError, match="not parallel to those of this series"):
        write_rtstruct(out, Labels(labels.array, askew), NAMES, reading.series)
    assert not out.parent.exists()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="disk is full"):
        write_rtstruct(out, labels, NAMES, reading.series)
    assert list(out.parent.iterdir()) == []
