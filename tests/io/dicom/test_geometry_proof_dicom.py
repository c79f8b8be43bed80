"""A place in a DICOM series is that place in the 64³ model space: oblique, anisotropic, stacked either way, tilted."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from geometry_oracle import LPS, examples, found_index, grids, index_arrays, unit
from hypothesis import given
from hypothesis import strategies as st
from make_dicom import tilted, write_ct

from deepatlas.exams.read import read_volume

SCALE = 8  # HU a voxel: pixels are whole numbers


def ramps(folder, grid, **options):
    """Series whose pixels encode their own position: as they are read, in voxels, and the files of one of them."""
    volumes, files = [], []
    for axis, array in enumerate(index_arrays(grid.shape)):
        shutil.rmtree(folder / str(axis), ignore_errors=True)
        files = write_ct(folder / str(axis), SCALE * array, grid.affine, **options)
        volume = read_volume(folder / str(axis), notes=[])
        volume.array = volume.array / SCALE
        volumes.append(volume)
    return volumes, files


@pytest.mark.slow(1)
@pytest.mark.parametrize("multiframe", [False, True])
@examples(5)
@given(grid=grids(5, 24, spacing=(0.4, 6.0)), where=st.tuples(unit(), unit(), unit()))
def test_a_marked_point_comes_back(tmp_path, multiframe, grid, where):
    volumes, files = ramps(tmp_path, grid, multiframe=multiframe)
    expected = (0.2 + 0.6 * np.array(where)) * (np.array(grid.shape[::-1]) - 1)
    point = nib.affines.apply_affine(grid.affine, expected)
    assert np.abs(found_index(volumes, point) - expected).max() < 0.01
    if not multiframe:
        image = sitk.ReadImage([str(file) for file in files])
        by_itk = np.array(image.TransformPhysicalPointToContinuousIndex((LPS * point).tolist()))
        assert np.abs(by_itk - expected).max() < 0.01


@pytest.mark.slow(1)
@examples(5)
@given(
    grid=grids(12, 24, spacing=(1.0, 3.0), mirrored=False),
    degrees=st.sampled_from([-18.0, -7.0, 4.0, 12.0, 22.0]),
    where=st.tuples(unit(), unit(), unit()),
)
def test_a_marked_point_comes_back_from_a_tilted_gantry(tmp_path, grid, degrees, where):
    """Reading moves the slices onto orthogonal axes; the sheared grid of the file tells where they were."""
    volumes, _ = ramps(tmp_path, grid, tilt=degrees)
    expected = (0.4 + 0.2 * np.array(where)) * (np.array(grid.shape[::-1]) - 1)
    point = nib.affines.apply_affine(tilted(grid.affine, degrees), expected)
    assert np.abs(found_index(volumes, point) - expected).max() < 0.01
