"""Surface distances and HD95 against MONAI, DeepMind's surface-distance package and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ragged_masks import SPACING, blobs
from scipy.spatial import cKDTree

from deepatlas.errors import DeepAtlasError
from deepatlas.evaluate.metrics.hd95 import hausdorff95
from deepatlas.evaluate.metrics.surface import surface, surface_distances


def brute_force(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directed distances by nearest neighbours, with the surface found voxel by voxel."""
    clouds = []
    for mask in (a, b):
        padded = np.pad(mask, 1)
        points = []
        for z, y, x in np.argwhere(padded):
            neighbours = [padded[z + dz, y + dy, x + dx] for dz, dy, dx in
                          ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))]  # fmt: skip
            if not all(neighbours):
                points.append((x * SPACING[0], y * SPACING[1], z * SPACING[2]))
        clouds.append(np.array(points))
    return cKDTree(clouds[1]).query(clouds[0])[0], cKDTree(clouds[0]).query(clouds[1])[0]


@pytest.mark.parametrize("seed", range(4))
def test_distances_equal_those_of_brute_force(seed):
    a, b = blobs(seed)
    got, want = surface_distances(a, b, SPACING), brute_force(a, b)
    np.testing.assert_allclose(np.sort(got.from_reference), np.sort(want[0]), rtol=1e-9)
    np.testing.assert_allclose(np.sort(got.from_prediction), np.sort(want[1]), rtol=1e-9)
    there, back = np.percentile(want[0], 95), np.percentile(want[1], 95)
    assert hausdorff95(a, b, SPACING) == pytest.approx((there + back) / 2)
    assert hausdorff95(a, b, SPACING, "max") == pytest.approx(max(there, back))
    assert hausdorff95(a, b, SPACING, "pooled") == pytest.approx(np.percentile(np.concatenate(want), 95))


@pytest.mark.parametrize("seed", range(4))
def test_the_max_convention_equals_monais(seed):
    monai = pytest.importorskip("monai.metrics")
    import torch

    a, b = blobs(seed)
    want = monai.compute_hausdorff_distance(
        torch.from_numpy(b)[None, None], torch.from_numpy(a)[None, None], include_background=True,
        percentile=95, spacing=SPACING[::-1],
    )  # fmt: skip
    assert hausdorff95(a, b, SPACING, "max") == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_hd95_is_within_a_voxel_of_deepminds(seed):
    """DeepMind's surfaces run between voxels and are weighted by area, so the two agree only to about one voxel."""
    package = pytest.importorskip("surface_distance")
    a, b = blobs(seed)
    distances = package.compute_surface_distances(a, b, SPACING[::-1])
    want = package.compute_robust_hausdorff(distances, 95)
    assert hausdorff95(a, b, SPACING, "max") == pytest.approx(want, abs=max(SPACING))


def test_hd95_of_a_shifted_box_is_the_shift_in_mm():
    a = np.zeros((10, 20, 30), bool)
    a[3:7, 5:12, 8:20] = True
    for axis, step in ((2, SPACING[0]), (1, SPACING[1]), (0, SPACING[2])):
        shifted = np.roll(a, 2, axis=axis)
        for convention in ("mean", "max", "pooled"):
            assert hausdorff95(a, shifted, SPACING, convention) == pytest.approx(2 * step)
    assert hausdorff95(a, a, SPACING) == 0


def test_conventions_differ_where_only_one_mask_has_a_far_piece():
    """Only the distances from the prediction see a far piece that only the prediction has."""
    a = np.zeros((8, 40, 60), bool)
    a[2:6, 10:20, 5:15] = True
    b = a.copy()
    b[2:6, 10:20, 45:50] = True
    mean, peak = (hausdorff95(a, b, (1, 1, 1), c) for c in ("mean", "max"))
    assert peak == pytest.approx(35, abs=1) and mean == pytest.approx(peak / 2)


def test_a_mask_at_the_edge_of_the_array_has_a_surface_there():
    full = np.ones((4, 5, 6), bool)
    inner = surface(full)
    assert inner.sum() == 4 * 5 * 6 - 2 * 3 * 4 and not inner[1:-1, 1:-1, 1:-1].any()


def test_two_empty_masks_have_no_distance_and_one_has_an_infinite_distance():
    a, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    assert math.isnan(hausdorff95(empty, empty, SPACING))
    for pair in ((a, empty), (empty, a)):
        assert hausdorff95(*pair, SPACING) == hausdorff95(*pair, SPACING, "pooled") == math.inf


def test_wrong_arguments_are_named():
    a = np.ones((3, 3, 3), bool)
    with pytest.raises(DeepAtlasError, match=r"surface_distances: .*\(3, 3, 3\) and \(3, 3, 4\)"):
        hausdorff95(a, np.ones((3, 3, 4)), SPACING)
    with pytest.raises(DeepAtlasError, match="one of mean, max, pooled, got 'median'"):
        hausdorff95(a, a, SPACING, "median")
    for bad in ((1, 1), (0, 1, 1), (1, float("nan"), 1)):
        with pytest.raises(DeepAtlasError, match="three positive mm"):
            hausdorff95(a, a, bad)
