"""Features of the network on any grid of an exam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from affine_model import GRIDS, AffineModel, exam
from scipy.ndimage import map_coordinates

import deepatlas
from deepatlas.errors import DeepAtlasError
from deepatlas.model.features import features


@pytest.mark.slow(2)
def test_features_are_those_from_which_the_coordinates_are_made():
    model = deepatlas.load("headneck", device="cpu", refine=0)
    volume = exam(GRIDS["coarse"], "a")[0]
    look = model.look(volume)
    on_input = features(model, volume, look.hu.grid)
    level = model.config.network.finest_level
    raw = model.network.features(look.x, level)[-1]
    assert on_input.shape == (raw.shape[1], *look.hu.grid.shape)
    # The head turns them into the coordinates of one pass.
    coords = model.network._coords(raw)
    torch.testing.assert_close(coords, model.network(look.x, level), rtol=1e-4, atol=1e-5)
    # On the exam's own grid they are interpolated linearly, as scipy does it.
    own = model.features(volume)
    assert own.shape[1:] == volume.grid.shape
    index = look.hu.grid.world_to_voxel(volume.grid.voxel_to_world([[10, 12, 9], [25, 20, 30]]))[:, ::-1]
    for place, voxel in zip(index, ((9, 12, 10), (30, 20, 25)), strict=True):
        want = map_coordinates(on_input[4].double().numpy(), place[:, None], order=1, mode="nearest")[0]
        assert float(own[4][voxel]) == pytest.approx(want, abs=1e-4 * float(np.abs(on_input[4]).max()))


def test_what_is_no_network_of_coordinates_is_refused():
    with pytest.raises(DeepAtlasError, match="features are those of a model of coordinates"):
        model = AffineModel()
        model.name = "masks"
        features(model, exam(GRIDS["coarse"], "a")[0])
