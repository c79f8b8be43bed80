"""Structure sets that break the standard in ways that programs do: nothing is lost that can be used."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_objects import ct_headers, on_slice, rtstruct, saved, series_of
from pydicom.uid import generate_uid

from deepatlas.intake.structures.read import read_structures, structure_names
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

GRID = Grid.from_spacing((7, 20, 24), (1.0, 1.0, 2.0))
LABELS = {"liver": 1, "heart": 2, "spleen": 3}


def square(low: float, high: float, index: int = 3) -> np.ndarray:
    corners = np.array([[low, low], [high, low], [high, high], [low, high]]) + 0.5
    return on_slice(GRID, corners, index)


def drawn():
    slices = ct_headers(GRID)
    contours = {"liver": [square(2, 8)], "heart": [square(10, 14)], "spleen": [square(15, 18)]}
    return slices, rtstruct(slices, contours)


def read(tmp_path, slices, dataset):
    file = saved(dataset, tmp_path / "rt.dcm")
    ct = Volume(np.zeros(GRID.shape, np.int16), GRID)
    return read_structures([file], ct, LABELS, series=series_of(slices))


def sizes(result) -> dict[str, int]:
    return {name: int((result.labels.array == LABELS[name]).sum()) for name in result.present}


def framed(dataset, frame: str):
    """The structure set with a frame of reference of its own."""
    dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = frame
    for roi in dataset.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = frame
    return dataset


def test_a_frame_of_its_own_with_the_images_of_the_ct(tmp_path):
    slices, dataset = drawn()
    result = read(tmp_path, slices, framed(dataset, generate_uid()))
    assert sizes(result) == {"liver": 36, "heart": 16, "spleen": 9} and not result.refused
    (warning,) = result.warnings
    assert "another frame of reference" in warning and "check" in warning


def test_images_that_only_the_contours_name(tmp_path):
    slices, dataset = drawn()
    referenced = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    images = referenced.RTReferencedSeriesSequence[0].ContourImageSequence
    del dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    for roi in dataset.ROIContourSequence:
        roi.ContourSequence[0].ContourImageSequence = [images[3]]
    result = read(tmp_path, slices, framed(dataset, generate_uid()))
    assert sizes(result) == {"liver": 36, "heart": 16, "spleen": 9} and len(result.warnings) == 1


@pytest.mark.parametrize("images", ["others", "few", "none"])
def test_a_frame_of_its_own_without_them_is_refused(tmp_path, images):
    """Drawn on another CT, which may lie elsewhere; of "few" the CT has three images of seven."""
    slices, dataset = drawn()
    referenced = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    sequence = referenced.RTReferencedSeriesSequence[0].ContourImageSequence
    for number, image in enumerate(sequence):
        if images == "others" or number > 2:
            image.ReferencedSOPInstanceUID = generate_uid()
    if images == "none":
        del referenced.RTReferencedSeriesSequence[0].ContourImageSequence
    result = read(tmp_path, slices, framed(dataset, generate_uid()))
    assert not result.present and "another frame of reference" in result.refused[0].reason


def test_one_structure_without_its_number_costs_itself_alone(tmp_path):
    slices, dataset = drawn()
    del dataset.StructureSetROISequence[1].ROINumber
    result = read(tmp_path, slices, dataset)
    assert sizes(result) == {"liver": 36, "spleen": 9} and not result.refused
    assert "no ROINumber" in result.ignored["heart"]
    file = saved(dataset, tmp_path / "again.dcm")
    assert structure_names([file], series=series_of(slices)) == ["liver", "spleen"]


def test_contours_and_observations_without_a_number(tmp_path):
    slices, dataset = drawn()
    del dataset.ROIContourSequence[0].ReferencedROINumber
    dataset.RTROIObservationsSequence[2].RTROIInterpretedType = "EXTERNAL"
    del dataset.RTROIObservationsSequence[2].ReferencedROINumber
    result = read(tmp_path, slices, dataset)
    assert sizes(result) == {"heart": 16, "spleen": 9}
    assert "empty" in result.ignored["liver"]


def test_two_structures_with_one_number(tmp_path):
    """The contours may be those of either."""
    slices, dataset = drawn()
    dataset.StructureSetROISequence[1].ROINumber = 1
    result = read(tmp_path, slices, dataset)
    assert sizes(result) == {"spleen": 9}
    assert "2 structures have its ROINumber" in result.ignored["liver"]
    assert "2 structures have its ROINumber" in result.ignored["heart"]


def test_two_sets_of_contours_with_one_number(tmp_path):
    """They may be parts, or a drawing and its correction."""
    slices, dataset = drawn()
    dataset.ROIContourSequence[1].ReferencedROINumber = 1
    result = read(tmp_path, slices, dataset)
    assert sizes(result) == {"spleen": 9}
    assert "2 sets of contours have its ROINumber" in result.ignored["liver"]
    assert "empty" in result.ignored["heart"]


def test_contours_with_decimal_commas(tmp_path):
    slices, dataset = drawn()
    path = saved(dataset, tmp_path / "rt.dcm").path
    whole = read(tmp_path, slices, dataset)
    content = path.read_bytes()
    points = [str(v).encode() for v in dataset.ROIContourSequence[0].ContourSequence[0].ContourData]
    joined = b"\\".join(points)
    assert content.count(joined) == 1 and b"." in joined
    path.write_bytes(content.replace(joined, joined.replace(b".", b",")))
    ct = Volume(np.zeros(GRID.shape, np.int16), GRID)
    result = read_structures([type(saved(dataset, tmp_path / "x.dcm"))(path, "rt.dcm")], ct, LABELS)
    np.testing.assert_array_equal(result.labels.array, whole.labels.array)
    assert result.warnings == ["liver: its contours have decimal commas; they are read as points"]
