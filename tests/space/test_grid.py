"""Grids, against SimpleITK and nibabel."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from geometry_oracle import itk_image
from hypothesis import given, settings
from hypothesis import strategies as st
from small_exams import oblique

from deepatlas.errors import DataError
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

SEEDS = range(6)


def empty_image(grid: Grid) -> sitk.Image:
    return itk_image(np.zeros(grid.shape, np.uint8), grid)


@pytest.mark.parametrize("seed", SEEDS)
def test_points_agree_with_simpleitk_and_nibabel(seed):
    rng = np.random.default_rng(seed)
    grid = oblique(rng, angle=1.0)
    points = rng.uniform(0, 19, size=(5, 3))
    world = grid.voxel_to_world(points)
    image = empty_image(grid)
    itk = [image.TransformContinuousIndexToPhysicalPoint(p.tolist()) for p in points]
    np.testing.assert_allclose(world * [-1, -1, 1], itk, atol=1e-9)
    np.testing.assert_allclose(world, nib.affines.apply_affine(grid.affine, points), atol=1e-9)
    np.testing.assert_allclose(grid.world_to_voxel(world), points, atol=1e-9)
    np.testing.assert_allclose(grid.normalized_to_world(grid.world_to_normalized(world)), world, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_canonical_agrees_with_nibabel(seed):
    rng = np.random.default_rng(seed)
    grid = oblique(rng, shape=(5, 6, 7), angle=0.3)
    array = rng.integers(0, 100, size=grid.shape).astype(np.int16)
    expected = nib.as_closest_canonical(nib.Nifti1Image(array.transpose(2, 1, 0), grid.affine))
    volume = Volume(array, grid).canonical()
    np.testing.assert_array_equal(volume.array.transpose(2, 1, 0), np.asarray(expected.dataobj))
    np.testing.assert_allclose(volume.grid.affine, expected.affine, atol=1e-9)
    assert volume.grid.canonical()[1:] == ((0, 1, 2), ())


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    new=st.tuples(*[st.integers(1, 9)] * 3),
    seed=st.integers(0, 1000),
)
def test_resized_keeps_normalised_space(shape, new, seed):
    grid = oblique(np.random.default_rng(seed), shape=shape)
    resized = grid.resized(new)
    assert resized.shape == new
    coords = np.array([[-1, -1, -1], [0.3, -0.2, 0.9], [1, 1, 1]])
    np.testing.assert_allclose(
        resized.normalized_to_world(coords), grid.normalized_to_world(coords), atol=1e-8
    )
    np.testing.assert_allclose(grid.theta_from(resized), np.eye(3, 4), atol=1e-9)


def test_resized_keeps_the_corner_voxels():
    grid = oblique(np.random.default_rng(3))
    np.testing.assert_allclose(grid.resized((7, 50, 3)).corners(), grid.corners(), atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(kernel=st.tuples(*[st.integers(1, 4)] * 3), seed=st.integers(0, 1000))
def test_pooled_voxel_is_the_centre_of_its_block(kernel, seed):
    grid = oblique(np.random.default_rng(seed), shape=(9, 8, 11))
    pooled = grid.pooled(kernel)
    assert pooled.shape == tuple(n // k for n, k in zip(grid.shape, kernel, strict=True))
    block = np.array(list(np.ndindex(*kernel)))[:, ::-1]  # x, y, z
    for index in [(0, 0, 0), tuple(n - 1 for n in pooled.shape[::-1])]:
        members = grid.voxel_to_world(np.array(index) * kernel[::-1] + block)
        np.testing.assert_allclose(pooled.voxel_to_world(index), members.mean(0), atol=1e-9)


def test_pooling_moves_the_corner_inward_by_half_a_voxel():
    pooled = Grid.from_spacing((128,) * 3, 2.0).pooled(2)
    np.testing.assert_allclose(pooled.affine[:3, 3], [1.0, 1.0, 1.0])
    assert pooled.spacing == (4.0, 4.0, 4.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_crop_agrees_with_simpleitk(seed):
    grid = oblique(np.random.default_rng(seed))
    cropped = grid.cropped((2, 3, 4), (5, 6, 7))
    region = sitk.RegionOfInterest(empty_image(grid), [7, 6, 5], [4, 3, 2])
    np.testing.assert_allclose(cropped.affine[:3, 3] * [-1, -1, 1], region.GetOrigin(), atol=1e-9)
    np.testing.assert_allclose(cropped.spacing, region.GetSpacing(), atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_theta_maps_coordinates_of_the_target_to_the_grid(seed):
    rng = np.random.default_rng(seed)
    grid, target = oblique(rng), oblique(rng, shape=(4, 1, 6))
    coords = rng.uniform(-1, 1, size=(10, 3))
    theta = grid.theta_from(target)
    moved = coords @ theta[:, :3].T + theta[:, 3]
    np.testing.assert_allclose(grid.normalized_to_world(moved), target.normalized_to_world(coords), atol=1e-8)


def test_identity_coordinates_are_the_voxel_centres():
    grid = oblique(np.random.default_rng(0), shape=(3, 1, 4))
    coords = np.moveaxis(grid.identity(), 0, -1)
    assert coords.shape == (3, 1, 4, 3) and (coords[..., 1] == 0).all()
    voxels = np.array(list(np.ndindex(3, 1, 4)))[:, ::-1].reshape(3, 1, 4, 3)
    np.testing.assert_allclose(grid.normalized_to_world(coords), grid.voxel_to_world(voxels), atol=1e-4)


def test_measures_and_equality():
    grid = Grid.from_spacing((4, 5, 6), (1.0, 2.0, 3.0), origin=(7, 8, 9))
    assert grid.spacing == (1.0, 2.0, 3.0)
    assert grid.voxel_volume == pytest.approx(6.0)
    assert grid.extent == (6.0, 10.0, 12.0)
    assert grid == Grid((4, 5, 6), grid.affine.copy()) and hash(grid) == hash(Grid((4, 5, 6), grid.affine))
    assert grid != grid.pooled(2)
    moved = grid.affine.copy()
    moved[0, 3] += 0.05
    assert grid.matches(Grid(grid.shape, moved))
    moved[0, 3] += 0.5
    assert not grid.matches(Grid(grid.shape, moved))
    with pytest.raises(ValueError):
        grid.affine[0, 0] = 5


SHEARED = np.eye(4)
SHEARED[0, 1] = 0.2


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((4, 0, 4), np.eye(4), "holds no voxel"),
        ((4, 4, 4), np.eye(3), "4x4"),
        ((4, 4, 4), np.full((4, 4), np.nan), "NaN"),
        ((4, 4, 4), np.diag([1.0, 0.0, 1.0, 1.0]), "zero"),
        ((4, 4, 4), np.ones((4, 4)), "0 0 0 1"),
        ((4, 4, 4), SHEARED, "right angles.*resample"),
    ],
)
def test_impossible_grids_are_refused(shape, affine, message):
    with pytest.raises(DataError, match=message):
        Grid(shape, affine)


def test_impossible_operations_are_refused():
    grid = Grid.from_spacing((4, 4, 4))
    with pytest.raises(DataError, match="cannot pool"):
        grid.pooled(5)
    with pytest.raises(DataError, match="cannot resize"):
        grid.resized(0)
    with pytest.raises(ValueError, match="x, y, z"):
        grid.voxel_to_world([1.0, 2.0])
    with pytest.raises(ValueError, match="leaves the array"):
        Volume(np.zeros((4, 4, 4)), grid).cropped((2, 0, 0), (3, 4, 4))
    with pytest.raises(ValueError, match="on a grid of shape"):
        Volume(np.zeros((4, 4, 5)), grid)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", [2, (3, 1, 4)])
def test_a_divided_grid_is_pooled_to_itself(seed, kernel):
    grid = oblique(np.random.default_rng(seed), angle=0.7)
    fine = grid.divided(kernel)
    assert fine.voxel_volume == pytest.approx(grid.voxel_volume / np.prod(np.broadcast_to(kernel, 3)))
    assert fine.pooled(kernel).shape == grid.shape
    np.testing.assert_allclose(fine.pooled(kernel).affine, grid.affine, atol=1e-9)
    with pytest.raises(DataError, match="cannot divide"):
        grid.divided(0)


def test_a_grid_covers_what_lies_between_the_faces_of_its_voxels():
    grid = oblique(np.random.default_rng(0), shape=(5, 6, 7), angle=0.3)
    places = grid.voxel_to_world([[-0.4, 0, 0], [6.4, 5.4, 4.4], [-0.6, 0, 0], [0, 5.6, 0]])
    assert grid.covers(places).tolist() == [True, True, False, False]
    assert grid.covers(places, margin=1.0).all()
