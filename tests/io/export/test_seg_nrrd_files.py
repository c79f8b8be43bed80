"""NRRD with the segments of 3D Slicer in its header: read by SimpleITK, by our reader, and by ``prepare``'s."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import SimpleITK as sitk
from exported_series import NAMES, masks, structures, turned_affine

from deepatlas.errors import WriteError
from deepatlas.exams.read import read_labels_for, read_volume
from deepatlas.intake.structures.read import read_structures
from deepatlas.io.dicom.found import Found
from deepatlas.io.export.labels import write_labels
from deepatlas.io.segments import read_segment_masks, read_segments
from deepatlas.pictures.draw import colour
from deepatlas.space.grid import Grid
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume

SHAPE = (9, 30, 26)
GRID = Grid(SHAPE, turned_affine(4))


def header(path) -> tuple[sitk.Image, list[dict[str, str]]]:
    """The image as SimpleITK reads it, and the fields of each segment."""
    image = sitk.ReadImage(str(path))
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    count = sum(key.endswith("_LabelValue") for key in fields)
    return image, [
        {k.split("_", 1)[1]: v for k, v in fields.items() if k.startswith(f"Segment{i}_")}
        for i in range(count)
    ]


def test_overlapping_segments_lie_on_layers_and_are_whole(tmp_path):
    path = tmp_path / "exam.seg.nrrd"
    assert write_labels(path, structures(GRID), NAMES) == []
    image, segments = header(path)
    assert [s["Name"] for s in segments] == list(NAMES)
    values = sitk.GetArrayFromImage(image)
    for segment, (name, mask) in zip(segments, masks(SHAPE).items(), strict=True):
        identity = NAMES[name]
        assert (segment["LabelValue"], segment["ID"]) == (str(identity), f"Segment_{identity}")
        np.testing.assert_array_equal(values[..., int(segment["Layer"])] == identity, mask)
        rgb = np.array([float(v) for v in segment["Color"].split()]) * 255
        assert bytes(rgb.round().astype(np.uint8)) == bytes.fromhex(colour(identity)[1:])
        assert segment["Extent"] == "0 25 0 29 0 8"
    # Three structures overlap each other; the others lie on the first layer.
    assert image.GetNumberOfComponentsPerPixel() == 3
    assert [s["Layer"] for s in segments] == ["0", "1", "2", "0", "0"]
    place = np.array(image.TransformIndexToPhysicalPoint((5, 7, 3))) * (-1, -1, 1)
    np.testing.assert_allclose(GRID.voxel_to_world((5, 7, 3)), place, atol=1e-6)
    # 3D Slicer takes the first axis for layers only where it is a list.
    assert b"\nkinds: list domain domain domain\n" in path.read_bytes()[:1000]


def test_our_readers_give_the_masks_back(tmp_path):
    path = tmp_path / "exam.seg.nrrd"
    write_labels(path, structures(GRID), NAMES)
    drawn = masks(SHAPE)
    found = read_segments(path)
    read, grid, notes = read_segment_masks(path, found.segments)
    assert grid.matches(GRID, 1e-6) and not notes
    ct = Volume(np.zeros(SHAPE, np.int16), GRID)
    labels = read_labels_for(ct, path, NAMES)
    prepared = read_structures([Found(path, path.name)], ct, NAMES)
    for segment, mask in zip(found.segments, read, strict=True):
        np.testing.assert_array_equal(labels.mask(NAMES[segment.name]), drawn[segment.name])
        assert mask.count() == drawn[segment.name].sum()
    for name in prepared.present:
        np.testing.assert_array_equal(prepared.labels.mask(NAMES[name]), drawn[name])
    assert len(prepared.present) == 4 and not prepared.refused


def test_a_label_image_has_names_and_one_layer(tmp_path):
    labels = structures(GRID)
    write_labels(tmp_path / "exam.nrrd", labels, NAMES, "nrrd")
    image, segments = header(tmp_path / "exam.nrrd")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), labels.array)
    assert {s["Name"]: s["Layer"] for s in segments} == dict.fromkeys(NAMES, "0")
    got = read_volume(tmp_path / "exam.nrrd", labels=True)
    np.testing.assert_array_equal(got.array, labels.array)
    assert got.array.dtype == np.uint8


def test_large_ids_odd_names_and_no_overlap(tmp_path):
    labels = structures(GRID, overlaps=False)
    labels = Labels(labels.array.astype(np.uint16) * 100, GRID)
    names = {"a\\b: ünder\nline": 400, "x": 200, 'quote"': 900, "y": 700}
    write_labels(tmp_path / "o.seg.nrrd", labels, names)
    image, segments = header(tmp_path / "o.seg.nrrd")
    assert image.GetPixelIDValue() == sitk.sitkUInt16 and image.GetNumberOfComponentsPerPixel() == 1
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), labels.array)
    found = read_segments(tmp_path / "o.seg.nrrd")
    assert [s.name for s in found.segments] == ["a\\b: ünder line", "x", 'quote"', "y"]
    assert found.numbers == [400, 200, 900, 700] and len(segments) == 4


def test_another_suffix_and_a_full_disk(tmp_path, monkeypatch):
    with pytest.raises(WriteError, match=r"a seg-nrrd file ends with \.seg\.nrrd"):
        write_labels(tmp_path / "exam.nrrd", structures(GRID), NAMES, "seg-nrrd")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="disk is full"):
        write_labels(tmp_path / "exam.seg.nrrd", structures(GRID), NAMES)
    assert list(tmp_path.iterdir()) == []
