"""What a path holds, and what the exam at a path is called."""

from __future__ import annotations

import pytest

from deepatlas.exams.kind import Kind, exam_name, kind_of

DICOM = bytes(128) + b"DICM" + bytes(8)


def test_files_are_recognised_by_suffix_or_content(tmp_path):
    for name in ("scan.nii.gz", "scan.NRRD", "notes.txt"):
        (tmp_path / name).write_bytes(DICOM if name != "notes.txt" else b"text")
        assert kind_of(tmp_path / name) is Kind.IMAGE
    (tmp_path / "IM0001").write_bytes(DICOM)
    assert kind_of(tmp_path / "IM0001") is Kind.DICOM
    assert kind_of(tmp_path / "pt_1.h5") is Kind.EXAM_FILE
    assert kind_of(tmp_path / "missing") is Kind.IMAGE


def test_dicom_below_a_folder_belongs_to_it_only_if_the_folder_is_an_exam(tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "IM0001").write_bytes(DICOM)
    assert kind_of(tmp_path / "series") is Kind.DICOM
    assert kind_of(tmp_path) is Kind.FOLDER
    assert kind_of(tmp_path, is_exam=True) is Kind.DICOM


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/pt_7/ct.nii.gz", "pt_7"),
        ("data/pt_7/CT.nrrd", "pt_7"),
        ("ct.nii", "ct"),
        ("data/scan.of.me.nii.gz", "scan.of.me"),
        ("DST/exams/3f/pt_7.h5", "pt_7"),
        ("data/series", "series"),
    ],
)
def test_an_exam_is_called_after_its_folder_or_its_file(path, name):
    assert exam_name(path) == name
