"""How much of a structure an exam shows: slices that were padded show nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepatlas.localize.coverage import coverage
from deepatlas.localize.template.file import Template
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.fit import Fit
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

SIZE = 32
STRUCTURES = {"below": (0, 5), "cut": (4, 12), "middle": (12, 20), "above": (27, 32)}


def _exam(first: int, last: int) -> tuple[ExamMap, Grid]:
    """An exam with the coordinates of its own voxels, whose body lies in the slices ``first`` to ``last`` alone."""
    grid = Grid.from_spacing((SIZE,) * 3, (4.0, 4.0, 4.0))
    axis = torch.linspace(-1, 1, SIZE)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    body = np.zeros(grid.shape, dtype=bool)
    body[first : last + 1, 6:26, 6:26] = True
    hu = Volume(np.where(body, 40, -1000).astype(np.float32), grid, "padded")
    return ExamMap(torch.stack([x, y, z])[None], grid, hu, body, Fit(0.9, 0.5)), grid


def _template() -> Template:
    masks = np.zeros((len(STRUCTURES), SIZE, SIZE, SIZE), dtype=np.float32)
    for row, (low, high) in enumerate(STRUCTURES.values()):
        masks[row, low:high, 10:22, 10:22] = 1
    return Template(masks, tuple(STRUCTURES), tuple(range(1, len(STRUCTURES) + 1)), {})


def test_padded_slices_show_nothing_of_a_structure():
    found, grid = _exam(8, 24)
    shares = dict(zip(STRUCTURES, coverage(found, _template(), grid), strict=True))
    assert shares["below"] == shares["above"] == 0 and shares["middle"] == 1
    # Four of its eight slices lie in the body, and half a voxel of the image beyond it counts too.
    assert shares["cut"] == pytest.approx(0.5, abs=0.15)


def test_an_exam_without_padding_shows_all():
    found, grid = _exam(0, SIZE - 1)
    np.testing.assert_array_equal(coverage(found, _template(), grid), 1)
