"""Transforms and displacement fields against SimpleITK and nibabel, on turned, uneven, flipped grids."""

from __future__ import annotations

import errno
import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from drawn_objects import random_grid
from itk_images import as_image, everywhere

from deepatlas.errors import DataError, WriteError
from deepatlas.io.export.transform import residual_of, write_displacements, write_transform
from deepatlas.space.grid import Grid

LPS = np.array([-1.0, -1.0, 1.0])


def matrix(rng) -> np.ndarray:
    """An affine map with shear, in RAS."""
    found = np.eye(4)
    found[:3, :3] += rng.uniform(-0.15, 0.15, (3, 3))
    found[:3, 3] = rng.uniform(-20, 20, 3)
    return found


def bent(places: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """A smooth map of RAS places ``[..., 3]``: affine and a wave."""
    wave = 3 * np.sin(places[..., [1, 2, 0]] / 40)
    return (places + wave) @ map_[:3, :3].T + map_[:3, 3]


@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_itk_sends_points_where_the_map_does(suffix, seed, tmp_path):
    rng = np.random.default_rng(seed)
    grid, map_ = random_grid(rng, (9, 12, 14)), matrix(rng)
    places = everywhere(grid)
    moved = bent(places, map_)
    residual = residual_of(map_, np.moveaxis(moved, -1, 0), grid)
    write_transform(tmp_path / f"a{suffix}", map_, residual, grid)
    read = sitk.ReadTransform(str(tmp_path / f"a{suffix}"))
    for index in rng.integers(0, grid.shape, size=(40, 3)):
        got = LPS * read.TransformPoint((LPS * places[tuple(index)]).tolist())
        np.testing.assert_allclose(got, moved[tuple(index)], atol=1e-6)
    # Beyond the field the affine map goes on.
    far = grid.affine[:3, 3] + 1000.0
    np.testing.assert_allclose(
        LPS * read.TransformPoint((LPS * far).tolist()), map_[:3, :3] @ far + map_[:3, 3], atol=1e-6
    )


def test_the_same_volume_comes_out(tmp_path):
    """A volume of x, y and z in mm, resampled by SimpleITK: it holds the place in the moving exam of each voxel."""
    rng = np.random.default_rng(3)
    fixed, moving, map_ = random_grid(rng, (9, 12, 14)), random_grid(rng, (40, 40, 40)), matrix(rng)
    centre = fixed.voxel_to_world((np.array(fixed.shape[::-1]) - 1) / 2)
    # The moving exam lies where the fixed one is sent to.
    affine = np.array(moving.affine)
    affine[:3, 3] += bent(centre, map_) - moving.voxel_to_world((np.array(moving.shape[::-1]) - 1) / 2)
    moving = Grid(moving.shape, affine)
    goal = bent(everywhere(fixed), map_)
    residual = residual_of(map_, np.moveaxis(goal, -1, 0), fixed)
    write_transform(tmp_path / "a.h5", map_, residual, fixed)
    read = sitk.ReadTransform(str(tmp_path / "a.h5"))
    for axis in range(3):
        image = as_image(everywhere(moving)[..., axis], moving)
        out = sitk.Resample(image, as_image(np.zeros(fixed.shape), fixed), read, sitk.sitkLinear, 1e9)
        got = sitk.GetArrayFromImage(out)
        seen = got < 1e8
        assert seen.mean() > 0.5
        assert np.abs(got - goal[..., axis])[seen].max() < 0.01 * min(moving.spacing)


def test_a_linear_map_is_one_affine_transform(tmp_path):
    map_ = matrix(np.random.default_rng(5))
    write_transform(tmp_path / "a.tfm", map_)
    read = sitk.AffineTransform(sitk.ReadTransform(str(tmp_path / "a.tfm")))
    point = np.array([10.0, -20.0, 30.0])
    got = LPS * read.TransformPoint((LPS * point).tolist())
    np.testing.assert_allclose(got, map_[:3, :3] @ point + map_[:3, 3])


def test_a_nifti_of_displacements_is_what_itk_and_ants_expect(tmp_path):
    rng = np.random.default_rng(7)
    grid = random_grid(rng, (6, 7, 8))
    field = rng.normal(size=(3, *grid.shape)) * 5
    write_displacements(tmp_path / "a.nii.gz", field, grid)
    header = nibabel.load(tmp_path / "a.nii.gz")
    assert header.shape == (*grid.shape[::-1], 1, 3) and int(header.header["intent_code"]) == 1007
    np.testing.assert_allclose(header.affine, grid.affine, atol=1e-4)
    stored = np.asarray(header.dataobj)[:, :, :, 0]
    np.testing.assert_allclose(np.moveaxis(stored.T, 0, -1), np.moveaxis(field, 0, -1) * LPS, atol=1e-5)
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"), sitk.sitkVectorFloat64)
    read = sitk.DisplacementFieldTransform(image)
    place = everywhere(grid)[2, 3, 4]
    got = LPS * read.TransformPoint((LPS * place).tolist())
    np.testing.assert_allclose(got, place + field[:, 2, 3, 4], atol=1e-3)


def test_a_folder_whose_name_is_not_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    folder.mkdir()
    grid, map_ = Grid.from_spacing((3, 4, 5)), matrix(np.random.default_rng(3))
    write_displacements(folder / "a.nii.gz", np.ones((3, 3, 4, 5)), grid)
    write_transform(folder / "a.tfm", map_)
    write_transform(folder / "a.h5", map_, np.ones((3, 3, 4, 5)), grid)
    assert nibabel.load(folder / "a.nii.gz").shape == (5, 4, 3, 1, 3)
    # SimpleITK itself cannot open such a name.
    (tmp_path / "a.tfm").write_bytes((folder / "a.tfm").read_bytes())
    got = LPS * sitk.ReadTransform(str(tmp_path / "a.tfm")).TransformPoint((LPS * (1.0, 2, 3)).tolist())
    np.testing.assert_allclose(got, map_[:3, :3] @ (1, 2, 3) + map_[:3, 3], atol=1e-9)


def test_bad_numbers_and_names_are_one_line(tmp_path):
    grid = Grid.from_spacing((3, 4, 5))
    field = np.zeros((3, 3, 4, 5))
    with pytest.raises(WriteError, match=r"a\.mat: cannot write a transform .* \.h5, \.tfm"):
        write_transform(tmp_path / "a.mat", np.eye(4))
    with pytest.raises(WriteError, match=r"a\.mha: cannot write displacements"):
        write_displacements(tmp_path / "a.mha", field, grid)
    with pytest.raises(DataError, match="cannot be inverted"):
        write_transform(tmp_path / "a.h5", np.diag([1.0, 1, 0, 1]))
    with pytest.raises(DataError, match="4x4 finite"):
        write_transform(tmp_path / "a.h5", np.eye(3))
    with pytest.raises(DataError, match=r"on a grid of \(3, 4, 5\)"):
        write_transform(tmp_path / "a.h5", np.eye(4), field[:, 1:], grid)
    with pytest.raises(DataError, match="needs the grid"):
        write_transform(tmp_path / "a.h5", np.eye(4), field)
    field[0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        write_transform(tmp_path / "a.h5", np.eye(4), field, grid)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.h5", "a.tfm", "a.nii.gz"])
def test_a_full_disk_leaves_nothing(name, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    grid = Grid.from_spacing((3, 4, 5))
    with pytest.raises(WriteError, match="disk is full"):
        if name.endswith(".nii.gz"):
            write_displacements(tmp_path / name, np.zeros((3, 3, 4, 5)), grid)
        else:
            write_transform(tmp_path / name, np.eye(4), np.zeros((3, 3, 4, 5)), grid)
    assert list(tmp_path.iterdir()) == []
