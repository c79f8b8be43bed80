"""Points that are located through coordinates, against maps whose inverse is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from affine_model import GRIDS, SCALE, AffineModel, exam, grid_of, world

from deepatlas.errors import DeepAtlasError
from deepatlas.localize.found import find, from_exam
from deepatlas.localize.found_files import write_found
from deepatlas.localize.points import coordinates_of, locate, look_for
from deepatlas.model.field import CoordinateField, Piece, rim
from deepatlas.model.known import KnownExam
from deepatlas.space.markup import Markups, Point

POINTS = np.array(
    [[20.0, 5.0, -10.0], [-30.0, -8.0, 4.0], [0.0, 0.0, 0.0], [41.0, 20.0, 30.0], [-12.0, 30.0, -41.0]]
)


def bent(place: np.ndarray) -> np.ndarray:
    """A smooth and invertible map of places in mm that is far from linear."""
    x, y, z = np.moveaxis(place, -1, 0)
    return np.stack([x + 6 * np.sin(y / 21), y + 5 * np.sin(z / 24 + 1), z + 6 * np.sin(x / 23)], axis=-1)


def test_a_point_has_the_same_place_on_another_grid():
    source, target = exam(GRIDS["plain"], "a")[0], exam(GRIDS["sagittal"], "b")[0]
    got = locate(AffineModel(), POINTS, source, target)
    assert got.found.all()
    np.testing.assert_allclose(got.points, POINTS, atol=1e-2)
    assert got.inversion_mm.max() < 1e-2


def test_an_affine_map_is_inverted():
    matrix = np.array([[0.9, 0.2, 0.0], [-0.2, 1.1, 0.1], [0.0, -0.1, 1.05]])

    def to_anatomy(place):
        return place @ matrix.T + np.array([4.0, -3.0, 6.0])

    model = AffineModel(maps={"b": to_anatomy})
    source, target = exam(GRIDS["oblique"], "a")[0], exam(GRIDS["anisotropic"], "b", to_anatomy)[0]
    got = locate(model, POINTS[:3], source, target)
    want = (POINTS[:3] - [4.0, -3.0, 6.0]) @ np.linalg.inv(matrix).T
    assert got.found.all()
    np.testing.assert_allclose(got.points, want, atol=2e-2)


def test_a_bent_map_is_inverted_to_a_fraction_of_a_voxel():
    model = AffineModel(64, maps={"b": bent})
    source, target = exam(GRIDS["plain"], "a")[0], exam(GRIDS["plain"], "b", bent)[0]
    got = locate(model, POINTS, source, target)
    assert got.found.all()
    # bent(found) must be the point again. Voxels have 2.2 mm, and linear interpolation of the map costs about 0.05 mm.
    assert np.linalg.norm(bent(got.points) - POINTS, axis=1).max() < 0.15
    assert got.inversion_mm.max() < 0.05


def test_anatomy_that_is_not_in_the_target_is_not_found():
    source = exam(GRIDS["plain"], "a")[0]
    lower = grid_of(half_mm=(70.0, 58.0, 30.0))
    # This part extends from -30 to 8 mm along z.
    lower = lower.cropped((0, 0, 0), (20, *lower.shape[1:]))
    target = exam(lower, "b")[0]
    points = np.array([[5.0, 5.0, -20.0], [5.0, 5.0, 7.0], [5.0, 5.0, 15.0], [5.0, 5.0, 60.0]])
    got = locate(AffineModel(), points, source, target)
    assert got.found.tolist() == [True, True, False, False]
    np.testing.assert_allclose(got.points[:2], points[:2], atol=1e-2)


def test_points_outside_the_source_are_nan():
    source = exam(GRIDS["plain"], "a")[0]
    got = locate(AffineModel(), [[0.0, 0.0, 0.0], [500.0, 0.0, 0.0]], source, source)
    assert got.found.tolist() == [True, False]
    assert np.isnan(got.points[1]).all() and np.isnan(got.inversion_mm[1])


def test_points_in_the_air_and_exams_that_are_not_known_are_not_found():
    source = exam(GRIDS["plain"], "a")[0]
    points = [[0.0, 0.0, 0.0], [60.0, 50.0, 60.0]]
    got = locate(AffineModel(), points, source, source)
    assert got.found.tolist() == [True, False]
    assert got.reason == ["", "outside the body in the source exam"] and got.fit.known is None
    model = AffineModel()
    model.fit_threshold = 2.0
    got = locate(model, points, source, source)
    assert not got.found.any() and got.fit.known is False
    assert got.reason == ["the model does not know the source exam"] * 2


def test_one_point_no_point_and_malformed_points():
    source = exam(GRIDS["plain"], "a")[0]
    np.testing.assert_allclose(
        locate(AffineModel(), POINTS[:1], source, source).points, POINTS[:1], atol=1e-2
    )
    assert locate(AffineModel(), np.zeros((0, 3)), source, source).points.shape == (0, 3)
    for bad in ([1.0, 2.0, 3.0], [[1.0, 2.0]], [[np.nan, 0.0, 0.0]]):
        with pytest.raises(DeepAtlasError, match=r"finite and \[N, 3\]"):
            locate(AffineModel(), bad, source, source)


def test_a_field_of_several_networks_is_inverted_to_its_own_answer():
    """The network of the whole exam is wrong by 5 mm within a region, whose own network bends space otherwise."""
    model = AffineModel(32)
    source = KnownExam.of(model.map_exam(exam(GRIDS["plain"], "a")[0]), GRIDS["plain"], "a")
    goal = model.map_exam(exam(GRIDS["plain"], "b")[0])
    size = 40
    grid = goal.grid.cropped((6, 6, 6), (20, 20, 20)).resized(size)
    own = torch.from_numpy(np.moveaxis(bent(world(grid)) / SCALE, -1, 0).copy()).float()[None]
    piece = Piece("region", own, grid, rim((size,) * 3, 6, torch.ones(1)))
    field = CoordinateField(goal.coords + 5 / SCALE, goal.grid, (piece,))
    target = KnownExam("b", GRIDS["plain"], field, goal.body, goal.fit)
    points = np.array([[0.0, 0.0, 0.0], [12.0, -8.0, 9.0], [-20.0, 5.0, -10.0], [-9.0, 15.0, 18.0]])
    got = look_for(target, coordinates_of(source, points))
    assert got.found.all() and got.inversion_mm.max() < 0.02
    np.testing.assert_allclose(field.at(got.points) * SCALE, points, atol=0.03)
    # At the middle of the region its network counts alone.
    assert np.linalg.norm(bent(got.points[0]) - points[0]) < 0.1
    # The network of the whole exam alone ends elsewhere.
    root = replace(target, field=CoordinateField(field.coords, field.grid))
    assert (
        np.linalg.norm(look_for(root, coordinates_of(source, points)).points - got.points, axis=1).min() > 1
    )


def test_results_are_written_as_a_table(tmp_path):
    source = KnownExam.of(AffineModel().map_exam(exam(GRIDS["plain"], "a")[0]), GRIDS["plain"], "a")
    marks = Markups(
        (Point("carina", (1.0, 2.0, 3.0)), Point("apex, left", (900.0, 0.0, 0.0)), Point("none", None))
    )
    result = find(source, from_exam(source, marks))
    write_found(tmp_path / "out.csv", {"b": result})
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "target,name,x,y,z,inversion_mm,found,reason,fit,known"
    assert lines[1].startswith("b,carina,1.000,2.000,3.000,0.00") and lines[1].endswith(",true,,1.000,")
    assert lines[2] == 'b,"apex, left",,,,,false,outside the source exam,1.000,'
    assert lines[3] == "b,none,,,,,false,has no position in the source exam,1.000,"
