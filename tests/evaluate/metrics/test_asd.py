"""The average symmetric surface distance against MONAI and SimpleITK."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ragged_masks import SPACING, blobs

from deepatlas.evaluate.metrics.asd import asd_metric, average_surface_distance
from deepatlas.evaluate.metrics.masks import MaskPair, MetricSettings
from deepatlas.space.grid import Grid


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_monais_on_an_anisotropic_grid(seed):
    monai = pytest.importorskip("monai.metrics")
    import torch

    a, b = blobs(seed)
    want = monai.compute_average_surface_distance(
        torch.from_numpy(b)[None, None], torch.from_numpy(a)[None, None], include_background=True,
        symmetric=True, spacing=SPACING[::-1],
    )  # fmt: skip
    assert average_surface_distance(a, b, SPACING) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_it_equals_the_mean_of_simpleitks_distance_maps(seed):
    sitk = pytest.importorskip("SimpleITK")
    images = []
    for mask in blobs(seed):
        # A margin, because to SimpleITK the edge of the image is no surface.
        image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
        image.SetSpacing(SPACING)
        images.append(image)
    contours = [sitk.LabelContour(image, fullyConnected=False) for image in images]
    found = []
    for ours, other in (contours, contours[::-1]):
        away = sitk.SignedMaurerDistanceMap(other, squaredDistance=False, useImageSpacing=True)
        away = np.abs(sitk.GetArrayFromImage(away))
        found.append(away[sitk.GetArrayFromImage(ours) > 0])
    want = float(np.concatenate(found).mean())
    a, b = blobs(seed)
    assert average_surface_distance(a, b, SPACING) == pytest.approx(want, rel=1e-4)


def test_a_missed_structure_is_infinitely_far_and_two_empty_masks_have_no_distance():
    a, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    assert (
        average_surface_distance(a, empty, SPACING) == average_surface_distance(empty, a, SPACING) == math.inf
    )
    assert math.isnan(average_surface_distance(empty, empty, SPACING))
    assert average_surface_distance(a, a, SPACING) == 0


def test_the_column_uses_the_spacing_of_the_grid():
    a, b = blobs(1)
    masks = MaskPair(a, b, Grid(a.shape, np.diag([*SPACING, 1.0])))
    assert asd_metric(masks, MetricSettings()) == average_surface_distance(a, b, SPACING)
