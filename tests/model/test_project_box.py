"""Boxes between atlas and exam, against maps that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from affine_model import GRIDS, SCALE, AffineModel, exam, grid_of

from deepatlas.errors import DataError
from deepatlas.model.field import CoordinateField, Piece, rim
from deepatlas.model.project_box import box_in_atlas, carry_box
from deepatlas.space.box import Box

LINEAR = np.array([[0.9, 0.2, 0.0], [-0.2, 1.1, 0.1], [0.0, -0.1, 1.05]])
SHIFT = np.array([4.0, -3.0, 6.0])
TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
TURN = TURN * np.linalg.det(TURN)
# A turned box of the atlas, whose edges are 40 x 50 x 30 mm of the anatomy.
BOX = Box("b", np.array([6.0, -4.0, 3.0]) / SCALE, TURN @ np.diag((20.0, 25.0, 15.0)) / SCALE)


def to_anatomy(place):
    return place @ LINEAR.T + SHIFT


def mapped(grid, name="exam"):
    volume = exam(GRIDS[grid] if isinstance(grid, str) else grid, name, to_anatomy)[0]
    return AffineModel(maps={name: to_anatomy}).map_exam(volume), volume


def in_exam(corners):
    return (corners * SCALE - SHIFT) @ np.linalg.inv(LINEAR).T


@pytest.mark.parametrize("grid", ["plain", "oblique", "anisotropic", "flipped", "sagittal"])
def test_a_box_lands_where_the_map_puts_it_and_comes_back(grid):
    found, volume = mapped(grid)
    carried = carry_box(found.field, BOX, volume.grid, found.body)
    np.testing.assert_allclose(carried.box_mm.corners(), in_exam(BOX.corners()), atol=0.05)
    assert carried.coverage == 1 and carried.residual_mm < 0.01
    # The map turns and stretches, so that the box is sheared in the exam.
    assert 1 < carried.shear_degrees < 20
    axes = carried.upright.axes / (carried.upright.edges / 2)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    back = box_in_atlas(found.field, carried.box_mm, volume.grid, found.body)
    np.testing.assert_allclose(back.corners() * SCALE, BOX.corners() * SCALE, atol=0.05)


def test_a_box_smaller_than_the_voxels_of_the_network_is_found():
    found, volume = mapped("plain")
    small = Box("s", BOX.centre, np.diag((1.0, 0.8, 1.2)) / SCALE)
    assert max(found.grid.spacing) > small.edges.max() * SCALE
    carried = carry_box(found.field, small, volume.grid, found.body)
    np.testing.assert_allclose(carried.box_mm.corners(), in_exam(small.corners()), atol=0.05)


def test_coverage_is_the_share_inside_the_scan():
    whole = grid_of()
    # Cut through the box, whose lower part is lost.
    for planes in (40, 36, 30, 20):
        cut = whole.cropped((planes, 0, 0), (whole.shape[0] - planes, *whole.shape[1:]))
        found, volume = mapped(cut)
        carried = carry_box(found.field, BOX, volume.grid, found.body)
        places = in_exam(BOX.place(np.random.default_rng(0).uniform(-1, 1, (200_000, 3))))
        floor = cut.voxel_to_world([0, 0, -0.5])[2]
        assert carried.coverage == pytest.approx((places[:, 2] > floor).mean(), abs=0.01)
        np.testing.assert_allclose(carried.box_mm.corners(), in_exam(BOX.corners()), atol=0.1)


def test_a_box_that_the_scan_does_not_show_is_none():
    whole = grid_of()
    found, volume = mapped(whole.cropped((60, 0, 0), (whole.shape[0] - 60, *whole.shape[1:])))
    assert carry_box(found.field, BOX, volume.grid, found.body) is None
    assert carry_box(found.field, Box("far", (3, 3, 3), np.eye(3) * 0.1), volume.grid) is None


def test_wrong_coordinates_in_a_part_do_not_move_the_box():
    found, volume = mapped("plain")
    coords = found.coords.clone()
    # A tenth of the body has coordinates from elsewhere.
    wrong = np.random.default_rng(2).random(found.body.shape) < 0.1
    coords[0][:, torch.from_numpy(wrong)] += 0.15
    field = CoordinateField(coords, found.grid)
    carried = carry_box(field, BOX, volume.grid, found.body)
    assert np.abs(carried.box_mm.corners() - in_exam(BOX.corners())).max() < 3
    assert carried.residual_mm < 0.2


def test_the_network_of_a_region_counts_inside_it():
    found, volume = mapped("plain")
    size = 24
    # The whole exam's network is wrong by 8 mm; that of a region around the box is right.
    grid = found.grid.cropped((4, 4, 4), (24, 24, 24)).resized(size)
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    place = to_anatomy(grid.voxel_to_world(np.stack([x, y, z], axis=-1))) / SCALE
    piece = Piece(
        "r",
        torch.from_numpy(np.moveaxis(place, -1, 0).copy()).float()[None],
        grid,
        rim((size,) * 3, 3, torch.ones(1)),
    )
    field = CoordinateField(found.coords + 8 / SCALE, found.grid, (piece,))
    small = Box("b", BOX.centre, BOX.axes * 0.6)
    carried = carry_box(field, small, volume.grid, found.body)
    np.testing.assert_allclose(carried.box_mm.corners(), in_exam(small.corners()), atol=0.1)
    np.testing.assert_allclose(
        box_in_atlas(field, carried.box_mm, volume.grid).corners(), small.corners(), atol=0.002
    )


def test_a_box_outside_its_exam_is_refused():
    found, volume = mapped("plain")
    with pytest.raises(DataError, match=r"box far: 0 % of it lie inside the exam"):
        box_in_atlas(found.field, Box.between("far", (300, 0, 0), (310, 10, 10)), volume.grid)
