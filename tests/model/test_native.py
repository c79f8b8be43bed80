"""Coordinates that are carried from the grid of the model to that of the exam, against the exact map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from affine_model import GRIDS, SCALE, AffineModel, exam, grid_of, world

from deepatlas.errors import DeepAtlasError
from deepatlas.model.field import CoordinateField
from deepatlas.space.grid import Grid
from deepatlas.space.inside import inside


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("size", [16, 64])
def test_an_affine_map_is_exact_on_every_voxel_up_to_the_edges(name, size):
    """Clamping at the border of the pooled grid would be wrong by up to half a model voxel (several mm)."""
    ct, _ = exam(GRIDS[name])
    found = AffineModel(size).map_exam(ct)
    fine = found.field.on(ct.grid, chunk=20_000).numpy()
    assert fine.shape == (3, *ct.grid.shape)
    error = np.abs(np.moveaxis(fine, 0, -1) * SCALE - world(ct.grid))
    assert error.max() < 2e-3  # mm
    assert found.field.inside(ct.grid).all()


def test_the_size_of_chunks_does_not_matter():
    ct, _ = exam(GRIDS["oblique"])
    found = AffineModel(16).map_exam(ct)
    noise = 0.1 * torch.randn(found.coords.shape, generator=torch.Generator().manual_seed(0))
    field = CoordinateField(found.coords + noise, found.grid)
    whole = field.on(ct.grid, chunk=1 << 30)
    torch.testing.assert_close(field.on(ct.grid, chunk=1), whole, atol=2e-5, rtol=0)


def test_a_cropped_model_grid_leaves_the_other_voxels_outside():
    native = grid_of(spacing=(2.0, 2.0, 2.0))
    model_grid = native.cropped((10, 5, 20), (24, 30, 16)).pooled(2)
    got = inside(model_grid, native)
    want = np.zeros(native.shape, dtype=bool)
    want[10:34, 5:35, 20:36] = True
    assert np.array_equal(got, want)


def test_a_single_plane_is_sampled_and_a_wrong_shape_is_refused():
    ct, _ = exam(GRIDS["anisotropic"])
    found = AffineModel(16).map_exam(ct)
    plane = found.field.on(ct.grid.cropped((7, 0, 0), (1, *ct.grid.shape[1:])))
    whole = found.field.on(ct.grid)
    torch.testing.assert_close(plane[:, 0], whole[:, 7], atol=1e-5, rtol=0)
    with pytest.raises(DeepAtlasError, match=r"coords must be \[1, 3, 4, 4, 4\].*got \[1, 3, 16, 16, 16\]"):
        CoordinateField(found.coords, Grid((4, 4, 4), np.eye(4)))
