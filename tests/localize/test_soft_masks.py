"""Soft masks on an exam's own grid, against the template sampled voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from affine_model import GRIDS, LABELS, SCALE, AffineModel, exam, world
from scipy import ndimage

from deepatlas.errors import DeepAtlasError
from deepatlas.localize import soft_masks as module
from deepatlas.localize.segment import Segmentation, segment
from deepatlas.localize.soft_masks import soft_masks
from deepatlas.localize.template.estimate import LabelledExam, estimate_template
from deepatlas.model.fit import Fit
from deepatlas.model.structures import ExamProbabilities, Structures
from deepatlas.space.grid import Grid
from deepatlas.space.labels import Labels


@pytest.fixture(scope="module")
def segmented():
    model, (ct, seg) = AffineModel(), exam(GRIDS["coarse"])
    template = estimate_template(
        [LabelledExam(model.map_exam(ct).field, seg)], LABELS, 64, meta={"model": model.fingerprint}
    )
    ct, _ = exam(GRIDS["sagittal"])
    return template, segment(model, ct, template)


def test_a_voxel_has_the_template_s_value_at_its_coordinate(segmented):
    template, found = segmented
    # The model's coordinate of a place is the place divided by SCALE.
    index = (world(found.grid) / SCALE + 1) / 2 * (np.array(template.masks.shape[:0:-1]) - 1)
    got = dict(found.soft_masks())
    assert list(got) == list(template.names)
    for row, name in enumerate(template.names):
        want = ndimage.map_coordinates(
            template.masks[row], np.moveaxis(index, -1, 0)[::-1], order=1, mode="nearest"
        )
        assert got[name].dtype == np.uint8 and got[name].max() > 240
        # Outside the body nothing is kept; inside, uint8 rounds, and the coordinates come from a grid of 4.5 mm.
        inside = got[name] > 0
        assert np.abs(got[name][inside] / 255 - want.clip(0, 1)[inside]).max() < 0.02
        assert (want[~inside] < 0.02).mean() > 0.99


def test_voxels_above_the_threshold_are_those_of_the_label_image(segmented):
    template, found = segmented
    got = dict(found.soft_masks())
    for name, level in zip(template.names, template.thresholds, strict=True):
        above = got[name] >= round(level * 255)
        label = found.mask(template.labels[name])
        assert (above != label).mean() < 1e-3 and label.any()


def test_structures_in_groups_give_the_same(segmented, monkeypatch):
    _, found = segmented
    want = dict(found.soft_masks())
    monkeypatch.setattr(module, "_HELD", 1)
    for name, mask in found.soft_masks():
        np.testing.assert_array_equal(mask, want[name])


def test_probabilities_of_a_supervised_model_are_interpolated():
    grid = Grid.from_spacing((8, 8, 8), 4.0)
    ramp = torch.linspace(0, 1, 8).expand(8, 8, 8)
    probabilities = torch.stack([ramp, 1 - ramp, torch.zeros(8, 8, 8)])
    what = Structures(("a", "b", "c"), (1, 2, 3), (0.1,) * 3).select(["b", "a"])
    said = ExamProbabilities(probabilities, grid, None, np.ones((8, 8, 8), dtype=bool), Fit(np.nan))
    fine = Grid.from_spacing((15, 15, 15), 2.0)
    got = dict(soft_masks(said, what, fine))
    assert list(got) == ["b", "a"]
    np.testing.assert_allclose(got["a"][7, 7], np.linspace(0, 255, 15), atol=0.51)
    np.testing.assert_allclose(got["b"][7, 7], np.linspace(255, 0, 15), atol=0.51)


def test_labels_without_a_model_have_none():
    empty = Labels(np.zeros((4, 4, 4), np.uint8), Grid.from_spacing((4, 4, 4)))
    with pytest.raises(DeepAtlasError, match="no model made them"):
        Segmentation(empty.array, empty.grid, "e").soft_masks()
