"""A template tells how much of its labels a mask leaves unexplained, and warns where that is much."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from deepatlas.errors import DataWarning
from deepatlas.localize.template.estimate import LabelledExam, estimate_template
from deepatlas.model.field import CoordinateField
from deepatlas.space.affine import affine_coords
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

SIZE = 16
GRID = Grid((SIZE,) * 3, np.diag([4.0, 4.0, 4.0, 1.0]))
LABELS = {"good": 1, "ball": 2}


def labels(shift: int = 0) -> Volume:
    array = np.zeros(GRID.shape, np.uint8)
    array[2:7, 2:7, 2:7] = 1
    array[8:14, 8:14, 8 + shift : 12 + shift] = 2
    return Volume(array, GRID, "e1")


def identity() -> torch.Tensor:
    return affine_coords(torch.eye(3, 4)[None], GRID.shape)


def estimated(*exams: LabelledExam):
    """The misfits, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        template = estimate_template(exams, LABELS, 32)
    lines = [str(w.message) for w in caught if issubclass(w.category, DataWarning)]
    return {name: about["misfit"] for name, about in template.meta["structures"].items()}, lines


def test_coordinates_that_tell_places_apart_explain_the_labels():
    misfit, lines = estimated(LabelledExam(CoordinateField(identity(), GRID), labels()))
    assert lines == [] and set(misfit) == set(LABELS) and all(0 <= value < 0.12 for value in misfit.values())


def test_coordinates_that_mix_places_up_are_said_for_each_structure_alone():
    coords = identity().clone()
    # The upper half of the body: inside and outside of the ball have the same coordinates.
    upper = coords[:, :, 7:]
    upper[:, :2] = 0.1 * upper[:, :2]
    upper[:, 2] = 0.5 + 0.02 * torch.rand(upper[:, 2].shape, generator=torch.Generator().manual_seed(0))
    misfit, lines = estimated(LabelledExam(CoordinateField(coords, GRID), labels()))
    assert misfit["good"] < 0.12 < misfit["ball"]
    assert len(lines) == 1 and "the mask of ball leaves" in lines[0] and "\n" not in lines[0]
    assert f"{100 * misfit['ball']:.0f} %" in lines[0]


@pytest.mark.parametrize(("shift", "warned"), [(1, False), (-6, True)])
def test_exams_that_nearly_agree_are_good_and_those_that_do_not_are_said(shift, warned):
    exams = [LabelledExam(CoordinateField(identity(), GRID), labels(s)) for s in (0, shift)]
    misfit, lines = estimated(*exams)
    assert misfit["good"] < 0.12 < misfit["ball"]
    assert [("the exams put it at different coordinates" in line) for line in lines] == [True] * warned


def test_a_structure_that_subsampling_has_lost_does_not_count_as_absent():
    """Of 200 slices every second one is taken, and this exam has the structure in one between them."""
    grid = Grid((200, SIZE, SIZE), np.diag([4.0, 4.0, 0.3, 1.0]))
    array = np.zeros(grid.shape, np.uint8)
    array[101, 8, 8] = 2
    fine = LabelledExam(CoordinateField(identity(), GRID), Volume(array, grid, "e2"), frozenset({"ball"}))
    assert fine.labels.grid.shape == (100, SIZE, SIZE)
    whole = LabelledExam(CoordinateField(identity(), GRID), labels())
    alone, both = (estimate_template(exams, {"ball": 2}, 32) for exams in ([whole], [whole, fine]))
    assert both.meta["structures"]["ball"]["exams"] == ["e1"]
    np.testing.assert_array_equal(both.masks, alone.masks)
