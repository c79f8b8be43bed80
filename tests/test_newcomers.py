"""Small things that somebody new trips over."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from affine_model import AffineModel
from prepare_here import prepare_here
from small_exams import body, one_line, write_cohort

from deepatlas.api import Model
from deepatlas.cli import main as cli
from deepatlas.errors import DataError
from deepatlas.exams.cohort import find_exams
from deepatlas.exams.outputs import files_of_exams
from deepatlas.exams.read import read_volume
from deepatlas.intake.run import work
from deepatlas.io.codec import write_volume
from deepatlas.localize.template.build import build_template
from deepatlas.space.check_input import check_input
from deepatlas.space.grid import Grid
from deepatlas.space.hounsfield import hounsfield
from deepatlas.space.spacing import odd_spacing
from deepatlas.space.volume import Volume


def test_names_in_capitals_are_read(tmp_path):
    root = write_cohort(tmp_path / "data", 2)
    (root / "e1" / "ct.nii.gz").rename(root / "e1" / "CT.NII.GZ")
    (root / "e1" / "seg.nii.gz").rename(root / "e1" / "Seg.Nii.gz")
    cohort = find_exams(root)
    assert [e.id for e in cohort.exams] == ["e1", "e2"] and not cohort.skipped
    exam = cohort.exam("e1")
    assert exam.ct.name == "CT.NII.GZ" and exam.seg.name == "Seg.Nii.gz"
    ct, _ = body(seed=1)
    np.testing.assert_array_equal(read_volume(exam.ct).array, np.rint(ct.array))
    assert exam.seg in files_of_exams([exam])
    shutil.copy(root / "e2" / "ct.nii.gz", root / "e1" / "ct.nii.gz")
    assert "more than one image (CT.NII.GZ, ct.nii.gz)" in find_exams(root).skipped["e1"]


@pytest.mark.parametrize("what", ["empty", "words", "broken", "names"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_prepare_that_fails_leaves_nothing(tmp_path, what, deep):
    src = tmp_path / "src"
    src.mkdir()
    options = {}
    if what == "words":
        (src / "a.txt").write_text("x")
    elif what == "broken":
        (src / "ct.nii.gz").write_bytes(b"x")
    elif what == "names":
        write_cohort(src, 1)
        options["names"] = tmp_path / "names.json"
        options["names"].write_text("no JSON")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError):
        prepare_here(src, tmp_path / "new" / "dst" if deep else tmp_path / "dst", **options)
    if what == "broken":
        # What was read and refused stays beside it, in the private folder.
        assert not list(tmp_path.rglob("dst")) and len(list(tmp_path.rglob("refused.csv"))) == 1
    else:
        assert sorted(tmp_path.rglob("*")) == before


def test_what_took_long_to_read_stays_for_the_next_run_and_so_does_an_empty_folder_of_the_user(tmp_path):
    src = write_cohort(tmp_path / "src", 2)
    (tmp_path / "dst").mkdir()
    with pytest.raises(DataError, match="no such exam in the source"):
        prepare_here(src, tmp_path / "dst", series={"nobody": "5"})
    assert (tmp_path / "dst").is_dir() and list((tmp_path / "dst.private").glob("headers-*"))
    assert prepare_here(src, tmp_path / "dst").exams == 2


def test_a_prepare_that_fails_later_keeps_what_is_done(tmp_path, monkeypatch):
    src = write_cohort(tmp_path / "src", 2)
    make, done = work.prepare_exam, []

    def fail(job):
        if done:
            raise DataError("the disk is full")
        done.append(job)
        return make(job)

    with monkeypatch.context() as patch, pytest.raises(DataError, match="disk is full"):
        patch.setattr(work, "prepare_exam", fail)
        prepare_here(src, tmp_path / "dst")
    assert prepare_here(src, tmp_path / "dst").made == 1


def test_a_segment_that_fails_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Model, "load", lambda *_, **__: AffineModel())
    root = write_cohort(tmp_path / "data", 2)
    build_template(AffineModel(), root, ["e1"], size=32).save(tmp_path / "t.h5")
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"x" * 400)
    argv = ["segment", "--model", "m", "--template", str(tmp_path / "t.h5"), "--out", str(tmp_path / "o")]
    for strict in ([], ["--strict"]):
        assert cli.main([*argv, str(bad), *strict]) == 1
        assert not (tmp_path / "o").exists()
    assert cli.main([*argv, str(bad), str(root / "e1")]) == 1
    assert json.loads((tmp_path / "o" / "labels.json").read_text()) == {"bone": 1, "lung": 2}


def test_loose_images_point_to_the_layout_and_to_prepare(tmp_path):
    root = write_cohort(tmp_path / "data", 1)
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("a", "b"):
        shutil.copy(root / "e1" / "ct.nii.gz", flat / f"{name}.nii.gz")
    with pytest.raises(DataError) as error:
        find_exams(flat)
    text = one_line(error.value)
    assert "holds 2 loose image(s) (a.nii.gz …)" in text
    assert "<root>/<exam>/ct.nii.gz" in text and "deepatlas prepare" in text


@pytest.mark.parametrize(
    ("spacing", "odd"),
    [
        ((0.001, 0.001, 0.003), "metres"), ((0.7, 0.7, 0.02), "metres"), ((700.0, 700.0, 3000.0), "another unit"),
        ((0.08, 0.08, 0.08), ""), ((5.0, 5.0, 20.0), ""), ((0.976, 0.976, 10.0), ""),
    ],
)  # fmt: skip
def test_spacings_that_no_scanner_gives_are_named(spacing, odd):
    lines = odd_spacing(Grid.from_spacing((10, 10, 10), spacing))
    assert len(lines) == bool(odd) and all(odd in line for line in lines)


def test_an_exam_in_metres_has_a_note():
    ct, _ = body(spacing=(0.004, 0.004, 0.005))
    _, notes = check_input(ct)
    assert any("its voxels are 0.004 x 0.004 x 0.005 mm (x, y, z)" in note for note in notes)
    assert not any("its voxels are" in note for note in check_input(body()[0])[1])


def test_zero_has_no_sign(tmp_path):
    zero = Volume(np.full((8, 8, 8), -0.0, np.float32), Grid.from_spacing((8, 8, 8)))
    with pytest.raises(DataError, match="every voxel is 0, so"):
        read_volume(write_volume(tmp_path / "ct.nii.gz", zero))
    with pytest.raises(DataError, match="every voxel is 0, so"):
        hounsfield(zero)
