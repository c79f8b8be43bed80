"""A field of coordinates with pieces: sampled on grids and at places, continuous across the rims."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from affine_model import GRIDS, SCALE, AffineModel, exam, grid_of, world

from deepatlas.errors import DeepAtlasError
from deepatlas.model.field import CoordinateField, Piece, rim
from deepatlas.space.box import Box
from deepatlas.space.grid import Grid


def piece(shift: float = 0.0, size: int = 24, turn: float = 20.0) -> Piece:
    """The exact coordinates on a turned box in the middle of the anatomy, moved by ``shift`` along x."""
    cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    axes = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) * (30.0, 24.0, 28.0)
    grid = Box("b", (4.0, 2.0, -5.0), axes).grid(size)
    coords = torch.from_numpy(np.moveaxis(world(grid) / SCALE, -1, 0).copy()).float()[None]
    coords[:, 0] += shift
    return Piece("b", coords, grid, rim(grid.shape, 6, coords))


def field(shift: float = 0.0, grid: str = "oblique") -> tuple[CoordinateField, Grid]:
    ct, _ = exam(GRIDS[grid])
    found = AffineModel(32).map_exam(ct)
    return CoordinateField(found.coords, found.grid, (piece(shift),)), ct.grid


@pytest.mark.parametrize("grid", GRIDS)
def test_pieces_that_agree_change_nothing_on_any_grid(grid):
    one, native = field(grid=grid)
    error = np.abs(np.moveaxis(one.on(native).numpy(), 0, -1) * SCALE - world(native))
    assert error.max() < 5e-3  # mm


def test_the_answer_of_a_piece_counts_as_its_weight_says():
    one, native = field(shift=0.1)
    without = CoordinateField(one.coords, one.grid)
    away = (one.on(native) - without.on(native))[0].numpy()
    weight = sitk.GetImageFromArray(one.pieces[0].weight[0, 0].numpy())
    lps = np.diag([-1.0, -1.0, 1.0])

    def place(image: sitk.Image, grid: Grid) -> None:
        axes = np.asarray(grid.affine[:3, :3])
        image.SetSpacing(np.linalg.norm(axes, axis=0).tolist())
        image.SetDirection((lps @ axes / np.linalg.norm(axes, axis=0)).ravel().tolist())
        image.SetOrigin((lps @ grid.affine[:3, 3]).tolist())

    place(weight, one.pieces[0].grid)
    native_image = sitk.Image(native.shape[::-1], sitk.sitkFloat32)
    place(native_image, native)
    share = sitk.GetArrayFromImage(
        sitk.Resample(weight, native_image, sitk.Transform(), sitk.sitkLinear, 0.0)
    )
    assert share.max() > 0.99
    np.testing.assert_allclose(away, 0.1 * share, atol=2e-4)


def test_no_places_have_no_coordinates():
    """As of marks among which there are boxes alone."""
    assert field()[0].at(np.zeros((0, 3))).shape == (0, 3)


def test_places_have_the_coordinates_of_the_grid():
    one, native = field(shift=0.1)
    generator = np.random.default_rng(0)
    index = np.stack([generator.integers(0, n, 300) for n in native.shape], axis=1)
    whole = one.on(native, chunk=5_000).numpy()
    np.testing.assert_allclose(one.at(native.voxel_to_world(index[:, ::-1])), whole[:, *index.T].T, atol=2e-4)


def test_no_jump_at_a_rim_is_larger_than_the_steps_inside():
    one, _ = field(shift=0.1)
    fine = grid_of(spacing=(1.0, 1.0, 1.0), half_mm=(45.0, 40.0, 45.0))
    steps = [np.abs(np.diff(one.on(fine).numpy(), axis=axis)).max() for axis in (1, 2, 3)]
    # A millimetre is 1 / SCALE; the blend of .1 over six voxels of 2.5 mm adds at most a half of pi of its mean slope.
    assert max(steps) < 1 / SCALE + np.pi / 2 * 0.1 / (6 * 2.0) + 1e-3


def test_grids_far_from_a_piece_and_wrong_shapes():
    one, native = field(shift=0.1)
    plane = native.cropped((0, 0, 0), (1, *native.shape[1:]))
    torch.testing.assert_close(one.on(plane), CoordinateField(one.coords, one.grid).on(plane))
    assert one.spacing == pytest.approx(60.0 / 24)
    with pytest.raises(DeepAtlasError, match=r"coords must be \[1, 3, 4, 4, 4\]"):
        CoordinateField(one.coords, Grid((4, 4, 4), np.eye(4)))
