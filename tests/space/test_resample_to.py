"""Oriented views of an exam at any resolution, against SimpleITK, block means and images that hold positions."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from affine_model import GRIDS, exam, grid_of, world
from scipy.ndimage import map_coordinates

from deepatlas.space.box import Box
from deepatlas.space.constants import AIR
from deepatlas.space.grid import Grid
from deepatlas.space.resample_to import labels_resampled_to, resample_to, shrinkage
from deepatlas.space.volume import Volume

TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
TURN *= np.sign(np.linalg.det(TURN))


def view(shape=(10, 12, 14), edges=(30.0, 26.0, 22.0), centre=(4.0, -3.0, 5.0)) -> Grid:
    """A turned grid within the anatomy."""
    return Box("view", np.array(centre), TURN * (np.array(edges) / 2)).grid(shape)


def noise(grid: Grid) -> Volume:
    return Volume(np.random.default_rng(1).normal(0, 100, grid.shape).astype(np.float32), grid, "noise")


def as_itk(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.array)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.grid.affine
    image.SetSpacing(volume.grid.spacing)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / np.array(volume.grid.spacing)).ravel().tolist())
    return image


@pytest.mark.parametrize("name", ["plain", "oblique", "flipped", "sagittal"])
def test_a_finer_view_is_that_of_simpleitk(name):
    source, target = noise(GRIDS[name]), view(shape=(20, 22, 24))
    got = resample_to(source, target)
    assert shrinkage(source.grid, target) == (1, 1, 1) and got.name == "noise"
    want = sitk.Resample(
        as_itk(source), as_itk(Volume(np.zeros(target.shape, np.float32), target)), sitk.Transform()
    )
    np.testing.assert_allclose(got.array, sitk.GetArrayFromImage(want), atol=0.1)


@pytest.mark.parametrize("kernel", [(1, 2, 3), (4, 4, 4), (2, 1, 1)])
def test_a_coarser_view_on_the_same_axes_holds_the_means_of_blocks(kernel):
    source = noise(GRIDS["plain"])
    target = source.grid.pooled(kernel)
    got = resample_to(source, target, outside=-1e4)
    d, h, w = (n * k for n, k in zip(target.shape, kernel, strict=True))
    blocks = source.array[:d, :h, :w].reshape(
        target.shape[0], kernel[0], target.shape[1], kernel[1], target.shape[2], kernel[2]
    )
    np.testing.assert_allclose(got.array, blocks.mean(axis=(1, 3, 5)), atol=0.05)
    assert shrinkage(source.grid, target) == kernel
    # In slabs it is the same.
    np.testing.assert_allclose(resample_to(source, target, outside=-1e4, chunk=1).array, got.array, atol=1e-2)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("shape", [(3, 4, 5), (30, 9, 16)])
def test_a_voxel_is_where_its_grid_says(name, shape):
    grid, target = GRIDS[name], view(shape)
    for axis in range(3):
        ramp = Volume(world(grid)[..., axis].astype(np.float32), grid)
        got = resample_to(ramp, target, outside=-1e4).array
        np.testing.assert_allclose(got, world(target)[..., axis], atol=2e-3)


def test_what_lies_beyond_the_faces_of_the_exam_is_the_fill():
    source = Volume(np.full((8, 8, 8), 50.0, np.float32), Grid.from_spacing((8, 8, 8), 2.0))
    source.array[0] = -3000.0
    # The faces lie at -1 and 15 mm; this view begins 4 mm to the left of them.
    target = Grid.from_spacing((8, 8, 16), 1.0, (-4.5, 4.0, 4.0))
    got = resample_to(source, target).array
    assert (got[..., :4] == AIR).all() and np.allclose(got[..., 4:], 50.0)
    assert (resample_to(source, target, outside=0.0).array[..., :4] == 0).all()
    # The padding of a scanner is raised to air before voxels are averaged.
    whole = resample_to(source, source.grid.pooled(2))
    assert whole.array[0].mean() == pytest.approx((AIR + 50) / 2)
    away = resample_to(source, Grid.from_spacing((4, 4, 4), 1.0, (500.0, 0.0, 0.0)))
    assert (away.array == AIR).all()


def test_labels_are_the_most_frequent_ones_and_keep_overlaps():
    ct, seg = exam(grid_of(spacing=(1.0, 1.0, 1.0), half_mm=(60.0, 48.0, 62.0)))
    target = view(shape=(16, 16, 16), edges=(64.0, 64.0, 64.0))
    assert shrinkage(ct.grid, target) == (4, 4, 4)
    got = labels_resampled_to(seg, target)
    # The share of each voxel that a structure fills, by many samples.
    fine = target.divided(8)
    index = np.moveaxis(seg.grid.world_to_voxel(world(fine)), -1, 0)[::-1]
    for identity in (2, 5, 9):
        dense = map_coordinates((seg.array == identity).astype(np.float32), index, order=1)
        share = dense.reshape(16, 8, 16, 8, 16, 8).mean(axis=(1, 3, 5))
        mask = got.mask(identity)
        assert mask.any() and got.array.dtype == seg.array.dtype
        assert share[mask].min() > 0.3 and share[~mask].max() < 0.7
