"""The Dice score."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deepatlas.errors import DeepAtlasError
from deepatlas.evaluate.metrics.dice import dice


def test_dice_counts_voxels_of_any_value_but_zero():
    a, b = np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int)
    a[0], b[0, :2] = 1, 7
    assert dice(a, b) == pytest.approx(2 * 8 / (16 + 8))
    assert dice(a, a) == 1


def test_dice_of_empty_masks():
    a, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    assert math.isnan(dice(empty, empty))
    assert dice(a, empty) == dice(empty, a) == 0


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(DeepAtlasError, match=r"dice: .*\(3, 3, 3\) and \(3, 3, 4\)"):
        dice(np.ones((3, 3, 3)), np.ones((3, 3, 4)))
