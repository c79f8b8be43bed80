"""DICOM-SEG that is written: read by highdicom and by our own reader, on turned grids, overlaps included."""

from __future__ import annotations

import builtins
import errno
import os

import highdicom
import numpy as np
import pydicom
import pytest
from exported_series import NAMES, masks, series, structures, turned_affine
from make_dicom import tilted
from pydicom.sr.codedict import codes

from deepatlas.errors import DataError, DeepAtlasError, WriteError
from deepatlas.intake.structures.read import read_structures
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.read import read_folder
from deepatlas.io.export.algorithm import Algorithm
from deepatlas.io.export.codes import coded, sequence_item
from deepatlas.io.export.dicom_seg import write_dicom_seg
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels

PRESENT = ["liver", "kidney_left", "tumour (odd)", "gtv"]
GRIDS = {
    "axial": np.array([[-0.8, 0, 0, 40], [0, -0.7, 0, 30], [0, 0, 2.5, -100], [0, 0, 0, 1.0]]),
    "oblique": turned_affine(0),
    "other": turned_affine(5, (1.2, 0.7, 3.3)),
}


def back(path, reading, labels: Labels):
    """What the reader of ``prepare`` makes of a file: ``{name: mask}``."""
    found = read_structures([Found(path, path.name)], reading.volume, NAMES, series=reading.series)
    assert not found.refused and not found.warnings
    return {name: found.labels.mask(NAMES[name]) for name in found.present}


@pytest.mark.parametrize("overlaps", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
def test_our_reader_gets_the_same_masks(grid, overlaps, tmp_path):
    reading = read_folder(series(tmp_path / "ct", GRIDS[grid]))
    labels = structures(reading.volume.grid, overlaps=overlaps)
    notes = write_dicom_seg(tmp_path / "a.seg.dcm", labels, NAMES, reading.series)
    assert notes == ["spleen: has no voxel; left out"]
    got = back(tmp_path / "a.seg.dcm", reading, labels)
    assert sorted(got) == sorted(PRESENT)
    for name, mask in got.items():
        np.testing.assert_array_equal(mask, labels.mask(NAMES[name]), err_msg=name)
        if overlaps:
            np.testing.assert_array_equal(mask, masks(labels.grid.shape)[name], err_msg=name)


def test_highdicom_reads_every_mask_at_its_place(tmp_path):
    reading = read_folder(series(tmp_path / "ct", GRIDS["oblique"]))
    labels = structures(reading.volume.grid)
    write_dicom_seg(
        tmp_path / "a.seg.dcm", labels, NAMES, tmp_path / "ct", algorithm=Algorithm("DeepATLAS", "1.2", "abc")
    )
    seg = highdicom.seg.segread(tmp_path / "a.seg.dcm")
    assert seg.SegmentsOverlap == "YES" and seg.segmentation_type.value == "BINARY"
    assert str(seg.PatientName) == "Doe^Jane" and seg.FrameOfReferenceUID == reading.series.frame
    images = {uid for _, _, uid in seg.get_source_image_uids()}
    assert images == set(reading.series.sop_uids)
    shown = {seg.get_segment_description(n).segment_label: n for n in seg.segment_numbers}
    assert sorted(shown) == sorted(PRESENT)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    for name, number in shown.items():
        volume = seg.get_volume(segment_numbers=[number], combine_segments=False)
        got = volume.array[..., 0].astype(bool)
        # Both sides name the world places of the voxels that are set, each with its own affine.
        mine = np.argwhere(labels.mask(NAMES[name]))[:, ::-1]
        want = mine @ labels.grid.affine[:3, :3].T + labels.grid.affine[:3, 3]
        there = np.argwhere(got) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        there = there @ lps[:3, :3].T
        assert len(there) == len(want)
        order, other = (np.lexsort(np.round(p, 2).T) for p in (want, there))
        np.testing.assert_allclose(there[other], want[order], atol=1e-2)
        description = seg.get_segment_description(number)
        made_by = description.algorithm_identification[0]
        assert (made_by.AlgorithmName, made_by.AlgorithmVersion) == ("DeepATLAS", "1.2")
        assert made_by.AlgorithmParameters == "model=abc"


def test_a_patient_without_a_family_name_is_no_warning(tmp_path, recwarn):
    for path in series(tmp_path / "ct", GRIDS["axial"]).rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientName = "LUNG1-003"
        dataset.save_as(path)
    reading = read_folder(tmp_path / "ct")
    write_dicom_seg(tmp_path / "a.seg.dcm", structures(reading.volume.grid), NAMES, reading.series)
    assert pydicom.dcmread(tmp_path / "a.seg.dcm").PatientName == "LUNG1-003"
    assert not [str(w.message) for w in recwarn]


def test_codes_and_sides_are_in_the_file(tmp_path):
    reading = read_folder(series(tmp_path / "ct", GRIDS["axial"]))
    write_dicom_seg(tmp_path / "a.seg.dcm", structures(reading.volume.grid), NAMES, reading.series)
    items = {i.SegmentLabel: i for i in pydicom.dcmread(tmp_path / "a.seg.dcm").SegmentSequence}

    def kind(name):
        return items[name].SegmentedPropertyTypeCodeSequence[0]

    assert (kind("liver").CodeValue, kind("liver").CodingSchemeDesignator) == ("10200004", "SCT")
    assert "SegmentedPropertyTypeModifierCodeSequence" not in kind("liver")
    (side,) = kind("kidney_left").SegmentedPropertyTypeModifierCodeSequence
    assert (kind("kidney_left").CodeValue, side.CodeValue) == ("64033007", "7771000")
    odd = kind("tumour (odd)")
    assert odd.CodingSchemeDesignator == "99DEEPATLAS" and odd.CodeMeaning == "tumour (odd)"
    assert items["gtv"].SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    for item in items.values():
        assert item.SegmentAlgorithmType == "AUTOMATIC" and item.RecommendedDisplayCIELabValue


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("RightParotid", "45289007", "24028007"),
        ("Parotid_L", "45289007", "7771000"),
        ("Brainstem", "119238007", None),
        ("Mandible", "91609006", None),
        ("SpinalCord", "2748008", None),
        ("VB_T12", "23215003", None),
        ("vertebrae_T12", "23215003", None),
        ("cerebellum", "113305005", None),
        ("OpticNrv_R", "18234004", "24028007"),
    ],
)
def test_names_of_any_vocabulary_get_codes(name, code, side):
    meaning = coded(name)
    assert meaning.type.value == code and meaning.type.scheme_designator == "SCT"
    assert (meaning.side.value if meaning.side else None) == side
    assert meaning.category == codes.SCT.AnatomicalStructure


def test_a_name_that_nobody_knows_gets_a_private_code_of_its_own():
    first, second = coded("left thing of a very long name").type, coded("another thing").type
    assert first.scheme_designator == second.scheme_designator == "99DEEPATLAS"
    assert first.value != second.value and len(first.value) <= 16
    assert coded("ptv 60").type.scheme_designator == "99DEEPATLAS"
    # A backslash would make two values of one.
    item = sequence_item(coded("ptv\\boost").type)
    assert (item.CodeValue, item.CodeMeaning) == ("ptv/boost", "ptv/boost")


@pytest.mark.parametrize("multiframe", [False, True])
def test_a_label_map_and_an_enhanced_source(multiframe, tmp_path):
    reading = read_folder(series(tmp_path / "ct", GRIDS["oblique"], multiframe=multiframe))
    labels = structures(reading.volume.grid, overlaps=False)
    write_dicom_seg(tmp_path / "a.seg.dcm", labels, NAMES, reading.series, labelmap=multiframe)
    if multiframe:
        ds = pydicom.dcmread(tmp_path / "a.seg.dcm")
        assert ds.SegmentationType == "LABELMAP" and ds.file_meta.TransferSyntaxUID.name == "RLE Lossless"
    for name, mask in back(tmp_path / "a.seg.dcm", reading, labels).items():
        np.testing.assert_array_equal(mask, labels.mask(NAMES[name]), err_msg=name)


def test_a_label_map_has_no_room_for_overlaps(tmp_path):
    reading = read_folder(series(tmp_path / "ct", GRIDS["axial"]))
    with pytest.raises(DataError, match="structures overlap .*write it as BINARY"):
        write_dicom_seg(
            tmp_path / "a.dcm", structures(reading.volume.grid), NAMES, reading.series, labelmap=True
        )
    assert not (tmp_path / "a.dcm").exists()


def test_a_tilted_gantry_gives_the_masks_of_the_straightened_exam(tmp_path):
    reading = read_folder(series(tmp_path / "ct", GRIDS["axial"], tilt=12.0))
    assert reading.volume.grid.shape != (9, 30, 26)
    labels = structures(reading.volume.grid)
    write_dicom_seg(tmp_path / "a.seg.dcm", labels, NAMES, reading.series)
    for name, mask in back(tmp_path / "a.seg.dcm", reading, labels).items():
        np.testing.assert_array_equal(mask, labels.mask(NAMES[name]), err_msg=name)


def test_labels_in_another_voxel_order_come_back_too(tmp_path):
    """As those of a NIfTI that was made of the series: flipped, so that its axes are left-handed."""
    reading = read_folder(series(tmp_path / "ct", GRIDS["oblique"]))
    labels = structures(reading.volume.grid)
    flipped = np.array(labels.grid.affine)
    flipped[:3, 3] += flipped[:3, 2] * (labels.grid.shape[0] - 1)
    flipped[:3, 2] *= -1
    turned = Labels.painted(
        [(i, BoxMask.of(labels.mask(i)[::-1])) for i in sorted(labels.ids())],
        Grid(labels.grid.shape, flipped),
        np.uint8,
    )
    write_dicom_seg(tmp_path / "a.seg.dcm", turned, NAMES, reading.series)
    for name, mask in back(tmp_path / "a.seg.dcm", reading, labels).items():
        np.testing.assert_array_equal(mask, labels.mask(NAMES[name]), err_msg=name)


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path):
    reading = read_folder(series(tmp_path / "ct", GRIDS["axial"]))
    grid = reading.volume.grid
    labels = structures(grid)
    (tmp_path / "ct.nii.gz").write_bytes(b"not a series")
    out = tmp_path / "out" / "a.dcm"
    for source in (tmp_path / "ct.nii.gz", "", tmp_path / "missing"):
        with pytest.raises(DataError, match="is no DICOM series, and a DICOM-SEG must refer to one"):
            write_dicom_seg(out, labels, NAMES, source)
    empty = Labels(np.zeros(grid.shape, np.uint8), grid)
    with pytest.raises(DataError, match="none of the 5 structures has a voxel"):
        write_dicom_seg(out, empty, NAMES, reading.series)
    long = {f"{'a' * 64}{i}": i for i in (2, 4)}
    with pytest.raises(DataError, match="the same in their first 64 letters"):
        write_dicom_seg(out, labels, long, reading.series)
    sheared = Grid(grid.shape, tilted(grid.affine, 0.04))
    with pytest.raises(DataError, match="not at right angles"):
        write_dicom_seg(out, Labels(labels.array, sheared), NAMES, reading.series)
    assert not out.parent.exists()


def test_series_that_cannot_be_referred_to(tmp_path):
    several = {k: {"SeriesInstanceUID": f"1.2.3.{k}"} for k in range(9)}
    reading = read_folder(series(tmp_path / "several", GRIDS["axial"], slice_tags=several))
    with pytest.raises(DataError, match="9 SeriesInstanceUIDs, and a DICOM-SEG refers to one"):
        write_dicom_seg(tmp_path / "a.dcm", structures(reading.volume.grid), NAMES, reading.series)
    reading = read_folder(series(tmp_path / "lost", GRIDS["axial"], tags={"FrameOfReferenceUID": None}))
    with pytest.raises(DataError, match="no FrameOfReferenceUID"):
        write_dicom_seg(tmp_path / "a.dcm", structures(reading.volume.grid), NAMES, reading.series)
    for key in ("StudyInstanceUID", "SeriesInstanceUID"):
        reading = read_folder(series(tmp_path / key, GRIDS["axial"], tags={key: None}))
        with pytest.raises(DataError, match=f"has no {key}, and a DICOM-SEG needs one"):
            write_dicom_seg(tmp_path / "a.dcm", structures(reading.volume.grid), NAMES, reading.series)
    sparse = {
        key: None for key in ("PatientBirthDate", "StudyID", "AccessionNumber", "StudyTime", "PatientName")
    }
    reading = read_folder(series(tmp_path / "sparse", GRIDS["axial"], tags=sparse))
    write_dicom_seg(tmp_path / "a.dcm", structures(reading.volume.grid), NAMES, reading.series)
    assert (tmp_path / "a.dcm").exists()


def test_without_highdicom_one_line_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "highdicom":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    labels = structures(Grid.from_spacing((9, 30, 26)))
    with pytest.raises(DeepAtlasError, match=r"pip install 'deepatlas\[dicom\]'"):
        write_dicom_seg(tmp_path / "a.dcm", labels, NAMES, tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    reading = read_folder(series(tmp_path / "ct", GRIDS["axial"]))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="disk is full"):
        write_dicom_seg(tmp_path / "o" / "a.dcm", structures(reading.volume.grid), NAMES, reading.series)
    assert list((tmp_path / "o").iterdir()) == []
