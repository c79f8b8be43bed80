"""What the objects of the public face show of themselves: one useful line; and a volume that writes itself."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from affine_model import GRIDS, AffineModel, exam
from small_exams import body, oblique, write_cohort

import deepatlas
from deepatlas.exams.read import read_volume
from deepatlas.space.grid import Grid


def line(thing: object) -> str:
    text = repr(thing)
    assert "\n" not in text and len(text) < 250
    return text


def test_volumes_and_grids_tell_shape_spacing_and_axes(cohort_dir):
    ct = read_volume(cohort_dir / "e1" / "ct.nii.gz")
    text = line(ct)
    assert text.startswith("Volume(float32 on Grid(40 x 40 x 24 voxels of 4 x 4 x 5 mm, axes RAS)")
    assert str(cohort_dir / "e1") in text


@pytest.mark.parametrize("seed", range(8))
def test_the_axes_of_a_grid_are_those_that_nibabel_tells(seed):
    grid = oblique(np.random.default_rng(seed), angle=0.2)
    assert grid.axes == "".join(nibabel.aff2axcodes(grid.affine))


def test_a_model_its_template_and_its_results_are_told_in_a_line():
    model = deepatlas.load("headneck")
    text = line(model)
    assert text.startswith(f"Model({model.fingerprint}, preset headneck, input 64³, atlas ") and "cpu" in text
    assert "refine=3" in line(deepatlas.load("headneck", refine=3))
    template = deepatlas.Template.load("headneck")
    text = line(template)
    assert "7 structures (Brainstem, SpinalCord, RightParotid, LeftParotid, …)" in text
    assert f"for model {model.fingerprint}" in text


def test_results_tell_how_well_the_model_knows_the_exam():
    ct, _ = exam(GRIDS["coarse"], "e1")
    found = deepatlas.locate(AffineModel(), [[0, 0, 0], [1e4, 0, 0]], ct, ct)
    assert line(found).startswith("Located(1 of 2 points found, Fit(")
    assert line(deepatlas.Fit(0.706, 0.4)) == "Fit(0.71, known)"
    assert line(deepatlas.Fit(0.1, 0.4)) == "Fit(0.10, not known)"
    labels = deepatlas.Segmentation(
        np.zeros((2, 3, 4), np.uint8), Grid((2, 3, 4), np.eye(4)), "a", fit=deepatlas.Fit(0.5)
    )
    assert line(labels) == (
        "Segmentation(uint8 on Grid(4 x 3 x 2 voxels of 1 x 1 x 1 mm, axes RAS), Fit(0.50, no threshold), 'a')"
    )


def test_a_cohort_tells_its_exams(tmp_path):
    cohort = deepatlas.find_exams(write_cohort(tmp_path / "d"))
    assert line(cohort) == f"Cohort({str(tmp_path / 'd')!r}, 3 exams, 2 labelled, 2 structures)"


def test_a_volume_writes_itself(tmp_path):
    ct, _ = body()
    assert ct.save(tmp_path / "a.nii.gz") == tmp_path / "a.nii.gz"
    image = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(image.get_fdata().transpose(2, 1, 0), ct.array)
    np.testing.assert_allclose(image.affine, ct.grid.affine, atol=1e-4)
    with pytest.raises(deepatlas.DataError, match="cannot write this kind of file"):
        ct.save(tmp_path / "a.png")
