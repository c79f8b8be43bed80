"""What the network sees of an exam that lies turned: the air beside it does not count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from deepatlas.index.in_view import in_view
from deepatlas.index.inner import inner_values
from deepatlas.index.measured import measured
from deepatlas.localize.template.file import Template
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.fit import Fit
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import foreground_mask, to_model_grid
from deepatlas.space.volume import Volume

HU = 120.0


def _exam(degrees: float) -> tuple[Volume, ExamMap]:
    """An exam of one tissue that fills the field of view, turned about the axis from right to left."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix() @ np.diag([4.0, 4.0, 6.0])
    volume = Volume(np.full((24, 32, 32), HU, dtype=np.float32), Grid((24, 32, 32), affine), "turned")
    hu = to_model_grid(volume, 32)
    return volume, ExamMap(
        torch.zeros((1, 3, 32, 32, 32)), hu.grid, hu, foreground_mask(hu.array), Fit(0.9, 0.5)
    )


@pytest.mark.parametrize("degrees", [0.0, 15.0])
def test_voxels_in_view_hold_nothing_but_values_of_the_exam(degrees):
    volume, found = _exam(degrees)
    shown = in_view(found, volume.grid)
    np.testing.assert_allclose(np.asarray(found.hu.array)[shown], HU, atol=0.1)
    # A border of about one voxel is left out, a tenth of the exam on each axis that was turned.
    whole = np.prod(volume.grid.shape) * volume.grid.voxel_volume
    assert shown.sum() * found.grid.voxel_volume > (0.7 if degrees else 0.9) * whole
    if degrees:
        assert np.asarray(found.hu.array)[found.body].min() < -300


def test_the_tissue_of_a_structure_that_a_turned_exam_cuts_is_not_mixed_with_air():
    volume, found = _exam(15.0)
    template = Template(np.ones((1, 8, 8, 8), dtype=np.float32), ("liver",), (1,), {})
    mean = inner_values(found, template, [0], in_view(found, volume.grid))[0]
    assert mean == pytest.approx(HU, abs=0.1)
    assert inner_values(found, template, [0], np.ones_like(found.body))[0] < HU - 100
    # On the exam's own grid there is no air beside it.
    (mask,) = measured(found, template, volume)
    assert mask.mean == HU and mask.ml == pytest.approx(
        volume.array.size * volume.grid.voxel_volume / 1000, rel=0.05
    )
