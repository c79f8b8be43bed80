"""Preprocessing: positions, values, labels and the mask of the patient."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from geometry_oracle import itk_image
from small_exams import body, oblique

from deepatlas.errors import DataError
from deepatlas.exams.read import read_volume
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import (
    denormalize,
    foreground_box,
    foreground_mask,
    labels_to_grid,
    normalize,
    pool_labels,
    to_fine_grid,
    to_model_grid,
)
from deepatlas.space.upright import obliqueness
from deepatlas.space.volume import Volume


def ramps(grid: Grid) -> list[Volume]:
    """Three volumes whose values are the x, y and z of their voxels in mm. Interpolation and averaging preserve linear
    functions exactly, so that every resampled value is the true position of its voxel."""
    index = np.moveaxis(np.indices(grid.shape)[::-1], 0, -1)
    world = grid.voxel_to_world(index)
    return [Volume(world[..., axis].astype(np.float32), grid) for axis in range(3)]


def worst_voxel(resampled: list[Volume], native: Grid) -> float:
    """The largest error in voxels where no air from beyond the native grid was mixed in."""
    grid = resampled[0].grid
    found = grid.world_to_voxel(np.stack([v.array.astype(np.float64) for v in resampled], axis=-1))
    index = np.moveaxis(np.indices(grid.shape)[::-1], 0, -1)
    place = native.world_to_voxel(grid.voxel_to_world(index))
    margin = 2 * max(grid.spacing) / np.array(native.spacing) if obliqueness(native) > 1 else -np.inf
    inside = ((place > margin) & (place < np.array(native.shape[::-1]) - 1 - margin)).all(axis=-1)
    assert inside.sum() > 20
    return float(np.abs(found - index)[inside].max())


@pytest.mark.parametrize("angle", [0.008, 1.0])
@pytest.mark.parametrize(("seed", "size"), [(0, 16), (1, 32), (2, 64), (3, 64), (4, 128)])
def test_every_voxel_is_where_its_grid_says(seed, size, angle):
    grid = oblique(np.random.default_rng(seed), shape=(29, 31, 34), angle=angle)
    resampled = [to_model_grid(volume, size) for volume in ramps(grid)]
    assert resampled[0].grid.shape == (size,) * 3 and resampled[0].array.dtype == np.float32
    assert worst_voxel(resampled, grid) < 0.01
    _, axes, flips = resampled[0].grid.canonical()
    assert axes == (0, 1, 2) and flips == ()


@pytest.mark.parametrize("seed", range(3))
def test_a_mark_set_with_simpleitk_comes_back(tmp_path, seed):
    """From a file to the model grid: SimpleITK gives the position, and the grid must agree with it."""
    rng = np.random.default_rng(seed)
    grid = oblique(rng, shape=(30, 31, 33))
    blank = itk_image(np.zeros(grid.shape, np.float32), grid)
    index = rng.uniform(12, 18, size=3)
    point = np.array(blank.TransformContinuousIndexToPhysicalPoint(index.tolist()))
    places = sitk.PhysicalPointSource(
        sitk.sitkVectorFloat64, blank.GetSize(), blank.GetOrigin(), blank.GetSpacing(), blank.GetDirection()
    )
    # The offset of every voxel from the mark in LPS mm.
    offset = sitk.GetArrayFromImage(places) - point
    out = []
    for axis in range(3):
        image = sitk.GetImageFromArray(offset[..., axis].astype(np.float32))
        image.CopyInformation(blank)
        sitk.WriteImage(image, str(tmp_path / f"{axis}.nii.gz"))
        out.append(to_model_grid(read_volume(tmp_path / f"{axis}.nii.gz", notes=[]), 32))
    offsets = np.stack([volume.array for volume in out], axis=-1)
    nearest = np.unravel_index(np.square(offsets).sum(-1).argmin(), (32,) * 3)
    model = out[0].grid
    implied = model.voxel_to_world(nearest[::-1]) - offsets[nearest] * [-1, -1, 1]
    apart = model.world_to_voxel(implied) - model.world_to_voxel(point * [-1, -1, 1])
    assert np.abs(apart).max() < 0.01


def test_a_voxel_of_the_pooled_volume_is_the_mean_of_eight():
    ct, _ = body()
    fine, pooled = to_fine_grid(ct), to_model_grid(ct, 64)
    block = fine.array[10:12, 20:22, 30:32].astype(np.float64).mean()
    assert pooled.array[5, 10, 15] == pytest.approx(block, abs=1e-2)
    np.testing.assert_allclose(to_model_grid(ct, 128).array, fine.array)


def test_padding_below_air_does_not_bleed_in():
    ct, _ = body()
    padded = ct.array.copy()
    padded[:, :3] = -3024
    air = ct.array.copy()
    air[:, :3] = -1024
    np.testing.assert_allclose(
        to_model_grid(Volume(padded, ct.grid)).array, to_model_grid(Volume(air, ct.grid)).array
    )


def test_wrong_options_are_refused():
    ct, _ = body()
    with pytest.raises(ValueError, match="size must divide 128"):
        to_model_grid(ct, 48)
    with pytest.raises(ValueError, match="crop must be"):
        to_model_grid(ct, crop="patient")


def test_normalize_clips_and_scales():
    hu = torch.tensor([-2000, -256, 0, 256, 3000], dtype=torch.int16)
    assert normalize(hu).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert normalize(hu.double()).dtype == torch.float64
    inside = np.linspace(-256, 256, 33, dtype=np.float32)
    np.testing.assert_allclose(denormalize(normalize(torch.from_numpy(inside)).numpy()), inside, atol=1e-4)


# -- labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_labels_to_grid_agrees_with_simpleitk(seed):
    rng = np.random.default_rng(seed)
    grid, target = oblique(rng), oblique(rng, shape=(15, 16, 17))
    target = Grid(target.shape, target.affine + 0)
    moved = target.affine.copy()
    # Move the target so that the two overlap.
    moved[:3, 3] += grid.corners().mean(0) - target.corners().mean(0)
    target = Grid(target.shape, moved)
    labels = rng.integers(0, 5, size=grid.shape).astype(np.uint8)
    expected = sitk.GetArrayFromImage(
        sitk.Resample(
            itk_image(labels, grid),
            itk_image(np.zeros(target.shape, np.uint8), target),
            sitk.Transform(),
            sitk.sitkNearestNeighbor,
        )
    )
    found = labels_to_grid(Volume(labels, grid), target)
    assert found.array.dtype == np.uint8 and found.grid is target
    index = grid.world_to_voxel(target.voxel_to_world(np.moveaxis(np.indices(target.shape)[::-1], 0, -1)))
    # Leave out positions halfway between two voxels, and the rim, where the two continue the image differently.
    clear = (np.abs(index - np.floor(index) - 0.5) > 1e-3).all(-1)
    clear &= ((index > 0) & (index < np.array(grid.shape[::-1]) - 1)).all(-1)
    assert clear.mean() > 0.05
    np.testing.assert_array_equal(found.array[clear], expected[clear])


def test_labels_keep_large_ids():
    grid = Grid.from_spacing((4, 4, 4))
    labels = np.arange(64, dtype=np.uint16).reshape(4, 4, 4) + 65000
    np.testing.assert_array_equal(labels_to_grid(Volume(labels, grid), grid).array, labels)


@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_pool_labels_is_the_majority(kernel):
    rng = np.random.default_rng(0)
    labels = rng.choice(5, p=[0.6, 0.1, 0.1, 0.1, 0.1], size=(8, 8, 12)).astype(np.uint8)
    pooled = pool_labels(labels, kernel)
    for index in np.ndindex(*pooled.shape):
        block = labels[tuple(slice(i * kernel, (i + 1) * kernel) for i in index)]
        counts = np.bincount(block.ravel())
        judge = block.flat[-1 if sum(index) % 2 else 0]
        winners = np.flatnonzero(counts == counts.max())
        assert pooled[index] == (judge if judge in winners else winners[-1])


def test_pool_labels_keeps_size_and_position():
    z, y, x = np.indices((96, 96, 96))
    rng = np.random.default_rng(0)
    errors, volumes = [], []
    for _ in range(20):
        centre, radius = rng.uniform(40, 56, size=3), rng.uniform(8, 14)
        ball = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2
        pooled = pool_labels(ball.astype(np.uint8), 2)
        errors.append(np.argwhere(pooled).mean(0) - (np.argwhere(ball).mean(0) - 0.5) / 2)
        volumes.append(pooled.sum() * 8 / ball.sum())
    assert np.abs(np.mean(errors, axis=0)).max() < 0.01
    # A majority slightly reduces curved shapes.
    assert np.mean(volumes) == pytest.approx(1, abs=0.02)


# -- foreground -------------------------------------------------------------------------------------


def phantom_with_couch() -> tuple[np.ndarray, np.ndarray]:
    """A cube of 64 voxels of 5 mm: a trunk with an airway, a couch that does not touch it, and a tube."""
    hu = np.full((64, 64, 64), -1024.0, dtype=np.float32)
    z, y, x = np.indices(hu.shape)
    patient = ((x - 32) / 18) ** 2 + ((y - 34) / 12) ** 2 < 1
    hu[patient] = 50
    airway = ((x - 32) ** 2 + (y - 36) ** 2 < 9) & (z > 20)
    hu[airway] = -1000
    hu[:, 14:15, 8:56] = -200
    hu[:, 60, 60] = 100
    return hu, patient


def test_foreground_mask_is_the_patient():
    hu, patient = phantom_with_couch()
    mask = foreground_mask(hu)
    assert mask.dtype == bool
    assert not mask[:, :17].any() and not mask[:, 58:].any()
    # The airway is inside, also where the end of the scan cuts it open.
    assert (mask & patient).sum() / patient.sum() > 0.99
    assert mask.sum() < 1.25 * patient.sum()
    assert not foreground_mask(np.full((8, 8, 8), -1000.0)).any()
    assert foreground_mask(np.full((8, 8, 8), 40.0)).all()


def test_foreground_box_leaves_out_couch_debris_and_empty_slices():
    hu, patient = phantom_with_couch()
    hu[:10] = -1024
    hu[50:] = -1024
    # The surroundings of a spinal cord, beyond the scanned range.
    hu[50:, 33:36, 30:33] = 40
    (z, y, x), (d, h, w) = foreground_box(Volume(hu, Grid.from_spacing(hu.shape, 5.0)))
    assert z in (9, 10) and z + d in (50, 51)
    inside = np.argwhere(patient[20])
    low, high = inside.min(0), inside.max(0) + 1
    assert 0 <= low[0] - y <= 2 and 0 <= y + h - high[0] <= 2
    assert 0 <= low[1] - x <= 2 and 0 <= x + w - high[1] <= 2


def test_foreground_box_of_a_full_field_of_view_is_the_whole_image():
    hu = np.full((20, 30, 30), 40.0, dtype=np.float32)
    assert foreground_box(Volume(hu, Grid.from_spacing(hu.shape, 5.0))) == ((0, 0, 0), (20, 30, 30))


def test_both_legs_are_kept():
    hu = np.full((40, 40, 80), -1000.0, dtype=np.float32)
    _, y, x = np.indices(hu.shape)
    for centre in (22, 58):
        hu[(x - centre) ** 2 + (y - 20) ** 2 < 100] = 50
    (_, _, start), (_, _, width) = foreground_box(Volume(hu, Grid.from_spacing(hu.shape, 5.0)))
    assert start <= 13 and start + width >= 67


def test_crop_without_a_patient():
    air = np.random.default_rng(0).normal(-1000, 5, size=(20, 20, 20)).astype(np.float32)
    with pytest.raises(DataError, match="exam7.*no patient found.*Hounsfield"):
        to_model_grid(Volume(air, Grid.from_spacing(air.shape), name="exam7"), crop="foreground")


def test_cropped_voxels_are_where_their_grid_says():
    hu, _ = phantom_with_couch()
    grid = Grid.from_spacing(hu.shape, (5.0, 4.0, 6.0), origin=(3, 4, 5))
    start, shape = foreground_box(Volume(hu, grid))
    resampled = [to_model_grid(volume.cropped(start, shape), 32) for volume in ramps(grid)]
    assert resampled[0].grid == to_model_grid(Volume(hu, grid), 32, crop="foreground").grid
    assert worst_voxel(resampled, grid) < 0.01
