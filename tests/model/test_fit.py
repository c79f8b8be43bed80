"""How well a model knows an exam, and the threshold that its training cohort gives."""

import math
import warnings

import numpy as np
import pytest
import torch
from real_exams import real

import deepatlas
import deepatlas_ops as ops
from deepatlas.model.fit import Fit, UnknownExamWarning, fit, fit_threshold
from deepatlas.nn import Atlas
from deepatlas.space.affine import affine_coords


def atlas_and_identity(size=24):
    atlas = Atlas(size)
    atlas.values.data = torch.rand(1, 1, size, size, size, generator=torch.Generator().manual_seed(0))
    atlas.requires_grad_(False)
    return atlas, affine_coords(torch.eye(3, 4)[None], (size,) * 3)


def test_an_exam_that_is_the_warped_atlas_fits_and_noise_does_not():
    atlas, identity = atlas_and_identity()
    mask = torch.ones(1, 1, 24, 24, 24)
    assert fit(identity, atlas.values, mask, atlas).item() == pytest.approx(1, abs=1e-3)
    # Other units of intensity do not matter, and neither does what lies outside the mask.
    assert fit(identity, 0.2 + 0.5 * atlas.values, mask, atlas).item() == pytest.approx(1, abs=1e-3)
    noise = torch.rand(atlas.values.shape, generator=torch.Generator().manual_seed(1))
    assert abs(fit(identity, noise, mask, atlas).item()) < 0.1
    assert fit(identity, noise, torch.zeros_like(mask), atlas).item() == 0


def test_the_fit_is_the_correlation_in_windows_of_nine_voxels():
    atlas, identity = atlas_and_identity()
    mask = torch.zeros(1, 1, 24, 24, 24)
    mask[..., 10:14, 10:14, 10:14] = 1
    image = torch.rand(atlas.values.shape, generator=torch.Generator().manual_seed(2))
    image = 0.5 * image + 0.5 * atlas.values
    want = []
    for z, y, x in (mask[0, 0] > 0).nonzero().tolist():
        box = (0, 0, slice(z - 4, z + 5), slice(y - 4, y + 5), slice(x - 4, x + 5))
        inside = mask[box].numpy().astype(bool)
        pair = [t[box].numpy()[inside] for t in (atlas.values, image)]
        want.append(np.corrcoef(*pair)[0, 1])
    assert fit(identity, image, mask, atlas).item() == pytest.approx(np.mean(want), abs=2e-3)


def test_a_batch_gives_the_fits_of_its_exams_and_smaller_grids_are_used_as_they_are():
    atlas, identity = atlas_and_identity()
    images = torch.rand(2, 1, 24, 24, 24, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 1, 24, 24, 24)
    coords = torch.cat([identity, ops.resize(identity, (12,) * 3).flip(0).repeat(1, 1, 2, 2, 2)])
    both = fit(coords, images, mask, atlas)
    alone = [fit(coords[i : i + 1], images[i : i + 1], mask[:1], atlas).item() for i in range(2)]
    assert both.tolist() == pytest.approx(alone, abs=1e-6)


def test_the_threshold_is_the_outer_fence_of_the_training_cohort():
    fits = np.linspace(0.7, 0.8, 101)
    assert fit_threshold(fits) == pytest.approx(0.725 - 3 * 0.05)
    # A few exams that the model does not know do not move it far, and it is never negative.
    assert fit_threshold([*fits, 0.1, 0.05, math.nan]) == pytest.approx(0.575, abs=0.01)
    assert fit_threshold([-0.9, -0.5, 0.0, 0.5]) == 0
    assert fit_threshold([0.7, 0.8, 0.9]) is None and fit_threshold([]) is None


def test_what_is_written_about_a_fit():
    assert Fit(0.7, 0.5).to_dict() == {"fit": 0.7, "known": True, "notes": []}
    assert Fit(0.3, 0.5).to_dict() == {"fit": 0.3, "known": False, "notes": []}
    assert Fit(0.3, notes=("odd",)).to_dict() == {"fit": 0.3, "known": None, "notes": ["odd"]}
    assert Fit(math.nan, 0.5).to_dict() == {"fit": None, "known": False, "notes": []}
    assert Fit(0.3, 0.5).warning("e7").startswith("e7: the model does not know such an exam (fit 0.30")


@pytest.mark.slow(6)
def test_headneck_knows_heads_and_necks_and_no_other_body():
    trunk, validation = real("trunk"), real("openkbp/validation")
    model = deepatlas.load("headneck", "cpu")
    assert 0.45 < model.fit_threshold < 0.65
    template = deepatlas.Template.load("headneck")
    for name in ("thorax_LIDC-IDRI-0001", "abdpelvis_TCGA-09-2043"):
        with pytest.warns(UnknownExamWarning, match="the model does not know such an exam"):
            labels = model.segment(trunk / name / "ct.nii.gz", template)
        assert labels.fit.known is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The lowest of the good exams: a short field of view.
        labels = model.segment(validation / "pt_226" / "ct.nii.gz", template)
    assert labels.fit.known is True and labels.array.any()
    assert model.fit(validation / "pt_222" / "ct.nii.gz").value == pytest.approx(0.845, abs=0.01)


def test_strict_refuses_an_exam_that_is_not_known_and_no_other():
    with pytest.raises(deepatlas.DataError, match="e7: the model does not know such an exam"):
        Fit(0.3, 0.5).warning("e7", strict=True)
    assert Fit(0.6, 0.5).warning("e7", strict=True) == Fit(0.3).warning("e7", strict=True) == ""


def test_a_fit_just_below_the_threshold_is_still_told_after_it_was_written():
    about = Fit(0.56049, 0.5605).to_dict()
    assert about["known"] is False and Fit(about["fit"], 0.5605).warning("e7")
