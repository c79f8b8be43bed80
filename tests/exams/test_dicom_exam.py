"""A folder of DICOM is accepted as an exam wherever an image file is: by reading, data directories and commands."""

from __future__ import annotations

import numpy as np
import pytest
from make_dicom import write_capture, write_ct, write_localizer, write_report

from deepatlas.errors import DataError, DataWarning
from deepatlas.exams.cohort import find_exams, named_exams
from deepatlas.exams.kind import Kind
from deepatlas.exams.read import read_volume

AFFINE = np.array([[-0.8, 0, 0, 40], [0, -0.7, 0, 30], [0, 0, 2.5, -100], [0, 0, 0, 1.0]])


def body(seed: int = 0, shape=(7, 12, 10)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, size=shape).astype(float)


def test_read_volume_reads_a_folder_and_a_multiframe_file(tmp_path):
    write_ct(tmp_path / "series", body(), AFFINE, name="IM{:04d}")
    (path,) = write_ct(tmp_path / "enhanced", body(), AFFINE, multiframe=True)
    for exam in (tmp_path / "series", path, tmp_path / "enhanced"):
        notes: list[str] = []
        volume = read_volume(exam, notes=notes)
        assert not notes and volume.name == str(exam)
        np.testing.assert_array_equal(volume.array, body())
        np.testing.assert_allclose(volume.grid.affine, AFFINE, atol=1e-9)


def test_corrections_are_issued_as_warnings(tmp_path):
    write_ct(tmp_path, body(), AFFINE, duplicate=(1,))
    with pytest.warns(DataWarning, match="1 duplicate slice with equal pixels left out"):
        read_volume(tmp_path)


def test_the_axial_soft_tissue_series_of_a_study_is_read(tmp_path):
    study = "1.2.3.4"
    write_localizer(tmp_path / "scout" / "s.dcm", study)
    write_ct(tmp_path / "2", body(2), AFFINE, study=study, number=2)
    write_ct(tmp_path / "3", body(3, (9, 12, 10)), AFFINE, study=study, number=3)
    lung = {"ConvolutionKernel": "B70f"}
    write_ct(tmp_path / "4", body(4, (20, 12, 10)), AFFINE, study=study, number=4, tags=lung)
    write_report(tmp_path / "dose", study)
    write_capture(tmp_path / "picture.dcm", study)
    (tmp_path / "readme.txt").write_text("hello")
    np.testing.assert_array_equal(read_volume(tmp_path, notes=[]).array, body(3, (9, 12, 10)))


def test_a_single_series_is_read_whatever_its_kernel(tmp_path):
    write_ct(tmp_path, body(), AFFINE, tags={"ConvolutionKernel": "BONE"})
    np.testing.assert_array_equal(read_volume(tmp_path, notes=[]).array, body())


def test_errors_for_single_slices_and_pictures_name_the_cure(tmp_path):
    path = write_ct(tmp_path / "ct", body(), AFFINE)[0]
    with pytest.raises(DataError, match="one slice of a series; give the folder"):
        read_volume(path)
    with pytest.raises(DataError, match="no series to take: series 99 .* it is no CT: Secondary Capture"):
        read_volume(write_capture(tmp_path / "picture.dcm", "1.2.3"))
    with pytest.raises(DataError, match="holds no DICOM image .*Comprehensive SR"):
        read_volume(write_report(tmp_path / "dose.dcm", "1.2.3"))


def test_damaged_files_are_left_out_and_counted(tmp_path):
    paths = write_ct(tmp_path, body(), AFFINE)
    paths[-1].write_bytes(paths[-1].read_bytes()[:800])
    notes: list[str] = []
    assert read_volume(tmp_path, notes=notes).array.shape[0] == 6
    assert notes == ["1 DICOM file with a damaged header left out"]


def test_dicom_folders_are_exams_of_data_directories_and_commands(tmp_path):
    write_ct(tmp_path / "a", body(), AFFINE)
    write_ct(tmp_path / "b" / "dicom", body(), AFFINE)
    found = {exam.id: exam.ct for exam in find_exams(tmp_path).exams}
    assert found == {"a": tmp_path / "a", "b": tmp_path / "b"}
    for ct in found.values():
        np.testing.assert_array_equal(read_volume(ct, notes=[]).array, body())
    named = named_exams([tmp_path])
    assert {name: exam.ct for name, exam in named.items()} == found
    assert {exam.kind for exam in named.values()} == {Kind.DICOM}
    assert [exam.ct for exam in named_exams([tmp_path / "a"]).values()] == [tmp_path / "a"]
