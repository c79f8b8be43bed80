"""Exams that were stored on a turned grid are turned back; SimpleITK resamples them as well."""

import numpy as np
import pytest
import SimpleITK as sitk
from affine_model import exam, grid_of
from geometry_oracle import itk_image

from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import to_model_grid
from deepatlas.space.upright import obliqueness, upright
from deepatlas.space.volume import Volume


@pytest.mark.parametrize(
    ("degrees", "flips", "order", "want"),
    [
        ((0, 0, 0), (), (0, 1, 2), 0), ((0, 0, 0), (0, 2), (1, 2, 0), 0),
        ((0, 0, 15), (1,), (2, 0, 1), 15), ((40, 0, 0), (), (0, 1, 2), 40),
    ],
)  # fmt: skip
def test_obliqueness_is_the_angle_to_the_nearest_axes(degrees, flips, order, want):
    assert obliqueness(grid_of(degrees=degrees, flips=flips, order=order)) == pytest.approx(want, abs=1e-4)


def test_a_grid_that_is_hardly_turned_keeps_its_voxels():
    ct, _ = exam(grid_of(degrees=(0.5, 0.5, 0), flips=(0,), order=(2, 0, 1)))
    result = upright(ct)
    assert result.array.size == ct.array.size and np.array_equal(
        np.sort(result.array, None), np.sort(ct.array, None)
    )


@pytest.mark.parametrize("degrees", [(15, 0, 0), (0, -30, 0), (40, 40, 0), (0, 0, 44)])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.5, 1.5, 4.0)])
def test_a_turned_grid_is_resampled_as_simpleitk_does(degrees, spacing):
    ct, _ = exam(grid_of(spacing=spacing, degrees=degrees, flips=(1,), order=(1, 0, 2)))
    result = upright(ct)
    assert obliqueness(result.grid) == 0 and np.linalg.det(result.grid.affine[:3, :3]) > 0
    reference = itk_image(np.zeros(result.grid.shape, np.float32), result.grid)
    moving = itk_image(np.asarray(ct.array, np.float32), ct.grid)
    want = sitk.GetArrayFromImage(
        sitk.Resample(moving, reference, sitk.Transform(), sitk.sitkLinear, -1024.0)
    )
    # Within half a voxel of the border SimpleITK repeats voxels, and ours fade into air.
    place = ct.grid.world_to_voxel(
        result.grid.voxel_to_world(np.moveaxis(np.indices(result.grid.shape)[::-1], 0, -1))
    )
    inside = ((place >= 0) & (place <= np.array(ct.grid.shape[::-1]) - 1)).all(axis=-1)
    outside = ((place < -1) | (place > np.array(ct.grid.shape[::-1]))).any(axis=-1)
    np.testing.assert_allclose(result.array[inside], want[inside], atol=0.05)
    assert outside.any() and (result.array[outside] == -1024).all()
    # All of the exam is inside.
    assert result.grid.world_to_voxel(ct.grid.corners()).min() >= 0
    assert (
        result.grid.world_to_voxel(ct.grid.corners()).max(0) <= np.array(result.grid.shape[::-1]) - 1
    ).all()


@pytest.mark.parametrize("degrees", [(15, 0, 0), (30, 0, 0), (40, 40, 0)])
def test_the_input_of_the_network_does_not_depend_on_how_an_exam_is_stored(degrees):
    straight = to_model_grid(exam(grid_of())[0], 32, crop="foreground")
    turned = to_model_grid(
        exam(grid_of(degrees=degrees, half_mm=(95.0, 95.0, 95.0)))[0], 32, crop="foreground"
    )
    apart = straight.grid.corners() - turned.grid.corners()
    # The crop is found on blocks of 4 mm.
    assert np.abs(apart).max() < 10
    back = itk_image(turned.array, turned.grid)
    reference = itk_image(straight.array, straight.grid)
    array = sitk.GetArrayFromImage(sitk.Resample(back, reference, sitk.Transform(), sitk.sitkLinear, -1024.0))
    assert np.corrcoef(array.ravel(), straight.array.ravel())[0, 1] > 0.97


@pytest.mark.slow(1)
def test_large_grids_stay_small():
    grid = grid_of(spacing=(0.5, 0.5, 100.0), degrees=(10, 0, 0), half_mm=(200.0, 200.0, 300.0))
    result = upright(Volume(np.zeros(grid.shape, np.int16), grid))
    assert max(result.grid.shape) <= 385 and isinstance(result.grid, Grid)
