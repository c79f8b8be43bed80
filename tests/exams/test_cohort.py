"""Data directories and their label tables."""

from __future__ import annotations

import os

import pytest
from small_exams import one_line

from deepatlas.errors import DataError
from deepatlas.exams.cohort import find_exams, read_labels


def touch(root, *names):
    """Create empty files below ``root``."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def error_of(root) -> str:
    """The error of ``find_exams``, which must be one line that names ``root``."""
    with pytest.raises(DataError) as error:
        find_exams(root)
    text = one_line(error.value)
    assert str(root) in text
    return text


def test_exams_are_listed_in_natural_order(tmp_path):
    touch(tmp_path, *(f"pt_{i}/ct.nii.gz" for i in (10, 2, 1)), "pt_2/seg.nrrd", "x/ct.mha", ".hidden/ct.nii")
    (tmp_path / "labels.json").write_text('{"liver": 3}')
    cohort = find_exams(tmp_path)
    assert [exam.id for exam in cohort.exams] == ["pt_1", "pt_2", "pt_10", "x"] and len(cohort) == 4
    assert cohort.exam("pt_2").seg == tmp_path / "pt_2" / "seg.nrrd"
    assert cohort.exam("x").seg is None
    assert cohort.labels == {"liver": 3} and cohort.skipped == {}
    with pytest.raises(DataError, match="no exam 'pt_3'"):
        cohort.exam("pt_3")


def test_labels_may_lie_in_the_folder_above(tmp_path, monkeypatch):
    touch(tmp_path, "train/a/ct.nii", "train/a/seg.nii")
    (tmp_path / "labels.json").write_text('{"cord": 1}')
    assert find_exams(tmp_path / "train").labels == {"cord": 1}
    # A relative root does not name the folder above.
    monkeypatch.chdir(tmp_path / "train")
    assert find_exams(".").labels == {"cord": 1}


def test_bad_folders_are_listed_with_the_reason(tmp_path):
    touch(tmp_path, "a/ct.nii", "b/CT_image.nii", "c/ct.nii", "c/ct.nrrd")
    cohort = find_exams(tmp_path)
    assert [exam.id for exam in cohort.exams] == ["a"]
    assert "no ct.nii.gz" in cohort.skipped["b"]
    assert "more than one image (ct.nii, ct.nrrd)" in cohort.skipped["c"]


def test_a_folder_with_dicom_is_an_exam(tmp_path):
    touch(tmp_path, "a/readme.txt", "b/readme.txt", "c/ct.nii", "c/IM1")
    for name in ("a/IM1", "b/deeper/IM1", "c/IM1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + bytes(8))
    exams = {exam.id: exam.ct for exam in find_exams(tmp_path).exams}
    assert exams == {"a": tmp_path / "a", "b": tmp_path / "b", "c": tmp_path / "c" / "ct.nii"}
    assert "holds DICOM files, not folders of exams" in error_of(tmp_path / "b" / "deeper")


def test_missing_and_empty_directories_are_errors(tmp_path):
    assert "no such data directory; expected <root>/<exam>/ct.nii.gz" in error_of(tmp_path / "none")
    assert "no exam found; expected" in error_of(touch(tmp_path / "empty", "readme.txt"))
    assert "a file, not a data directory" in error_of(tmp_path / "empty" / "readme.txt")
    assert "single exam" in error_of(touch(tmp_path / "one", "ct.nii.gz"))
    assert "first of 1 folders" in error_of(touch(tmp_path / "named", "a/scan.nii"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_an_unreadable_directory_is_an_error(tmp_path):
    touch(tmp_path / "data", "a/ct.nii")
    (tmp_path / "data").chmod(0)
    try:
        assert "cannot read" in error_of(tmp_path / "data")
    finally:
        (tmp_path / "data").chmod(0o755)


def test_a_segmentation_without_labels_json_is_an_error(tmp_path):
    touch(tmp_path / "deep" / "data", "a/ct.nii", "a/seg.nii")
    assert "no labels.json" in error_of(tmp_path / "deep" / "data")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("{'a': 1}", "not JSON (line 1"),
        ('["liver"]', "not a JSON object"),
        ("{}", "not a JSON object"),
        ('{"a": 0}', "id 0 of 'a' is not a whole number from 1"),
        ('{"a": -1}', "id -1"),
        ('{"a": 70000}', "id 70000"),
        ('{"a": 1.5}', "id 1.5"),
        ('{"a": true}', "id True"),
        ('{"a": "1"}', "id '1'"),
        ('{"a": {"b": 1}}', "is not a whole number"),
        ('{"a": 1, "b": 1}', "id 1 is used for 'a' and 'b'"),
        ('{"a": 1, "a": 2}', "'a' is listed twice"),
    ],
)
def test_wrong_label_tables_are_refused(tmp_path, text, words):
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_labels(path)
    assert words in one_line(error.value) and str(path) in str(error.value)


def test_labels_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "labels.json").write_bytes(b"\xef\xbb\xbf" + b'{"liver": 1}')
    assert read_labels(tmp_path / "labels.json") == {"liver": 1}
    (tmp_path / "labels.json").write_text('{"liver": 1}', encoding="utf-16")
    with pytest.raises(DataError, match="not UTF-8 .*save it as UTF-8") as error:
        read_labels(tmp_path / "labels.json")
    one_line(error.value)
