"""Surface Dice against MONAI and DeepMind's surface-distance package."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ragged_masks import SPACING, blobs

from deepatlas.errors import DeepAtlasError
from deepatlas.evaluate.metrics.masks import MaskPair, MetricSettings
from deepatlas.evaluate.metrics.surface_dice import surface_dice, surface_dice_metric
from deepatlas.space.grid import Grid


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance", [0.0, 1.5, 3.0])
def test_it_equals_monais_on_an_anisotropic_grid(seed, tolerance):
    monai = pytest.importorskip("monai.metrics")
    import torch

    a, b = blobs(seed)
    want = monai.compute_surface_dice(
        torch.from_numpy(b)[None, None], torch.from_numpy(a)[None, None], [tolerance],
        include_background=True, spacing=SPACING[::-1],
    )  # fmt: skip
    assert surface_dice(a, b, SPACING, tolerance) == pytest.approx(float(want), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_a_little_below_deepminds_which_weighs_by_area(seed):
    """DeepMind's surfaces run between voxels, so that two of them are closer than the voxels are."""
    package = pytest.importorskip("surface_distance")
    a, b = blobs(seed)
    distances = package.compute_surface_distances(a, b, SPACING[::-1])
    want = package.compute_surface_dice_at_tolerance(distances, 3.0)
    assert want - 0.1 < surface_dice(a, b, SPACING, 3.0) < want


def test_a_shift_counts_up_to_the_tolerance_and_not_beyond():
    a = np.zeros((8, 20, 30), bool)
    a[3:5, :, :] = True
    # Both faces of the slab move by 3.1 mm, and one face of either slab lies within the other one.
    moved = np.roll(a, 2, axis=0)
    assert surface_dice(a, moved, SPACING, 6.2) == 1
    assert surface_dice(a, moved, SPACING, 6.19) == 0.5
    assert surface_dice(a, moved, SPACING, 3.0) == 0
    assert surface_dice(a, a, SPACING, 0) == 1


def test_a_missed_structure_scores_nothing_and_two_empty_masks_have_no_score():
    a, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    assert surface_dice(a, empty, SPACING) == surface_dice(empty, a, SPACING, 1e9) == 0
    assert math.isnan(surface_dice(empty, empty, SPACING))


def test_the_column_uses_the_spacing_of_the_grid_and_the_tolerance_of_the_settings():
    a, b = blobs(0)
    masks = MaskPair(a, b, Grid(a.shape, np.diag([*SPACING, 1.0])))
    for tolerance in (1.0, 4.0):
        got = surface_dice_metric(masks, MetricSettings(tolerance_mm=tolerance))
        assert got == surface_dice(a, b, SPACING, tolerance)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_a_tolerance_that_is_no_distance_is_refused(bad):
    a = np.ones((3, 3, 3), bool)
    with pytest.raises(DeepAtlasError, match="tolerance must be a finite number of mm"):
        surface_dice(a, a, SPACING, bad)
