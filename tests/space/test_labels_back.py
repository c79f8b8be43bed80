"""Labels that come back from a view to the exam's own grid."""

from __future__ import annotations

import numpy as np
import pytest
from affine_model import ANATOMY, GRIDS, LABELS, exam, grid_of

from deepatlas.evaluate.metrics.dice import dice
from deepatlas.space.box import Box
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.labels_back import labels_back
from deepatlas.space.resample_to import labels_resampled_to
from deepatlas.space.volume import Volume

TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
TURN[:, 0] *= np.sign(np.linalg.det(TURN))


def view(shape) -> Grid:
    """A turned grid that holds all structures."""
    return Box("all", np.array([0.0, 2.0, 8.0]), TURN * 62.0).grid(shape)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("shape", [48, (64, 90, 110)])
def test_drawings_on_a_view_come_back_to_where_they_belong(name, shape):
    drawn = exam(view(shape))[1]
    want = exam(GRIDS[name])[1]
    found = labels_back(drawn, want.grid)
    assert found.grid == want.grid and found.array.dtype == want.array.dtype
    # Slices of 4 mm at a radius of 11 mm.
    least = 0.93 if name in ("anisotropic", "sagittal") else 0.95
    assert min(dice(want.array == i, found.array == i) for i in LABELS.values()) > least


def test_on_the_same_grid_nothing_changes_and_overlaps_stay():
    grid = GRIDS["coarse"]
    seg = exam(grid)[1]
    ball = np.linalg.norm(grid.places() - ANATOMY["liver"][1], axis=-1) < 9
    array = seg.array.copy()
    array[ball] = 7
    labels = Labels(array, grid, "x", {5: BoxMask.of(ball)})
    found = labels_back(labels, grid)
    assert np.array_equal(found.array, labels.array)
    for identity in (2, 5, 7, 9):
        assert np.array_equal(found.mask(identity), labels.mask(identity))


def test_two_that_touch_leave_no_gap_between_them():
    coarse = Grid.from_spacing((6, 6, 6), 4.0)
    halves = np.ones(coarse.shape, dtype=np.uint8)
    halves[..., 3:] = 2
    fine = coarse.divided(3)
    found = labels_back(Volume(halves, coarse), fine).array
    assert (found > 0).all() and (found[..., :9] == 1).all() and (found[..., 9:] == 2).all()


def test_there_and_back_is_the_same_structure():
    seg = exam(grid_of(spacing=(1.5, 1.5, 1.5)))[1]
    there = labels_resampled_to(seg, view(80))
    back = labels_back(there, seg.grid)
    assert min(dice(seg.array == i, back.array == i) for i in LABELS.values()) > 0.97


def test_a_view_of_elsewhere_brings_nothing():
    seg = exam(GRIDS["plain"])[1]
    away = Grid.from_spacing((8, 8, 8), 2.0, (900.0, 0.0, 0.0))
    assert not labels_back(seg, away).ids()
    assert not labels_back(Volume(np.zeros(away.shape, np.uint8), away), seg.grid).ids()
