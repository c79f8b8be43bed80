"""Averaging over moved views leaves correct coordinates as they are, and reduces the errors of single views."""

import pytest
import torch
from affine_model import GRIDS, exam

import deepatlas
from deepatlas.errors import DeepAtlasError
from deepatlas.model.average import averaged_coordinates, views_of
from deepatlas.space.affine import affine_coords

SIZE = 24
# The coordinates of the exam.
PLACE = 0.5 * affine_coords(torch.eye(3, 4)[None], SIZE)


def network(errors=0.0, seed=0):
    """A network that reads coordinates from an image that shows them; each prediction has a constant error."""
    generator = torch.Generator().manual_seed(seed)

    def predict(view):
        bias = errors * torch.randn(3, generator=generator)
        # The image holds x + 10, so that 0 marks what a view shows from outside the image.
        return torch.cat([view - 10] * 3, 1) + bias[None, :, None, None, None]

    return predict


@pytest.fixture
def image():
    return PLACE[:, :1] + 10


def test_one_view_is_the_prediction_of_the_network(image):
    assert torch.equal(averaged_coordinates(network(), image, 1), network()(image))


@pytest.mark.parametrize("views", [2, 5])
def test_correct_coordinates_are_kept(image, views):
    got = averaged_coordinates(network(), image, views)
    # At their rims, views mix with what lies outside the image.
    inner = (slice(None), slice(None), *(slice(3, -3),) * 3)
    torch.testing.assert_close(got[inner], PLACE[:, :1].expand(-1, 3, -1, -1, -1)[inner], atol=1e-5, rtol=0)


def test_errors_of_single_views_average_out(image):
    truth = PLACE[:, :1]
    inner = (slice(None), slice(None), *(slice(4, -4),) * 3)

    def error(views):
        trials = [averaged_coordinates(network(0.05, seed), image, views) for seed in range(6)]
        return torch.stack([(t - truth)[inner].abs().mean() for t in trials]).mean()

    assert error(12) < 0.5 * error(1)


def test_views_are_carried_back_to_the_exam_and_their_mean_is_the_average(image):
    views = list(views_of(network(), image, 5, (SIZE,) * 3))
    inner = (slice(None), slice(None), *(slice(3, -3),) * 3)
    for coords, seen in views:
        inside = (seen > 0).expand_as(coords)[inner]
        assert inside.float().mean() > 0.9
        error = (coords - PLACE[:, :1]).abs()[inner][inside]
        assert error.max() < 1e-4
    mean = sum(c * s for c, s in views) / sum(s for _, s in views)
    torch.testing.assert_close(averaged_coordinates(network(), image, 5), mean)


@pytest.mark.slow(1)
def test_the_views_of_a_model_begin_with_the_exam_itself():
    model, (volume, _) = deepatlas.load("headneck", "cpu", refine=0), exam(GRIDS["plain"])
    found = model.map_exam(volume)
    views = model.views(found, 3, found.coords.shape[-1])
    assert views.shape == (3, *found.coords.shape[1:])
    torch.testing.assert_close(views[:1], found.coords, atol=1e-4, rtol=0)
    assert 0 < (views[1] - views[0]).abs().mean() < 0.2
    assert model.fit_of(found.hu) == pytest.approx(found.fit.value, abs=1e-4)


@pytest.mark.slow(5)
def test_the_shipped_model_averages_views_reproducibly():
    volume, _ = exam(GRIDS["sagittal"])
    once, twice = (deepatlas.load("headneck", "cpu", average=3).map_exam(volume).coords for _ in range(2))
    alone = deepatlas.load("headneck", "cpu").map_exam(volume).coords
    assert once.shape == alone.shape and torch.equal(once, twice)
    assert 0 < (once - alone).abs().mean() < 0.2


@pytest.mark.parametrize("wrong", [0, -1, 1.5])
def test_a_wrong_number_of_views_is_refused(wrong):
    with pytest.raises(DeepAtlasError, match="average must be a number of views"):
        deepatlas.load("headneck", "cpu", average=wrong)
