"""Prepare real exams (DICOM, RTSTRUCT in an archive, NIfTI), and train on the dataset."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from prepare_here import prepare_here
from real_exams import real

from deepatlas.exams.read import read_volume
from deepatlas.intake.dataset.check import check_dataset
from deepatlas.intake.dataset.folder import Dataset

pytestmark = pytest.mark.slow(3)
LONG = bool(os.environ.get("DEEPATLAS_LONG_TESTS"))


@pytest.fixture(scope="module")
def data() -> Path:
    return real("openkbp/train").parents[1]


@pytest.fixture(scope="module")
def prepared(data, tmp_path_factory):
    """Three head-and-neck CTs, the trunk and its DICOM series; in the long form also the thorax with its RTSTRUCT."""
    src = tmp_path_factory.mktemp("real") / "src"
    (src / "openkbp").mkdir(parents=True)
    shutil.copy(data / "openkbp" / "labels.json", src / "openkbp" / "labels.json")
    for exam in ("pt_1", "pt_10", "pt_100"):
        (src / "openkbp" / exam).symlink_to(data / "openkbp" / "train" / exam)
    (src / "trunk").symlink_to(data / "totalsegmentator")
    if LONG:
        (src / "thorax").symlink_to(data / "lung1")
    summary = prepare_here(src, src.parent / "dst", histograms=True, keep_ids=True)
    assert not summary.refused
    return summary


def test_every_exam_goes_in_as_it_is(prepared, data):
    dataset = Dataset(prepared.dataset)
    names = {"openkbp_pt_1", "openkbp_pt_10", "openkbp_pt_100", "trunk", "trunk_dicom"}
    assert set(dataset.ids) == (names | {"LUNG1-003"} if LONG else names)
    assert check_dataset(prepared.dataset) == []
    exam = dataset.exam("openkbp_pt_1")
    image = nib.load(data / "openkbp" / "train" / "pt_1" / "ct.nii.gz")
    np.testing.assert_array_equal(exam.volume().array, np.rint(image.get_fdata()).transpose(2, 1, 0))
    np.testing.assert_allclose(exam.grid.affine, image.affine, atol=1e-4)
    seg = read_volume(data / "openkbp" / "train" / "pt_1" / "seg.nii.gz", labels=True)
    np.testing.assert_array_equal(exam.labels().array, seg.array)
    series = dataset.exam("trunk_dicom")
    assert series.grid.shape == (20, 512, 512) and series.facts["format"] == "dicom"
    assert (prepared.dataset / "report.html").stat().st_size < 1_000_000


@pytest.mark.skipif(not LONG, reason="unpacks and trains; DEEPATLAS_LONG_TESTS=1 runs it")
def test_the_thorax_has_its_lungs_and_training_starts(prepared, tmp_path):
    from deepatlas.train.__main__ import main

    thorax = Dataset(prepared.dataset).exam("LUNG1-003")
    assert thorax.grid.shape[1:] == (512, 512) and {"lung_l", "lung_r", "heart"} <= set(thorax.present)
    litres = (thorax.labels().array == thorax.names["lung_r"]).sum() * thorax.grid.voxel_volume / 1e6
    assert 1 < litres < 5
    steps = ["train.steps=[2,2]", "coarse.steps=2"]
    assert not main(
        ["--data", str(prepared.dataset), "--preset", "tiny", "--out", str(tmp_path / "run"), *steps]
    )
    assert (tmp_path / "run" / "model.pt").is_file()
