"""Dice and HD95 against MONAI, DeepMind's surface-distance and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree

from deepatlas.errors import DeepAtlasError
from deepatlas.evaluate.metrics.hd95 import dice, hausdorff95, surface, surface_distances

SPACING = (0.8, 1.5, 3.1)  # x, y, z mm


def blobs(seed: int, shape=(14, 22, 26)) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping, ragged ellipsoids."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    masks = []
    for _ in range(2):
        centre = np.array(shape) / 2 + rng.normal(size=3) * 1.5
        radii = np.array(shape) * rng.uniform(0.2, 0.33, size=3)
        masks.append((((grid - centre) / radii) ** 2).sum(-1) + 0.25 * rng.normal(size=shape) < 1)
    return masks[0], masks[1]


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
def test_distances_are_those_of_brute_force(seed):
    a, b = blobs(seed)
    got, want = surface_distances(a, b, SPACING), brute_force(a, b)
    np.testing.assert_allclose(np.sort(got.from_reference), np.sort(want[0]), rtol=1e-9)
    np.testing.assert_allclose(np.sort(got.from_prediction), np.sort(want[1]), rtol=1e-9)
    there, back = np.percentile(want[0], 95), np.percentile(want[1], 95)
    assert hausdorff95(a, b, SPACING) == pytest.approx((there + back) / 2)
    assert hausdorff95(a, b, SPACING, "max") == pytest.approx(max(there, back))
    assert hausdorff95(a, b, SPACING, "pooled") == pytest.approx(np.percentile(np.concatenate(want), 95))


@pytest.mark.parametrize("seed", range(4))
def test_the_max_convention_is_monais(seed):
    monai = pytest.importorskip("monai.metrics")
    import torch

    a, b = blobs(seed)
    want = monai.compute_hausdorff_distance(
        torch.from_numpy(b)[None, None], torch.from_numpy(a)[None, None], include_background=True,
        percentile=95, spacing=SPACING[::-1],
    )  # fmt: skip
    assert hausdorff95(a, b, SPACING, "max") == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_close_to_deepminds_surfels(seed):
    """Its surfaces run between voxels and weigh by area, so the two agree within about one voxel only."""
    package = pytest.importorskip("surface_distance")
    a, b = blobs(seed)
    distances = package.compute_surface_distances(a, b, SPACING[::-1])
    want = package.compute_robust_hausdorff(distances, 95)
    assert hausdorff95(a, b, SPACING, "max") == pytest.approx(want, abs=max(SPACING))


def test_a_known_shift_in_mm():
    a = np.zeros((10, 20, 30), bool)
    a[3:7, 5:12, 8:20] = True
    for axis, step in ((2, SPACING[0]), (1, SPACING[1]), (0, SPACING[2])):
        shifted = np.roll(a, 2, axis=axis)
        for convention in ("mean", "max", "pooled"):
            assert hausdorff95(a, shifted, SPACING, convention) == pytest.approx(2 * step)
    assert hausdorff95(a, a, SPACING) == 0


def test_the_conventions_differ_when_the_masks_do():
    """A far piece that only the prediction has: one direction sees it, the other does not."""
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


def test_empty_masks():
    a, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    assert math.isnan(dice(empty, empty)) and math.isnan(hausdorff95(empty, empty, SPACING))
    for pair in ((a, empty), (empty, a)):
        assert dice(*pair) == 0 and hausdorff95(*pair, SPACING) == math.inf
        assert hausdorff95(*pair, SPACING, "pooled") == math.inf


def test_dice():
    a, b = np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int)
    a[0], b[0, :2] = 1, 7
    assert dice(a, b) == pytest.approx(2 * 8 / (16 + 8))
    assert dice(a, a) == 1


def test_nonsense_is_named():
    a = np.ones((3, 3, 3), bool)
    with pytest.raises(DeepAtlasError, match=r"dice: .*\(3, 3, 3\) and \(3, 3, 4\)"):
        dice(a, np.ones((3, 3, 4)))
    with pytest.raises(DeepAtlasError, match="one of mean, max, pooled, got 'median'"):
        hausdorff95(a, a, SPACING, "median")
    for bad in ((1, 1), (0, 1, 1), (1, float("nan"), 1)):
        with pytest.raises(DeepAtlasError, match="three positive mm"):
            hausdorff95(a, a, bad)
