"""Whether a mirrored exam can be told from others: where the atlas does not look like its mirror image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepatlas.index.flip import flip_alarm, shows_sides
from deepatlas.model.engine import Engine
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.fit import Fit
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume


class Comparing:
    """A model that sees an image as it is: the fit is its correlation with the atlas."""

    size, intensity = 16, "hu"

    def __init__(self, liver: float) -> None:
        """A body with an organ on one side, which is so much brighter than the rest of it."""
        self.atlas = torch.zeros(1, 1, 32, 32, 32)
        self.atlas[..., 4:28, 4:28, 4:28] = 0.5
        self.atlas[..., 8:20, 8:20, 6:14] += liver
        self.passes = 0

    def fit_of(self, hu):
        self.passes += 1
        assert hu.array.shape == (16, 16, 16) and hu.array.min() == -256 and hu.array.max() <= 256
        own = torch.nn.functional.avg_pool3d(self.atlas, 2).numpy()
        return float(np.corrcoef(own.ravel(), hu.array.ravel())[0, 1])


@pytest.mark.parametrize(("liver", "sided"), [(0.0, False), (0.02, False), (0.3, True), (-0.3, True)])
def test_an_atlas_shows_sides_where_its_mirror_image_fits_it_less(liver, sided):
    model = Comparing(liver)
    assert shows_sides(model) is sided and model.passes == 2


def test_the_atlas_of_heads_and_necks_shows_none():
    assert not shows_sides(Engine.load("headneck", "cpu"))


@pytest.mark.parametrize(
    ("threshold", "sides", "passes", "alarm"),
    [
        (0.0, True, 1, "left-right"),
        (0.0, False, 0, None),
        (0.6, True, 4, "left-right"),
        (0.6, False, 3, "front-back and left-right"),
        # The model knows neither the exam nor a flipped copy: it is another part of the body.
        (1.1, True, 4, None),
        (1.1, False, 3, None),
    ],
)
def test_an_exam_is_compared_with_its_mirror_image_where_there_are_sides(threshold, sides, passes, alarm):
    model = Comparing(0.3)
    values = torch.nn.functional.avg_pool3d(model.atlas, 2)[0, 0].numpy() * 512 - 256
    hu = Volume(np.ascontiguousarray(values[..., ::-1]), Grid((16, 16, 16), np.eye(4)))
    fit = Fit(0.5, threshold)
    assert fit.known is (threshold == 0.0)
    model.passes = 0
    found = ExamMap(torch.zeros((1, 3, 16, 16, 16)), hu.grid, hu, np.ones((16,) * 3, dtype=bool), fit)
    assert flip_alarm(model, found, sides) == alarm and model.passes == passes
