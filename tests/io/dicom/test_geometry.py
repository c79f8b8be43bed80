"""Stacks of slices from positions alone: every gap found and counted, whatever the orientation and order."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from deepatlas.errors import DataError
from deepatlas.io.dicom.geometry import arrange, axes_of, orientation_class


def slices(seed: int, levels, shifts=None, decimals: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shuffled positions, an orientation, and the order that stacks them."""
    rng = np.random.default_rng(seed)
    x, y, z = Rotation.random(random_state=seed).as_matrix().T
    levels = np.asarray(levels, dtype=float)
    positions = rng.uniform(-300, 300, size=3) + levels[:, None] * z
    if shifts is not None:
        positions += np.asarray(shifts) @ [x, y]
    order = rng.permutation(len(levels))
    return positions[order].round(decimals), np.concatenate([x, y]).round(decimals), np.argsort(order)


CASES = {
    "seed": st.integers(0, 10_000),
    "count": st.integers(5, 60),
    "spacing": st.floats(0.3, 10),
}


@given(**CASES)
@settings(max_examples=60, deadline=None)
def test_even_stacks(seed, count, spacing):
    positions, orientation, order = slices(seed, np.arange(count) * spacing)
    stack = arrange(positions, orientation, (0.7, 0.9), np.full(count, spacing))
    assert stack.even and stack.straight and not stack.corrections and not stack.warnings
    assert [plane[0] for plane in stack.planes] == list(order)
    np.testing.assert_allclose(stack.spacing, (0.7, 0.9, spacing), rtol=1e-5)
    last = stack.affine @ [0, 0, count - 1, 1]
    np.testing.assert_allclose(last[:3], positions[order[-1]], atol=1e-4)
    assert np.linalg.det(stack.affine[:3, :3]) > 0


@given(**CASES, places=st.lists(st.integers(1, 10_000), min_size=1, max_size=6))
@settings(max_examples=120, deadline=None)
def test_every_gap_is_counted(seed, count, spacing, places):
    """Some slices are removed from the middle, in any pattern that leaves most of the steps unchanged."""
    gone = sorted({1 + p % (count - 2) for p in places})
    kept = np.setdiff1d(np.arange(count), gone)
    steps = np.diff(kept)
    if (steps == 1).sum() < max(2, len(steps) / 2 + 1):
        return
    positions, orientation, _ = slices(seed, kept * spacing)
    with pytest.raises(DataError) as error:
        arrange(positions, orientation, (1, 1), np.full(len(kept), spacing))
    found = re.match(r"(\d+) slices? missing of (\d+): ", str(error.value))
    assert found and (int(found[1]), int(found[2])) == (len(gone), count)


@given(seed=CASES["seed"], count=CASES["count"], spacing=CASES["spacing"], degrees=st.floats(1, 30))
@settings(max_examples=60, deadline=None)
def test_tilt_is_found_from_positions_alone(seed, count, spacing, degrees):
    drift = np.arange(count)[:, None] * spacing * np.tan(np.radians(degrees)) * [0.0, 1.0]
    if drift.max() < 0.06:  # a tenth of a pixel from end to end is rounding
        return
    positions, orientation, _ = slices(seed, np.arange(count) * spacing, drift)
    stack = arrange(positions, orientation, (0.5, 0.5))
    assert not stack.straight and stack.even
    (note,) = stack.corrections
    assert abs(float(re.search(r"tilt of ([\d.]+)", note)[1]) - degrees) < 0.01
    np.testing.assert_allclose(stack.shifts - stack.shifts[0], drift, atol=1e-5)


def test_positions_rounded_to_tenths_are_even():
    x_axis = np.array([1.0, 0, 0, 0, 1, 0])
    straight = np.array([[0, 0, round(k * 1.25, 1)] for k in range(80)])
    stack = arrange(straight, x_axis, (0.8, 0.8))
    assert stack.even and not stack.corrections and "of the spacing off" in stack.warnings[0]
    assert stack.spacing[2] == pytest.approx(1.25, rel=2e-3)


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([0, 1, 2, 3, 3.2, 4, 5, 6], "lie less than half the spacing"),
        ([0, 1, 2, 3, 4, 14, 24, 34, 44], "spacing changes from 1 to 10 mm"),
        ([0, 0, 0, 0], "one level"),
        ([0, 1, 2, 3, 4, 5, 6, 8.9, 10, 11], "2 slices missing of 12"),
    ],
)
def test_what_is_refused(levels, words):
    positions, orientation, _ = slices(3, levels)
    with pytest.raises(DataError, match=words):
        arrange(positions, orientation, (1, 1))


def test_shifts_without_the_drift_of_a_tilt():
    positions, orientation, _ = slices(1, np.arange(9), np.eye(9)[:, 4:6] * [40, 0])
    with pytest.raises(DataError, match="up to 40 mm beside each other"):
        arrange(positions, orientation, (1, 1))


def test_images_side_by_side_at_one_level():
    positions, orientation, _ = slices(1, [0, 1, 2, 2, 3], [[0, 0], [0, 0], [0, 0], [50, 0], [0, 0]])
    with pytest.raises(DataError, match="2 slices lie side by side"):
        arrange(positions, orientation, (1, 1))


def test_thin_slices_far_apart_are_said():
    positions, orientation, _ = slices(1, np.arange(8) * 10.0)
    stack = arrange(positions, orientation, (1, 1), np.full(8, 1.0))
    assert stack.even and stack.warnings == ["slices of 1 mm lie 10 mm apart"]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        ([1, 0, 0, 0, 1, 0], "axial"),
        ([-1, 0, 0, 0, -1, 0], "axial"),
        ([1, 0, 0, 0, np.cos(0.5), -np.sin(0.5)], "axial"),
        ([1, 0, 0, 0, 0, -1], "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([1, 0, 0, 0, np.sqrt(0.5), np.sqrt(0.5)], "oblique"),
    ],
)
def test_orientation_classes(orientation, expected):
    assert orientation_class(orientation) == expected
    axes = axes_of(orientation)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
