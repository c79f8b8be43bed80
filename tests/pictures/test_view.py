"""Views: the orientation of pictures, the choice of slices, and the proportions of pixels."""

from __future__ import annotations

import numpy as np
import pytest

from deepatlas.errors import DeepAtlasError
from deepatlas.pictures.view import PLANES, View, choose_slices

SHAPE = (6, 8, 10)


def marked(z: int, y: int, x: int) -> np.ndarray:
    array = np.zeros(SHAPE)
    array[z, y, x] = 1
    return array


@pytest.mark.parametrize(
    ("plane", "convention", "letters"),
    [
        ("axial", "radiological", ("R", "L")),
        ("axial", "neurological", ("L", "R")),
        ("coronal", "radiological", ("R", "L")),
        ("coronal", "neurological", ("L", "R")),
        ("sagittal", "radiological", ("A", "P")),
        ("sagittal", "neurological", ("A", "P")),
    ],
)
def test_letters_name_the_sides_of_the_patient(plane, convention, letters):
    """The last voxel of each canonical axis is at the right, the front and the head of the patient."""
    view = View(plane, convention)
    assert view.letters() == letters
    axis = {"axial": 0, "coronal": 1, "sagittal": 2}[plane]
    corner = [5, 7, 9]
    picture = view.slice(marked(*corner), corner[axis])
    (row,), (column,) = np.nonzero(picture)
    # The front (axial) or the head is at the top, and the right or the front at the side of its letter.
    assert row == 0
    end = {"R": 0, "L": -1, "A": 0, "P": -1}[letters[0]]
    expected = 0 if end == 0 else picture.shape[1] - 1
    assert column == expected


def test_slices_keep_channels_and_unknown_planes_are_refused():
    coords = np.random.default_rng(0).normal(size=(3, *SHAPE))
    view = View("coronal")
    np.testing.assert_array_equal(view.slice(coords, 3)[1], view.slice(coords[1], 3))
    with pytest.raises(DeepAtlasError, match="got 'oblique'"):
        View("oblique")


def test_pixels_have_the_proportions_of_the_voxels():
    spacing = (0.5, 1.0, 4.0)
    assert [View(p).aspect(spacing) for p in PLANES] == [2.0, 8.0, 4.0]


def test_chosen_slices_cross_the_structures():
    labels = np.zeros((20, 20, 20), int)
    assert choose_slices(labels) == (9, 9, 9)
    labels[2:6, 3:9, 10:16] = 4
    z, y, x = choose_slices(labels)
    assert 2 <= z < 6 and 3 <= y < 9 and 10 <= x < 16
    labels[4:9, 12:18, 12:18] = 7
    z, _, x = choose_slices(labels)
    # A slice that crosses both structures is chosen where there is one.
    assert z in (4, 5) and 12 <= x < 16
    assert 2 <= choose_slices(labels, [4])[0] < 6
