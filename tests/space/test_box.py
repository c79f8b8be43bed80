"""Oriented boxes and the affine maps that carry them."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from deepatlas.errors import DataError
from deepatlas.space.box import Box
from deepatlas.space.fit_affine import fit_affine, fit_rigid

TURN = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()


def test_places_and_own_coordinates_are_inverses_and_corners_are_the_ends():
    box = Box("b", (10.0, -4.0, 7.0), TURN * (5.0, 2.0, 8.0))
    own = np.random.default_rng(0).uniform(-1.5, 1.5, (50, 3))
    np.testing.assert_allclose(box.own(box.place(own)), own, atol=1e-12)
    assert (box.contains(box.place(own)) == (np.abs(own) <= 1).all(axis=1)).all()
    np.testing.assert_allclose(np.abs(box.own(box.corners())), 1)
    np.testing.assert_allclose(box.edges, (10, 4, 16))


def test_the_grid_of_a_box_fills_it_for_simpleitk():
    box = Box("b", (10.0, -4.0, 7.0), TURN * (5.0, 2.0, 8.0))
    grid = box.grid((8, 4, 5))
    image = sitk.Image((5, 4, 8), sitk.sitkUInt8)
    lps = np.diag([-1.0, -1.0, 1.0])
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps @ grid.affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((lps @ grid.affine[:3, 3]).tolist())
    ends = [image.TransformContinuousIndexToPhysicalPoint(i) for i in ((-0.5, -0.5, -0.5), (4.5, 3.5, 7.5))]
    np.testing.assert_allclose(box.own(np.array(ends) @ lps), [[-1] * 3, [1] * 3], atol=1e-9)


def test_shear_is_taken_away_and_told():
    box = Box("b", np.zeros(3), TURN @ np.array([[2.0, 0.3, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 4.0]]))
    upright, shear = box.upright()
    np.testing.assert_allclose(upright.axes.T @ upright.axes, np.diag(upright.edges / 2) ** 2, atol=1e-9)
    np.testing.assert_allclose(upright.edges, box.edges)
    # The two edges are atan(.3 / 3) from a right angle, which both share.
    assert shear == pytest.approx(np.degrees(np.arctan(0.1)) / 2, abs=1e-3)
    assert Box.between("c", (0, 0, 0), (1, 2, 3)).upright()[1] == pytest.approx(0, abs=1e-5)
    with pytest.raises(DataError, match="right angles"):
        box.grid(8)


def test_a_moved_box_holds_the_moved_places_and_stays_right_handed():
    box = Box.between("b", (-1, 0, 2), (3, 5, 4))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = TURN @ np.diag((-2.0, 1.0, 3.0)), (5, 6, 7)
    moved = box.moved(matrix)
    places = np.random.default_rng(1).uniform(-2, 6, (200, 3))
    assert (moved.contains(places @ matrix[:3, :3].T + matrix[:3, 3]) == box.contains(places)).all()
    assert np.linalg.det(moved.axes) > 0


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (np.diag((1.0, 0.0, 1.0)), "no volume"),
        (np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), "no volume"),
        (np.diag((1.0, -1.0, 1.0)), "left-handed"),
        (np.diag((1.0, np.nan, 1.0)), "NaN"),
        (np.ones(3), "3 x 3"),
    ],
)
def test_what_is_no_box_is_refused(axes, message):
    with pytest.raises(DataError, match=message):
        Box("b", np.zeros(3), axes)
    with pytest.raises(DataError, match="first corner"):
        Box.between("b", (0, 0, 0), (1, 0, 1))


def test_an_affine_map_is_found_in_spite_of_outliers():
    generator = np.random.default_rng(2)
    source = generator.uniform(-1, 1, (2000, 3))
    linear, shift = TURN @ np.diag((80.0, 90.0, 120.0)) + generator.normal(size=(3, 3)), (3.0, -8.0, 5.0)
    target = source @ linear.T + shift + generator.normal(scale=0.5, size=source.shape)
    target[:400] += (60.0, 30.0, 0.0)
    robust, plain = fit_affine(source, target), fit_affine(source, target, robust=False)
    np.testing.assert_allclose(robust[:3, :3], linear, atol=0.15)
    np.testing.assert_allclose(robust[:3, 3], shift, atol=0.1)
    assert np.abs(plain[:3, 3] - shift).max() > 5
    want, *_ = np.linalg.lstsq(np.column_stack([source, np.ones(2000)]), target, rcond=None)
    np.testing.assert_allclose(plain[:3], want.T, atol=1e-9)


def test_a_rigid_map_is_that_of_scipy():
    generator = np.random.default_rng(3)
    source = generator.normal(size=(100, 3))
    weights = generator.uniform(size=100)
    target = source @ TURN.T + (1.0, 2.0, 3.0) + generator.normal(scale=0.1, size=source.shape)
    found = fit_rigid(source, target, weights, robust=False)
    centre = [weights @ p / weights.sum() for p in (source, target)]
    want = Rotation.align_vectors(target - centre[1], source - centre[0], weights=weights)[0].as_matrix()
    np.testing.assert_allclose(found[:3, :3], want, atol=1e-7)
    np.testing.assert_allclose(found[:3, 3], centre[1] - want @ centre[0], atol=1e-7)
    target[:10] += 20
    np.testing.assert_allclose(fit_rigid(source, target)[:3, :3], TURN, atol=0.03)


def test_points_that_fix_no_map_are_refused():
    flat = np.random.default_rng(4).normal(size=(50, 3)) * (1, 1, 0)
    with pytest.raises(DataError, match="one plane"):
        fit_affine(flat, flat)
    with pytest.raises(DataError, match="too few"):
        fit_affine(flat[:3], flat[:3])
    with pytest.raises(DataError, match="one shape"):
        fit_affine(flat, flat[:3])
