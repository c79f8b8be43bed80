"""Segmentations of 3D Slicer, of one and of several layers: every segment is whole and keeps its name."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from prepare_here import prepare_here
from slicer_files import write_layers
from small_exams import body, oblique, one_line

from deepatlas.errors import DataError
from deepatlas.exams.cohort import find_exams
from deepatlas.exams.read import read_labels_for, read_volume
from deepatlas.intake.dataset.folder import Dataset
from deepatlas.intake.structures.read import read_structures, structure_names
from deepatlas.io.codec import write_volume
from deepatlas.io.dicom.found import Found
from deepatlas.io.glance import Holds, glance
from deepatlas.io.segments import read_segment_masks, read_segments
from deepatlas.space.volume import Volume

# Names, layers and values: two segments of the first layer and one of the second have the same values.
SEGMENTS = [("Heart", 0, 1), ("Left Lung", 0, 2), ("PTV 60", 1, 1)]
TABLE = {"heart": 7, "left_lung": 5, "ptv_60": 300}
SHAPE = (20, 24, 28)


def drawn(shape=SHAPE) -> dict[str, np.ndarray]:
    """Boxes, of which the PTV lies over heart and lung."""
    masks = {name: np.zeros(shape, dtype=bool) for name in TABLE}
    masks["heart"][3:9, 4:14, 3:12] = True
    masks["left_lung"][3:9, 15:20, 3:20] = True
    masks["ptv_60"][2:11, 8:18, 5:25] = True
    return masks


def layers_of(masks) -> np.ndarray:
    heart, lung, ptv = masks.values()
    return np.stack([heart + 2 * lung, ptv]).astype(np.uint8)


@pytest.fixture
def layered(tmp_path):
    """A layered file on an oblique, anisotropic, flipped grid, and its masks."""
    grid = oblique(np.random.default_rng(5), SHAPE)
    masks = drawn()
    return write_layers(tmp_path / "Segmentation.seg.nrrd", layers_of(masks), grid, SEGMENTS), masks, grid


def test_layers_lie_where_simpleitk_puts_them(layered):
    path, masks, grid = layered
    found = read_segments(path)
    assert found.layered and [(s.name, s.layer, s.value) for s in found.segments] == SEGMENTS
    read, where, notes = read_segment_masks(path, found.segments)
    assert where.matches(grid, 1e-3) and not notes
    image = sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(image)
    for segment, mask, expected in zip(found.segments, read, masks.values(), strict=True):
        whole = np.zeros(SHAPE, dtype=bool)
        whole[mask.box] = mask.array()
        np.testing.assert_array_equal(whole, expected)
        np.testing.assert_array_equal(whole, values[..., segment.layer] == segment.value)
    place = image.TransformIndexToPhysicalPoint((5, 7, 11))
    np.testing.assert_allclose(where.voxel_to_world((5, 7, 11)), np.array(place) * (-1, -1, 1), atol=1e-3)
    seen = glance(path)
    assert seen.holds is Holds.LABELS and seen.ids == (1, 2, 3) and seen.grid.matches(grid, 1e-3)


def test_all_segments_enter_whole_on_a_ct_in_another_voxel_order(layered, tmp_path):
    path, masks, grid = layered
    turned = Volume(np.zeros(SHAPE, np.int16), grid).canonical()
    file = Found(path, "study/Segmentation.seg.nrrd")
    # No table of a folder can number values that mean another segment on each layer.
    for table in (None, {"liver": 1, "spleen": 2}):
        assert structure_names([file], source_labels=table) == ["heart", "left_lung", "ptv_60"]
        result = read_structures([file], turned, TABLE, source_labels=table)
        assert result.present == list(TABLE) and not result.refused and not result.warnings
        for name, mask in masks.items():
            np.testing.assert_array_equal(
                result.labels.mask(TABLE[name]), Volume(mask, grid).canonical().array
            )


def test_a_data_directory_takes_the_ids_of_its_table(layered, tmp_path):
    path, masks, grid = layered
    hu = np.where(np.arange(SHAPE[2]) % 7 > 1, 40.0, -1000.0).astype(np.float32) + np.zeros(SHAPE, np.float32)
    write_volume(tmp_path / "data" / "e1" / "ct.nii.gz", Volume(hu, grid))
    path.rename(tmp_path / "data" / "e1" / "seg.nrrd")
    (tmp_path / "data" / "labels.json").write_text(json.dumps({"PTV_60": 300, "heart": 7, "Left-Lung": 5}))
    cohort = find_exams(tmp_path / "data")
    (exam,) = cohort.exams
    ct = read_volume(exam.ct)
    seg = read_labels_for(ct, exam.seg, cohort.labels)
    for name, mask in masks.items():
        np.testing.assert_array_equal(seg.mask(TABLE[name]), mask)
    assert seg.array.dtype == np.uint16 and set(seg.hidden) == {300}
    with pytest.raises(DataError, match="labels.json does not name its segment 'PTV 60'") as error:
        read_labels_for(ct, exam.seg, {"heart": 7, "left lung": 5})
    one_line(error.value)
    # Without a table, ids are the places of the segments, because two of them have one value.
    seg = read_volume(exam.seg, labels=True)
    for number, mask in enumerate(masks.values(), 1):
        np.testing.assert_array_equal(seg.mask(number), mask)


def test_prepare_takes_a_layered_file_beside_its_ct(tmp_path):
    ct, _ = body()
    masks = drawn(ct.grid.shape)
    affine = ct.grid.affine
    image = nib.Nifti1Image(np.rint(ct.array).astype(np.int16).transpose(2, 1, 0), affine)
    (tmp_path / "src").mkdir()
    nib.save(image, tmp_path / "src" / "case1.nii.gz")
    write_layers(tmp_path / "src" / "case1.seg.nrrd", layers_of(masks), ct.grid, SEGMENTS)
    prepare_here(tmp_path / "src", tmp_path / "set")

    (exam,) = Dataset(tmp_path / "set")
    assert set(exam.present) == set(TABLE) and exam.overlaps == ["ptv_60"]
    for name, mask in masks.items():
        np.testing.assert_array_equal(exam.mask(name).array, mask)


def test_layers_of_simpleitk_and_of_old_slicer(tmp_path):
    masks = drawn()
    layers = np.stack([mask for mask in masks.values()]).astype(np.uint8)
    image = sitk.GetImageFromArray(np.moveaxis(layers, 0, -1), isVector=True)
    for number, name in enumerate(masks):
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_Layer", str(number))
        image.SetMetaData(f"Segment{number}_LabelValue", "1")
    sitk.WriteImage(image, str(tmp_path / "itk.seg.nrrd"), useCompression=True)
    grid = read_segment_masks(tmp_path / "itk.seg.nrrd", read_segments(tmp_path / "itk.seg.nrrd").segments)[1]
    write_layers(tmp_path / "old.seg.nrrd", layers, grid, [(name, None, None) for name in masks])
    for name in ("itk.seg.nrrd", "old.seg.nrrd"):
        seg = read_volume(tmp_path / name, labels=True)
        for number, mask in enumerate(masks.values(), 1):
            np.testing.assert_array_equal(seg.mask(number), mask)


def test_a_plain_file_keeps_the_names_of_its_segments(tmp_path):
    masks = drawn()
    grid = oblique(np.random.default_rng(6), SHAPE)
    layer = (masks["heart"] + 2 * masks["left_lung"]).astype(np.uint8)[None]
    path = write_layers(tmp_path / "a.seg.nrrd", layer, grid, SEGMENTS[:2])
    assert not read_segments(path).layered
    ct = Volume(np.zeros(SHAPE, np.int16), grid)
    # The table of the folder was written for other files: 1 is no liver here.
    result = read_structures(
        [Found(path, "a.seg.nrrd")], ct, TABLE | {"liver": 1}, source_labels={"liver": 1, "x": 2}
    )
    assert result.present == ["heart", "left_lung"]
    # Names that Slicer gives by itself tell nothing, so that the table does.
    auto = write_layers(tmp_path / "b.seg.nrrd", layer, grid, [("Segment_1", 0, 1), ("Segment_2", 0, 2)])
    table = {"left_lung": 2, "heart": 1}
    result = read_structures([Found(auto, "b.seg.nrrd")], ct, TABLE, source_labels=table)
    assert result.present == ["heart", "left_lung"]
    np.testing.assert_array_equal(result.labels.mask(7), masks["heart"])
    # In a data directory, names count where the table has them, and label values otherwise.
    named = read_labels_for(ct, path, {"left lung": 1, "heart": 2})
    np.testing.assert_array_equal(named.mask(1), masks["left_lung"])
    numbered = read_labels_for(ct, auto, {"heart": 1, "left lung": 2})
    np.testing.assert_array_equal(numbered.mask(1), masks["heart"])
    # Names that somebody gave are not passed over for the values, which may mean something else.
    with pytest.raises(DataError, match=r"labels\.json does not name its segment 'Heart'"):
        read_labels_for(ct, path, {"liver": 1, "spleen": 2})


@pytest.mark.parametrize(
    "segments, message",
    [
        ([("Heart", 0, 1), ("Lung", 2, 1)], "a layer that it does not have"),
        ([("Heart", 0, 1), ("Lung", 0, 1)], "names a segment twice"),
        ([("Heart", 0, 1), ("Heart", 1, 1)], "names a segment twice"),
        ([("Heart", 0, 70000)], "a label value that is no id"),
        ([("Heart", 0, "9" * 5000)], "a label value that is no id"),
        ([("Heart", "0.5", 1)], "a layer that it does not have"),
        ([("Heart", 0, 1), ("PTV", 1, 1)], r"label ids on layer 0 that its header does not name \(2\)"),
    ],
)
def test_headers_that_contradict_their_voxels_are_refused(tmp_path, segments, message):
    grid = oblique(np.random.default_rng(5), SHAPE)
    path = write_layers(tmp_path / "x.seg.nrrd", layers_of(drawn()), grid, segments)
    with pytest.raises(DataError, match=message) as error:
        read_volume(path, labels=True)
    one_line(error.value)
    result = read_structures([Found(path, "x.seg.nrrd")], Volume(np.zeros(SHAPE), grid), TABLE)
    assert len(result.refused) == 1 and str(tmp_path) not in result.refused[0].reason


def test_colour_images_are_still_refused(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((8, 8, 8, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "rgb.nrrd"))
    with pytest.raises(DataError, match="3 values per voxel"):
        read_volume(tmp_path / "rgb.nrrd", labels=True)
    assert read_segments(tmp_path / "rgb.nrrd") is None and read_segments(tmp_path / "gone.nrrd") is None
