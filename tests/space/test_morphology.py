"""Erosion, dilation and opening against scipy.ndimage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from small_exams import oblique

from deepatlas.space.grid import Grid
from deepatlas.space.inside import inside
from deepatlas.space.morphology import dilated, eroded, filled_slices, opened

IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


@pytest.mark.parametrize("shape", [(7, 9, 8), (1, 6, 5), (2, 1, 9), (1, 1, 1)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_they_give_what_scipy_gives(shape, share):
    mask = np.random.default_rng(1).random(shape) < share
    for axes, structure in (((0, 1, 2), None), ((1, 2), IN_PLANE)):
        np.testing.assert_array_equal(eroded(mask, axes), ndimage.binary_erosion(mask, structure))
        np.testing.assert_array_equal(dilated(mask, axes), ndimage.binary_dilation(mask, structure))
        np.testing.assert_array_equal(opened(mask, axes), ndimage.binary_opening(mask, structure))
    slices = np.stack([ndimage.binary_fill_holes(axial) for axial in mask])
    np.testing.assert_array_equal(filled_slices(mask), slices)
    np.testing.assert_array_equal(filled_slices(mask), ndimage.binary_fill_holes(mask, IN_PLANE))


@pytest.mark.parametrize("turned", [False, True])
def test_what_lies_inside_is_found_voxel_by_voxel(turned):
    rng = np.random.default_rng(0)
    grid, view = oblique(rng, (12, 14, 16)), oblique(rng, (9, 8, 7))
    if turned:
        affine = view.affine.copy()
        affine[:3, 3] += grid.voxel_to_world([8, 7, 6]) - view.voxel_to_world([3, 4, 4])
        view = Grid(view.shape, affine)
    else:
        # The same axes, of which some run the other way.
        view = grid.cropped((2, 3, 4), (7, 6, 5)).resized((4, 9, 6))
    index = view.world_to_voxel(grid.places().reshape(-1, 3))
    size = np.array(view.shape[::-1])
    expected = ((index >= -0.5 - 1e-9) & (index <= size - 0.5 + 1e-9)).all(axis=1).reshape(grid.shape)
    found = inside(view, grid)
    # Faces that coincide may fall on either side.
    border = (np.abs(index + 0.5) < 1e-6) | (np.abs(index - size + 0.5) < 1e-6)
    assert (found == expected)[~border.any(axis=1).reshape(grid.shape)].all()
    assert 0 < found.mean() < 1
